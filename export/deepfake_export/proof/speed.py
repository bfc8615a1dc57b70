"""Measures the speed of artifacts side by side: one batch of each in turn, and the median of the rounds' ratios.

So another program on the machine slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from deepfake_export.proof.running import UInt8Array
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.json_data import JsonData

SPEED_ROUNDS, LEAST_ROUNDS = 9, 3
"""Odd: the median is a measured one; in a shared machine the quartiles of a ratio are then within 10%."""
LONG_S = 3.0
"""Where a batch takes longer, all rounds would take minutes, and a few are as reliable: noise is short."""
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


Timer = Callable[[UInt8Array, int], float]
"""From a batch and a number of repeats to the seconds that it takes, see `LocalEngine.seconds`."""


def measure_speed(
    timers: Mapping[str, Timer], crops: UInt8Array, batch_sizes: Sequence[int]
) -> tuple[dict[str, Speed], dict[str, str]]:
    """Measure artifacts, by name and ``fp32`` among them; crops are repeated where a batch is larger.

    Returns:
        The speeds, and why other artifacts have none: their engines failed on the way.
    """
    failures: dict[str, str] = {}
    by_size = {
        str(size): _rounds(timers, np.resize(crops, (size, *crops.shape[1:])), failures) for size in batch_sizes
    }
    if "fp32" in failures:
        raise ExportError(failures["fp32"])
    speeds = {}
    for name in timers.keys() - failures.keys():
        latency_ms = {size: round(median(row[name] for row in rows) * 1000, 3) for size, rows in by_size.items()}
        crops_per_s = {size: round(int(size) / value * 1000, 1) for size, value in latency_ms.items()}
        ratio = {size: median(row["fp32"] / row[name] for row in rows) for size, rows in by_size.items()}
        speeds[name] = Speed(latency_ms, crops_per_s, {size: round(value, 3) for size, value in ratio.items()})
    return speeds, failures


def _rounds(timers: Mapping[str, Timer], batch: UInt8Array, failures: dict[str, str]) -> list[dict[str, float]]:
    """Return for each round the seconds that a batch took, by name; what fails is added to `failures`."""
    repeats = dict.fromkeys(timers, 1)

    def once() -> dict[str, float]:
        row = {}
        for name in timers.keys() - failures.keys():
            try:
                row[name] = timers[name](batch, repeats[name])
            except ExportError as exc:
                failures[name] = str(exc)
        return row

    once()  # allocates
    row = once()
    repeats |= {name: max(1, round(MIN_ROUND_S / max(took, 1e-6))) for name, took in row.items()}
    is_long = sum(row.values()) > LONG_S
    return [once() for _ in range(LEAST_ROUNDS if is_long else SPEED_ROUNDS)]
