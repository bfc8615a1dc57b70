"""Several checkpoints as one network."""
