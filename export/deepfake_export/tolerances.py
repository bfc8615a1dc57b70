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
