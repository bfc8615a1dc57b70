"""bfloat16 only where the CPU computes in it."""

from __future__ import annotations

import pytest
import torch

from deepfake_training.loop.precision import fast_precision


@pytest.mark.parametrize(("flag", "dtype"), [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    flag: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepfake_training.loop.precision.cpu_features", lambda: frozenset({flag}))
    weights = torch.eye(4)
    with fast_precision("cpu"):
        assert (weights @ weights).dtype == dtype
    assert (weights @ weights).dtype == torch.float32
