"""The command `deepfake scan`."""
