"""Percentiles, and how sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of latencies, in milliseconds; all None when nothing was answered."""

    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, seconds: npt.NDArray[np.float64]) -> Latency:
        """Return the percentiles of float64 ``[N]`` latencies in seconds."""
        if not len(seconds):
            return cls(None, None, None, None, None)
        values = np.quantile(seconds * 1_000, (0.5, 0.9, 0.95, 0.99, 1.0))
        return cls(*(round(float(value), 3) for value in values))


def half_width(samples: Sequence[float]) -> float:
    """Return the half-width of the 95% confidence interval of a mean, from independent samples (batch means).

    Student's t by its expansion in the normal quantile (Abramowitz and Stegun, 26.7.5); infinite below two samples.
    """
    freedom = len(samples) - 1
    if freedom < 1:
        return math.inf
    z = NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * freedom)
    t += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return t * stdev(samples) / math.sqrt(len(samples))


def relative_half_width(samples: Sequence[float]) -> float:
    """Return `half_width` as a share of the mean; infinite when the mean is 0."""
    mean = fmean(samples) if samples else 0.0
    return half_width(samples) / mean if mean else math.inf
