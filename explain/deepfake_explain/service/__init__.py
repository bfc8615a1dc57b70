"""The explain service over HTTP."""
