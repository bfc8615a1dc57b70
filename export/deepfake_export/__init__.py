"""Turns a PyTorch checkpoint into a served model, and proves that it gives the checkpoint's verdicts."""

from deepfake_export.api import ExportResult, export_checkpoint
from deepfake_export.network import LoadedNetwork, load_network
from deepfake_export.request import ExportRequest
from deepfake_export.spec_file import PinnedCheckpoint, pin_checkpoint
from deepfake_export.tensorrt.options import EngineOptions

__all__ = [
    "EngineOptions",
    "ExportRequest",
    "ExportResult",
    "LoadedNetwork",
    "PinnedCheckpoint",
    "export_checkpoint",
    "load_network",
    "pin_checkpoint",
]
