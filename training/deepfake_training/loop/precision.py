"""`fast_precision`: bfloat16 where the device computes faster in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from deepfake_preprocess.contract.forms import FEATURES, cpu_features


def fast_precision(device: str) -> AbstractContextManager[Any]:
    """Inside, matrices are multiplied in bfloat16 where ``cuda`` or ``cpu`` has instructions for it.

    It has the range of float32, so no loss scaling is needed. On a CPU without such instructions it would be several
    times slower than float32.
    """
    fast = torch.cuda.is_bf16_supported() if device == "cuda" else not cpu_features().isdisjoint(FEATURES["bf16"])
    return torch.autocast(device, dtype=torch.bfloat16) if fast else nullcontext()
