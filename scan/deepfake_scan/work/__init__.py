"""Processes that open media, with bounds on what they may use."""
