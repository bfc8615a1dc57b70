"""The search of `deepfake bench tune`: which settings there are, and in which order they are tried.

Coordinate descent with a race: settings that differ from the best one in one respect are tried against the rate that
the best one holds, and most fail at once, for the price of one replay. Knows no server and no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from deepfake_preprocess.contract.triton_config import ServingOptions

BATCHES: Final = (1, 2, 4, 8, 16, 32)
DELAYS_US: Final = (0, 500, 1_000, 2_000, 5_000)
MAX_INSTANCES: Final = 16

STEP: Final = 1.05
"""A setting must hold this many times the best rate to be better: less is noise on most machines."""
CLIMB: Final = 1.25
CLOSE: Final = 1.07
"""A rate is known when one that fails is no more than this many times higher."""
MAX_PROBES: Final = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to serve the model: a version of it, which fixes the precision, and how it is batched and run."""

    version: int
    options: ServingOptions

    def __str__(self) -> str:
        options = self.options
        preferred = "" if options.preferred_batch_size is None else f" preferring {options.preferred_batch_size}"
        return (
            f"{options.instances} x {options.threads}, batches to {options.max_batch_size}{preferred}, "
            f"delay {options.queue_delay_us} us, version {self.version}"
        )


def divisions(cores: int) -> list[tuple[int, int]]:
    """Return instances and threads worth trying: as many threads as cores, and one instance more.

    The one more computes while another's batch is gathered or handed back.
    """
    threads = sorted({*(2**power for power in range(int(math.log2(cores)) + 1)), cores})
    found = ((cores // each + more, each) for each in threads for more in (0, 1))
    return [(instances, each) for instances, each in found if instances <= MAX_INSTANCES]


def respects(
    setting: Setting, *, cores: int, largest_batch: int, versions: Sequence[int]
) -> Iterator[tuple[str, list[Setting]]]:
    """Yield each respect in which a setting can differ, with the settings that differ from it in that one."""
    options = setting.options

    def changed(**changes: int | None) -> Setting:
        wanted = {"max_batch_size": options.max_batch_size, "preferred": options.preferred_batch_size} | changes
        largest, preferred = wanted.pop("max_batch_size"), wanted.pop("preferred")
        assert largest is not None
        if preferred is not None and preferred > largest:
            preferred = None
        made = replace(options, max_batch_size=largest, preferred_batch_size=preferred)
        return replace(setting, options=replace(made, **wanted))  # type: ignore[arg-type]

    sizes = [size for size in BATCHES if size <= largest_batch]
    found = {
        "precision": [replace(setting, version=version) for version in versions],
        "division": [changed(instances=instances, threads=threads) for instances, threads in divisions(cores)],
        "largest batch": [changed(max_batch_size=size) for size in sizes],
        "preferred batch": [
            changed(preferred=size) for size in (None, *sizes) if size is None or size <= options.max_batch_size
        ],
        "queue delay": [changed(queue_delay_us=delay) for delay in DELAYS_US],
    }
    for name, settings in found.items():
        yield name, [item for item in settings if item != setting]


def search(
    start: Setting,
    around: Callable[[Setting], Iterator[tuple[str, list[Setting]]]],
    is_better: Callable[[Setting], bool],
    out_of_time: Callable[[], bool],
) -> Setting:
    """Return the best setting found.

    Args:
        start: measured already.
        around: see `respects`.
        is_better: tries a setting; True makes it the one that others have to beat.
        out_of_time: asked before each try.
    """
    best, tried, settled = start, {start}, False
    while not settled:
        settled = True
        for _, settings in around(best):
            for setting in settings:
                if setting in tried:
                    continue
                if out_of_time():
                    return best
                tried.add(setting)
                if is_better(setting):
                    best, settled = setting, False
    return best


def highest_rate(
    holds: Callable[[float], bool],
    start: float,
    *,
    known: float | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the highest rate that holds, to within `CLOSE`; None where none did.

    Args:
        holds: tries a rate.
        start: tried first.
        known: a lower rate that holds.
        out_of_time: asked before each try.
    """
    low, high, rate = known, math.inf, start
    for _ in range(MAX_PROBES):
        if out_of_time():
            break
        if holds(rate):
            low = rate
        else:
            high = rate
        if low is None:
            rate = high / CLIMB**2
        elif high / low <= CLOSE:
            break
        else:
            rate = min(low * CLIMB, math.sqrt(low * high))
    return low
