"""Starts a real Triton without Docker: the embedded default of `deepfake serve`."""
