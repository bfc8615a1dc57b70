"""Measures the speed of artifacts side by side: one batch of each in turn, and the median of the rounds' ratios.

So another program on the machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from deepfake_export.proof.crops import UInt8Array
from deepfake_export.proof.parity import Runner
from deepfake_preprocess.support.json_data import JsonData

SPEED_ROUNDS = 9
"""Odd: the median is a measured one; in a shared machine the quartiles of a ratio are then within 10%."""
MIN_ROUND_S = 0.05
"""A measurement takes at least about this long, or small networks would be lost in the resolution of the clock."""


@dataclass(frozen=True, slots=True)
class Speed(JsonData):
    """Speed of one artifact by batch size.

    Attributes:
        latency_ms: median time of a batch.
        crops_per_s: the throughput that follows.
        ratio_to_fp32: median over the rounds of FP32's time over this one's; above 1 for faster.
    """

    latency_ms: Mapping[str, float]
    crops_per_s: Mapping[str, float]
    ratio_to_fp32: Mapping[str, float]


def measure_speed(runners: Mapping[str, Runner], crops: UInt8Array, batch_sizes: Sequence[int]) -> dict[str, Speed]:
    """Measure artifacts, by name and ``fp32`` among them; crops are repeated where a batch is larger."""
    by_size = {str(size): _rounds(runners, np.resize(crops, (size, *crops.shape[1:]))) for size in batch_sizes}
    speeds = {}
    for name in runners:
        latency_ms = {size: round(median(row[name] for row in rows) * 1000, 3) for size, rows in by_size.items()}
        crops_per_s = {size: round(int(size) / value * 1000, 1) for size, value in latency_ms.items()}
        ratio = {size: median(row["fp32"] / row[name] for row in rows) for size, rows in by_size.items()}
        speeds[name] = Speed(latency_ms, crops_per_s, {size: round(value, 3) for size, value in ratio.items()})
    return speeds


def _rounds(runners: Mapping[str, Runner], batch: UInt8Array) -> list[dict[str, float]]:
    """Return for each round the seconds that a batch took, by name."""
    repeats = {}
    for name, run in runners.items():
        run(batch)  # allocates
        repeats[name] = max(1, round(MIN_ROUND_S / max(_time(run, batch, 1), 1e-6)))
    return [{name: _time(run, batch, repeats[name]) for name, run in runners.items()} for _ in range(SPEED_ROUNDS)]


def _time(run: Runner, batch: UInt8Array, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(batch)
    return (time.perf_counter() - start) / repeats
