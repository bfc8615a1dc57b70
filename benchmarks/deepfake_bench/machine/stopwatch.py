"""How long one call takes: warmed up, repeated, and told with its spread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WARM_UP_RUNS = 3
"""The first allocates and picks kernels, the second records a CUDA graph, the third replays it."""
WARM_UP_SHARE = 0.3
"""Of the measured time: what a GPU takes to raise its clocks."""
LEAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Quartiles of the wall time of one call.

    Attributes:
        runs: how many were measured.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int


def measure(run: Callable[[], object], *, seconds: float) -> Timing:
    """Call `run`, which must return when its work is done, until `seconds` are over and at least 5 times.

    Wall time, not the device's events: engines that share no stream are so timed by the same clock, and it is what a
    caller waits.
    """
    warm_until = time.perf_counter() + WARM_UP_SHARE * seconds
    runs = 0
    while runs < WARM_UP_RUNS or time.perf_counter() < warm_until:
        run()
        runs += 1
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < LEAST_RUNS or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        run()
        samples.append(time.perf_counter() - before)
    first, median, third = np.quantile(np.array(samples) * 1_000, (0.25, 0.5, 0.75))
    return Timing(round(float(median), 4), round(float(first), 4), round(float(third), 4), len(samples))
