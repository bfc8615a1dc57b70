"""`deepfake bench`."""
