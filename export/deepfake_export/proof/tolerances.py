"""The one table of how far an artifact may be from the checkpoint, each number with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCORE_DENSITY = 0.35
"""Share of all faces, per logit, whose scores lie beside the threshold. Measured: 0.29 of CLIP ViT-B/16 (504 faces),
0.42 of EfficientNet-Lite0 (983)."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What an artifact of one precision may differ by.

    Attributes:
        probability_abs: largest absolute difference of `fake_probability`, in [0, 1].
        probability_mean_abs: mean absolute difference of `fake_probability`.
        logit_abs: largest absolute difference of `logit`, before the relative share is added.
        logit_rel: share of the largest absolute reference logit that is added to `logit_abs`.
        batch_abs: largest difference of one crop's probability between two batches it came in.
        auc_abs: largest absolute difference of the AUC, where labels are given.
        flip_share: share of all crops, and of all videos, whose verdict may change. None where `probability_abs` is
            so small that a verdict changes only next to the threshold, where either is right.
        reason: why these numbers.
    """

    probability_abs: float
    probability_mean_abs: float
    logit_abs: float
    logit_rel: float
    batch_abs: float
    auc_abs: float
    flip_share: float | None
    reason: str

    def allowed_flips(self, count: int) -> int | None:
        """Return how many of `count` verdicts may change; None where `flip_share` is."""
        return None if self.flip_share is None else math.floor(self.flip_share * count)

    @property
    def generated_logit_mean_abs(self) -> float | None:
        """Largest mean absolute difference of `logit` where the faces are generated; None where `flip_share` is.

        Their scores lie where they happen to, mostly far from the threshold, so their verdicts prove nothing. An
        error changes the verdicts of those faces that are nearer to the threshold than it is, on one side.
        """
        return None if self.flip_share is None else self.flip_share / SCORE_DENSITY

    def logit_limit(self, largest_logit: float) -> float:
        """Return the allowed logit difference where the largest absolute reference logit is `largest_logit`."""
        return self.logit_abs + self.logit_rel * largest_logit


TOLERANCES = {
    "fp32": Tolerance(
        probability_abs=1e-4,
        probability_mean_abs=1e-4,
        logit_abs=1e-3,
        logit_rel=1e-4,
        batch_abs=1e-5,
        auc_abs=1e-3,
        flip_share=None,
        reason=(
            "the same FP32 arithmetic in another order: folded batch norms and other kernels leave 1e-6 to 1e-5, "
            "while a wrong channel order, mean or resize moves probabilities by 1e-2 and more; logits are unbounded, "
            "so theirs grows with them; batches only choose other kernels of the same arithmetic"
        ),
    ),
    "fp16": Tolerance(
        probability_abs=0.02,
        probability_mean_abs=0.005,
        logit_abs=0.08,
        logit_rel=0.02,
        batch_abs=5e-3,
        auc_abs=0.002,
        flip_share=0.005,
        reason=(
            "11 bits of significand round by 5e-4 per operation, and some hundred operations in a row add up to "
            "about 1% of a logit, of which the sigmoid leaves a quarter; an overflow shows as NaN or as a jump far "
            "beyond; one verdict in 200 may change, a share that thresholds set on finite data cannot resolve"
        ),
    ),
    "bf16": Tolerance(
        probability_abs=0.08,
        probability_mean_abs=0.01,
        logit_abs=0.35,
        logit_rel=0.02,
        batch_abs=0.02,
        auc_abs=0.005,
        flip_share=0.005,
        reason=(
            "about twice what was measured on faces (CPU with AVX-512 BF16, OpenVINO 2026.4) with EfficientNet-Lite0 "
            "on 983 crops and CLIP ViT-B/16 on 158: logits of -2.8 to 2.5 moved by up to 0.16 and 0.14, "
            "probabilities by up to 0.04 and in the mean by 0.005 and 0.003; its range is that of FP32, so nothing "
            "overflows; one verdict in 200 may change, a share that thresholds set on finite data cannot resolve"
        ),
    ),
    "int8": Tolerance(
        probability_abs=0.15,
        probability_mean_abs=0.02,
        logit_abs=0.6,
        logit_rel=0.1,
        batch_abs=0.02,
        auc_abs=0.005,
        flip_share=0.005,
        reason=(
            "8 bits leave about 1% of a range per layer; single crops near the threshold, where the sigmoid is "
            "steepest, may move by 0.15, but the mean must not, since a video's score is a mean; one verdict in 200 "
            "may change, a share that thresholds set on finite data cannot resolve; a rounding step that tips over "
            "in another batch moves a score by up to 0.02"
        ),
    ),
}
"""By precision of the artifact."""

PLAN_PROBABILITY_ABS = {
    # The same FP32 arithmetic (TF32 is off) with other kernels: ten times what two CPU runtimes leave.
    "fp32": 1e-3,
    # Half has eleven bits, and TensorRT may keep sums in half where ONNX Runtime's CPU kernels compute in FP32.
    "fp16": 1e-2,
    # One step of 255 at a layer that is rounded the other way; the checkpoint's own gate is what counts.
    "int8": 5e-2,
}
"""Largest allowed difference of `fake_probability` between a TensorRT plan and ONNX Runtime on the same ONNX file."""
