"""From a checkpoint file to a PyTorch network, without ever running code from the file."""
