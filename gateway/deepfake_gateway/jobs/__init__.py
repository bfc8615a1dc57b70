"""Durable jobs: the queue that gateways fill, and the worker that empties it."""
