"""Proves that a heatmap explains what is served: the same checkpoint, and the same score for the same crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.types import ServedScores
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS, TOLERANCES
from deepfake_preprocess.errors import ExplainDisagreementError, OptionError


def check_checkpoint(checkpoint_sha256: str, served: ServedScores) -> None:
    """Raise `ExplainDisagreementError` where the server serves another checkpoint, or does not say which."""
    if served.checkpoint_sha256 is None:
        raise ExplainDisagreementError(
            "the served model does not say which checkpoint it was made from, and nothing proves that a heatmap "
            f"of {checkpoint_sha256[:12]} explains it; export it again with `deepfake export`"
        )
    if served.checkpoint_sha256 != checkpoint_sha256:
        raise ExplainDisagreementError(
            f"the served model was made from checkpoint {served.checkpoint_sha256}, but {checkpoint_sha256} is "
            "loaded here, whose heatmaps would explain another detector; load the served one"
        )


def check_scores(probabilities: NDArray[np.float32], served: ServedScores) -> float:
    """Return how far PyTorch's probabilities and those served may be apart, by the parity proof.

    Raises `ExplainDisagreementError` with both numbers where a pair is farther apart.
    """
    if served.precision not in TOLERANCES:
        raise OptionError(f"`precision` is {served.precision!r}; allowed: {', '.join(TOLERANCES)}")
    # A plan is proved against ONNX Runtime, and that against PyTorch.
    plan = PLAN_PROBABILITY_ABS[served.precision] if served.tensorrt else 0.0
    tolerance = TOLERANCES[served.precision].probability_abs + plan
    if served.probabilities.shape != probabilities.shape:
        raise OptionError(
            f"served scores must be one per crop ({len(probabilities)}), got {list(served.probabilities.shape)}"
        )
    # A score that is not a number agrees with nothing.
    differs = ~(np.abs(probabilities.astype(np.float64) - served.probabilities) <= tolerance)
    if differs.any():
        worst = int(np.flatnonzero(differs)[0])
        kind = f"{served.precision}{' in TensorRT' if served.tensorrt else ''}"
        raise ExplainDisagreementError(
            f"PyTorch gives {probabilities[worst]:.6f} for crop {worst}, but the server gave "
            f"{served.probabilities[worst]:.6f}, which is more than {tolerance:g} apart ({kind}); a heatmap would "
            "explain another score: is the crop the same?"
        )
    return tolerance
