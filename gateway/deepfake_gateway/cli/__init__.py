"""`deepfake gateway`."""
