"""Turns a PyTorch checkpoint into a served model, and proves that it gives the checkpoint's verdicts."""

from deepfake_export.api import ExportResult, export_checkpoint, load_model

__all__ = ["ExportResult", "export_checkpoint", "load_model"]
