"""bfloat16 only where the CPU computes faster in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepfake_training.loop.precision import fast_precision

LINEAR = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
CONVOLUTIONS = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("flag", "network", "dtype"),
    [
        ("avx512_bf16", LINEAR, torch.bfloat16),
        ("avx2", LINEAR, torch.float32),
        ("avx512_bf16", CONVOLUTIONS, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_pays(
    flag: str, network: nn.Module, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepfake_training.loop.precision.cpu_features", lambda: frozenset({flag}))
    weights = torch.eye(4)
    with fast_precision(network, "cpu"):
        assert (weights @ weights).dtype == dtype
    assert (weights @ weights).dtype == torch.float32
