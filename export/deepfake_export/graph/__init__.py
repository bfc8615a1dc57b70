"""From a PyTorch network to a self-contained ONNX file that follows the wire contract."""
