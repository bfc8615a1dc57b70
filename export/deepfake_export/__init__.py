"""Turns a PyTorch checkpoint into a served model, and proves that it gives the checkpoint's verdicts."""
