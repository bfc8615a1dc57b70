"""The public names of `deepfake_serve`, and the modules that they are loaded from on first use."""

from deepfake_serve._ports import Ports
from deepfake_serve._repository import CheckedModel, check_repository
from deepfake_serve._shares import CpuShare, model_share
from deepfake_serve.server import EmbeddedTriton

__all__ = [
    "CheckedModel",
    "CpuShare",
    "EmbeddedTriton",
    "Ports",
    "check_repository",
    "model_share",
]
