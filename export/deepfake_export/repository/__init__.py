"""The Triton model repository: written completely or not at all, verified, rolled back and pruned."""
