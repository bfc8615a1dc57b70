"""`deepfake explain-serve`."""
