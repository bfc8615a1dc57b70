"""`deepfake serve`."""
