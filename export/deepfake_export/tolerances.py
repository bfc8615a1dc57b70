"""The one table of how far an artifact may be from the checkpoint, each number with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What an artifact of one precision may differ by.

    Attributes:
        probability_abs: largest absolute difference of `fake_probability`, in [0, 1].
        logit_abs: largest absolute difference of `logit`, before the relative share is added.
        logit_rel: share of the largest absolute reference logit that is added to `logit_abs`.
        batch_abs: largest difference of one crop's probability between two batches it came in.
        verdict_flips: crops whose verdict may change although their probability is farther from the
            threshold than `probability_abs`. (Nearer than that, either verdict is right.)
        reason: why these numbers.
    """

    probability_abs: float
    logit_abs: float
    logit_rel: float
    batch_abs: float
    verdict_flips: int
    reason: str

    def logit_limit(self, largest_logit: float) -> float:
        """Return the allowed logit difference where the largest absolute reference logit is `largest_logit`."""
        return self.logit_abs + self.logit_rel * largest_logit


TOLERANCES = {
    "fp32": Tolerance(
        probability_abs=1e-4,
        logit_abs=1e-3,
        logit_rel=1e-4,
        batch_abs=1e-5,
        verdict_flips=0,
        reason=(
            "the same FP32 arithmetic in another order: folded batch norms and other kernels leave 1e-6 to 1e-5, "
            "while a wrong channel order, mean or resize moves probabilities by 1e-2 and more; logits are unbounded, "
            "so theirs grows with them; batches only choose other kernels of the same arithmetic"
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
