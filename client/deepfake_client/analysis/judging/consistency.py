"""How far a track's score can be trusted: its confidence interval, and how steady the frames are.

The interval says where the score would be with other frames of the same video. It knows nothing of what the model
gets wrong as a whole.

Scores of neighboring frames resemble each other, so treating them as independent gives intervals that are far too
narrow. Instead the frames are cut into a few consecutive groups, and the score without each group shows how much
the groups disagree (delete-a-group jackknife: H. Kuensch, "The jackknife and the bootstrap for general stationary
observations", Annals of Statistics 1989; groups of unequal weight: Busing, Meijer and van der Leeden, "Delete-m
jackknife for unequal m", Statistics and Computing 1999). With few groups the quantile is Student's. It works for
every rule that makes one score of many, it is deterministic, and it costs seven evaluations of the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, sin, sqrt

import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import Consistency, Interval

NUM_GROUPS = 6
"""Groups of frames. More are longer than the scores' memory less often: with 10 the interval covered less."""


def interval(
    rule: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    confidence: float = 0.95,
) -> Interval:
    """Return the confidence interval of ``rule(probabilities, weights)``; [0, 1] for a single frame.

    `probabilities` are float64 ``[N]`` in order of time; `weights` are above 0; `confidence` is the share of such
    intervals that hold the score of the whole video.
    """
    groups = np.array_split(np.arange(len(probabilities)), min(NUM_GROUPS, len(probabilities)))
    if len(groups) < 2:
        return Interval(0.0, 1.0)
    score, total = rule(probabilities, weights), float(weights.sum())
    share = np.array([float(weights[group].sum()) / total for group in groups])
    # What is left is given the weight of all, for rules that count frames.
    without = np.array(
        [
            rule(np.delete(probabilities, group), np.delete(weights, group) / (1 - own))
            for group, own in zip(groups, share, strict=True)
        ]
    )
    pseudo = (score - (1 - share) * without) / share
    center = len(groups) * score - float(((1 - share) * without).sum())
    variance = float(((pseudo - center) ** 2 / (1 / share - 1)).mean())
    # A face of half the weight says half as much: as many frames as the weights add up to.
    variance *= max(1.0, len(probabilities) / total)
    reach = student_t_quantile((1 + confidence) / 2, len(groups) - 1) * sqrt(variance)
    return Interval(max(0.0, score - reach), min(1.0, score + reach))


def consistency(
    probabilities: NDArray[np.float64], weights: NDArray[np.float64], *, fake: bool, threshold: float
) -> Consistency:
    """Return how steady the scores of a track on the `fake` side are; arrays as in `interval`."""
    above = probabilities >= threshold
    longest = run = 0
    for flag in above:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    variance = np.average((probabilities - np.average(probabilities, weights=weights)) ** 2, weights=weights)
    return Consistency(float(np.average(above == fake, weights=weights)), float(variance), longest)


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the value below which Student's t lies with a probability in [0.5, 1).

    By bisection of the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, pi / 2
    while True:
        angle = (low + high) / 2
        if angle in (low, high):
            return sqrt(degrees) * sin(angle) / cos(angle)
        if (1 + _within(angle, degrees)) / 2 < probability:
            low = angle
        else:
            high = angle


def _within(angle: float, degrees: int) -> float:
    """Return the probability that Student's t lies within plus or minus ``sqrt(degrees) * tan(angle)``."""
    odd = degrees % 2
    term, total = 1.0, 0.0
    for step in range(degrees // 2):
        total += term
        term *= cos(angle) ** 2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    if odd:
        return 2 / pi * (angle + sin(angle) * cos(angle) * total)
    return sin(angle) * total
