"""How TensorRT plans are built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How plans are built.

    Attributes:
        typical_batch_size: batch that kernels are picked for; None takes 8, or the largest batch where smaller.
        timing_cache: file with kernel timings of earlier builds; read where it exists, and written. A file of
            another TensorRT or GPU is replaced. TensorRT-RTX has no use for it.
        version_compatible: let later TensorRT versions of the same major version load the plan; somewhat slower,
            and Triton then needs the same setting for its tensorrt backend. Not for TensorRT-RTX.
    """

    typical_batch_size: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
