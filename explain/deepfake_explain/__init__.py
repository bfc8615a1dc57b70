"""Grad-CAM and its kin beside the served model: where a PyTorch checkpoint looks when it scores a face."""
