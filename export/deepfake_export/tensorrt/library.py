"""Finds NVIDIA's builder: `tensorrt` where a GPU is, TensorRT-RTX's CPU builder where none is.

Both have the same interface, as far as `tensorrt.engine` uses it; `target_gpu` is the one thing that only
TensorRT-RTX has, because the full library always builds for the GPU that it finds.

The libraries come without type information. The names below stand for their classes in annotations, and the
contract test takes them as such: it follows them through this package's source and checks each attribute and
call against NVIDIA's real bindings.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from deepfake_preprocess.errors import EngineError, MissingExtraError

TensorRT: TypeAlias = Any
"""The module `tensorrt`, or the part of `tensorrt_rtx_bindings` that is the same."""
TensorRTRTX: TypeAlias = Any
"""The module `tensorrt_rtx_bindings`."""
ILogger: TypeAlias = Any
Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
OnnxParser: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any

RTX_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
RTX_PACKAGES = "tensorrt_rtx_cu12_libs tensorrt_rtx_cu12_bindings"
RTX_CUDA_VERSION = "12"
"""TensorRT-RTX builds here come from the packages for CUDA 12, and its runtime is linked in."""

OLDEST_TENSORRT = (10, 12)
"""The first version that takes everything we do the way version 11 does."""


@dataclass(frozen=True, slots=True)
class TensorRTLibrary:
    """An imported builder.

    Attributes:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        logger: the one logger that all of its objects share; the library warns of a second one.
        errors: what `logger` collected: messages of the severities ERROR and INTERNAL_ERROR. May be cleared.
    """

    name: str
    version: str
    module: TensorRT
    logger: ILogger
    errors: list[str]

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, whose engines Triton does not load."""
        return self.name == "tensorrt_rtx"


@functools.cache
def load_tensorrt() -> TensorRTLibrary:
    """Import NVIDIA's full TensorRT; `MissingExtraError` without it, `EngineError` where it is older than 10.12."""
    try:
        module = importlib.import_module("tensorrt")
    # An OSError or a FileNotFoundError where the package is there but its libraries are not.
    except (ImportError, OSError) as exc:
        raise MissingExtraError(
            "TensorRT is not installed; use NVIDIA's container (`docker compose run --rm engines`), or install "
            "'deepfake-serving[gpu]' with NVIDIA's package index as pip's extra index",
            name="tensorrt",
        ) from exc
    library = _library("tensorrt", module)
    version = tuple(int(part) for part in library.version.split(".")[:2])
    if version < OLDEST_TENSORRT:
        raise EngineError(
            f"TensorRT {library.version} is too old, {OLDEST_TENSORRT[0]}.{OLDEST_TENSORRT[1]} or newer is needed; "
            "use the container of the month that docker-compose.yml names"
        )
    return library


@functools.cache
def load_tensorrt_rtx() -> TensorRTLibrary:
    """Import TensorRT-RTX, whose parser and builder run without a GPU; `MissingExtraError` without it."""
    for name in RTX_MODULES:
        try:
            return _library("tensorrt_rtx", importlib.import_module(name))
        except (ImportError, OSError):
            continue
    raise MissingExtraError(
        f"TensorRT-RTX, which checks graphs without a GPU, is not installed; run: pip install {RTX_PACKAGES}",
        name=RTX_MODULES[0],
    )


def target_gpu(trt: TensorRTRTX, config: IBuilderConfig, compute_capability: str) -> None:
    """Let TensorRT-RTX build for GPUs of one compute capability, as ``8.9``; `EngineError` where it is unknown."""
    known = trt.ComputeCapability.__members__
    wanted = f"SM{compute_capability.replace('.', '')}"
    if wanted not in known:
        names = ", ".join(name for name in known if name.startswith("SM"))
        raise EngineError(f"TensorRT-RTX cannot build for compute capability {compute_capability}; it knows {names}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[wanted], 0)


def _library(name: str, trt: TensorRT) -> TensorRTLibrary:
    errors: list[str] = []

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]  # without type information
        """Collects instead of printing: what matters is said in one sentence by the error that follows."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    return TensorRTLibrary(name, str(trt.__version__), trt, CollectingLogger(), errors)
