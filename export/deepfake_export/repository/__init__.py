"""The Triton model repository: written whole or not at all, verified, rolled back and pruned."""
