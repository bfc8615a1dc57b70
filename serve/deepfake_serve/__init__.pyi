"""The public names of `deepfake_serve`, and the modules that they are loaded from on first use."""

from deepfake_preprocess.support.engines import CROPS_PER_THREAD
from deepfake_preprocess.support.wheels import cache_dir
from deepfake_serve._repository import ServedModel, check_repository
from deepfake_serve._shares import CpuShare, available_cores, model_share
from deepfake_serve.server import EmbeddedTriton

__all__ = [
    "CROPS_PER_THREAD",
    "CpuShare",
    "EmbeddedTriton",
    "ServedModel",
    "available_cores",
    "cache_dir",
    "check_repository",
    "model_share",
]
