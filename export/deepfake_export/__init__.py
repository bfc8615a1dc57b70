"""Turns a PyTorch checkpoint into a served model, and proves that it gives the checkpoint's verdicts."""

from deepfake_export.api import ExportResult, export_checkpoint
from deepfake_export.network import LoadedNetwork, load_network
from deepfake_export.request.faces import FaceOptions
from deepfake_export.request.precisions import PrecisionOptions
from deepfake_export.request.request import ExportRequest
from deepfake_export.spec_file import PinnedCheckpoint, pin_checkpoint
from deepfake_export.tensorrt.options import EngineOptions

__all__ = [
    "EngineOptions",
    "ExportRequest",
    "ExportResult",
    "FaceOptions",
    "LoadedNetwork",
    "PinnedCheckpoint",
    "PrecisionOptions",
    "export_checkpoint",
    "load_network",
    "pin_checkpoint",
]
