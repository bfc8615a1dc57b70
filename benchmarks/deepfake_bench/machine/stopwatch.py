"""How long one call takes: warmed up, repeated, and reported with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_RUNS = 3
"""The first allocates and picks kernels, the second records a CUDA graph, the third replays it."""
WARM_UP_SHARE = 0.3
"""Warm-up, as a share of the measured time: what a GPU takes to raise its clocks."""
LEAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class WallTime:
    """Quartiles of the wall time of one call, over so many runs."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int


def measure(run: Callable[[], object], *, seconds: float) -> WallTime:
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
    return WallTime(round(float(median), 4), round(float(first), 4), round(float(third), 4), len(samples))


def in_turn(
    ways: Mapping[str, Callable[[], object]], rounds: int, announce: Callable[[str], None] = lambda _: None
) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU time of each way in each round; what else the machine does meets all of them."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            announce(f"round {number + 1} of {rounds}, {name}")
            started, busy = time.perf_counter(), time.process_time()
            way()
            taken[name].append((time.perf_counter() - started, time.process_time() - busy))
    return taken


def spread(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return median and smallest of wall and CPU times as plain JSON data."""
    figures = {}
    for kind, values in zip(("wall", "cpu"), zip(*pairs, strict=True), strict=True):
        figures[f"{kind}_s"] = round(statistics.median(values), 4)
        figures[f"{kind}_min_s"] = round(min(values), 4)
    return figures


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Return the median of the ratios of neighboring measurements: what disturbs both cancels out."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))
