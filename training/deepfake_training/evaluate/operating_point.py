"""The threshold for a wanted share of false alarms, from few clips, and what it promises.

Clips that come later are taken to be like those measured. Then, of n scores of real clips, the threshold just above
the (c+1)-th highest is exceeded by a further one with the probability (c+1)/(n+1), whatever the distribution of the
scores: the split conformal quantile (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005;
Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021). That holds on average over draws of
n clips; how far the rate of one draw can lie from it is said by the exact interval of Clopper and Pearson (1934),
and how many clips would make a rate sure by Wilks, "Determination of sample sizes for setting tolerance limits"
(1941).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log

import numpy as np

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.evaluate.calibration import THRESHOLDS
from deepfake_training.evaluate.metrics import Estimate, Float, Int, share_of

MOST_UNDECIDED = 0.25
"""Share of the real clips, and of the fake ones, that may be left open: more "don't know" is no answer."""
CONFIDENCE = 0.95
_GAP = 0.005
"""How far above a real score the threshold lies at most: scores differ a little between precisions."""


@dataclass(frozen=True, slots=True)
class OperatingPoint(JsonData):
    """A threshold, and what it does to the clips that it was found on.

    Attributes:
        threshold: FAKE at or above it.
        undecided_from: scores from here to the threshold are left open.
        false_positive_rate: share of real clips called fake that was asked for.
        expected_rate: share of further real clips that is called fake, on average.
        real_called_fake: share of these real clips, with its exact 95% interval.
        fake_found: share of these fake clips that is called fake, likewise; its value is None without any.
        fake_called_real: share of the fake clips below `undecided_from`, likewise.
        real_undecided: share of the real clips that is left open.
        fake_undecided: likewise of the fake clips.
        clips_needed: real clips from which on the rate can be had on average.
        clips_to_be_sure: real clips from which on the rate can be had with 95% confidence.
    """

    threshold: float
    undecided_from: float
    false_positive_rate: float
    expected_rate: float
    real_called_fake: Estimate
    fake_found: Estimate
    fake_called_real: Estimate
    real_undecided: Estimate
    fake_undecided: Estimate
    clips_needed: int
    clips_to_be_sure: int


def find_operating_point(labels: Int, scores: Float, rate: float) -> OperatingPoint:
    """Return the lowest threshold at which a further real clip is called fake with at most this probability.

    Scores below it are left open down to where as small a share of the fakes is missed; or, without enough fakes, to
    where twice the rate of the real clips would lie above; but never more than `MOST_UNDECIDED` of either.

    Args:
        labels: ``[N]``, 1 for fake.
        scores: ``[N]`` in [0, 1], one for each clip.
        rate: wanted share of real clips that are called fake, in (0, 1).

    Raises:
        OptionError: the rate is not in (0, 1), there are too few real clips for it, or their scores are too high.
    """
    if not 0 < rate < 1:
        raise OptionError(f"`false_alarms` is {rate!r}; allowed: a share strictly between 0 and 1, as 0.05 for 5%")
    reals, fakes = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    needed = clips_needed(rate)
    if len(reals) < needed:
        raise OptionError(
            f"{len(reals)} real clips with a face are too few for a share of false alarms of {rate:g}: at least "
            f"{needed} are needed; add {needed - len(reals)}, or allow more with `false_alarms` (from "
            f"{1 / (len(reals) + 1):.2g})"
        )
    allowed = num_allowed(len(reals), rate)
    threshold = _above(reals[len(reals) - allowed - 1], scores)
    if threshold > THRESHOLDS[1]:
        raise OptionError(
            f"these real clips score up to {reals[-1]:.4f}, so a share of false alarms of {rate:g} cannot be had "
            "from this detector; look at the highest ones, allow more with `false_alarms`, or train it on such clips"
        )
    threshold = max(threshold, THRESHOLDS[0])
    start = floor(_undecided_from(reals, fakes, threshold, rate) * 1e4) / 1e4
    start = threshold if start > threshold - _GAP else start  # next to nothing is no band
    return OperatingPoint(
        threshold=threshold,
        undecided_from=start,
        false_positive_rate=rate,
        expected_rate=(int((reals >= threshold).sum()) + 1) / (len(reals) + 1),
        real_called_fake=share_of(reals >= threshold),
        fake_found=share_of(fakes >= threshold),
        fake_called_real=share_of(fakes < start),
        real_undecided=share_of((reals >= start) & (reals < threshold)),
        fake_undecided=share_of((fakes >= start) & (fakes < threshold)),
        clips_needed=needed,
        clips_to_be_sure=ceil(log(1 - CONFIDENCE) / log(1 - rate)),
    )


def clips_needed(rate: float) -> int:
    """Return from how many clips on a share can be had on average: n with 1 / (n + 1) at most the rate."""
    return ceil(1 / rate - 1 - 1e-9)


def num_allowed(count: int, rate: float) -> int:
    """Return how many of `count` scores may lie beyond a limit which a further one exceeds at most at this rate."""
    return min(floor(rate * (count + 1) + 1e-9), count) - 1


def _undecided_from(reals: Float, fakes: Float, threshold: float, rate: float) -> float:
    if len(fakes) >= clips_needed(rate):
        start = float(fakes[num_allowed(len(fakes), rate)])
    else:
        allowed = num_allowed(len(reals), min(2 * rate, 0.99))
        start = min(threshold, _above(reals[len(reals) - allowed - 1], np.concatenate([reals, fakes])))
    # From the widest band on, until few enough clips lie in it.
    inside = [float(score) for score in np.sort(np.concatenate([reals, fakes])) if start <= score < threshold]
    for low in [start, *inside]:
        shares = [float(((group >= low) & (group < threshold)).mean()) for group in (reals, fakes) if len(group)]
        if max(shares) <= MOST_UNDECIDED:
            return min(low, threshold)
    return threshold


def _above(score: float, scores: Float) -> float:
    """Return a threshold just above a score and not above the next higher one."""
    higher = scores[scores > score]
    following = float(higher.min()) if len(higher) else 1.0
    found = min(float(score) + _GAP, (float(score) + following) / 2)
    short = round(found, 4)
    return short if score < short <= following else found
