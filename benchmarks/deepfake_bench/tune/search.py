"""The search: which settings there are, and in which order they are tried.

Coordinate descent with a race: settings that differ from the best one in one respect are tried against the rate that
the best one holds, and most fail at once, for the price of one replay. Knows no server and no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from deepfake_preprocess.contract.forms import ENGINE_NAMES, ServedForm
from deepfake_preprocess.contract.triton_config import MIN_INSTANCES, ServingOptions

BATCHES: Final = (1, 2, 4, 8, 16, 32)
MAX_INSTANCES: Final = 16

STEP: Final = 1.05
"""A setting must hold this many times the best rate to be better: less is noise on most machines."""
CLIMB: Final = 1.25
CLOSE: Final = 1.07
"""A rate is known when one that fails is no more than this many times higher."""
MAX_PROBES: Final = 8


def described(setting: ServingOptions) -> str:
    """Return a setting for people."""
    return (
        f"{ENGINE_NAMES[setting.engine]} in {setting.precision.upper()}, {setting.instances} x {setting.threads} "
        f"(instances x threads), batches to {setting.max_batch_size}"
    )


def divisions(cores: int) -> list[tuple[int, int]]:
    """Return instances, two at least, and threads worth trying: as many threads as cores, and one instance more.

    The one more computes while another's batch is gathered or handed back.
    """
    threads = sorted({*(2**power for power in range(int(math.log2(cores)) + 1)), cores})
    found = ((cores // each + more, each) for each in threads for more in (0, 1))
    return [(instances, each) for instances, each in found if MIN_INSTANCES <= instances <= MAX_INSTANCES]


def neighbors(
    setting: ServingOptions, *, cores: int, largest_batch: int, forms: Sequence[ServedForm]
) -> Iterator[ServingOptions]:
    """Yield the settings that differ in one respect: engine and precision, division of the cores, largest batch."""
    changes: list[dict[str, Any]] = [
        *({"engine": form.engine, "precision": form.precision} for form in forms),
        *({"instances": instances, "threads": threads} for instances, threads in divisions(cores)),
        # A preference above the largest batch would never be met.
        *({"max_batch_size": size, "preferred_batch_size": None} for size in BATCHES if size <= largest_batch),
    ]
    found = (replace(setting, **change) for change in changes)
    yield from (item for item in found if item != setting)


def search(
    start: ServingOptions,
    around: Callable[[ServingOptions], Iterable[ServingOptions]],
    is_better: Callable[[ServingOptions], bool],
    out_of_time: Callable[[], bool],
) -> ServingOptions:
    """Return the best setting found, of those `around` the start and then around what was better.

    `is_better` tries a setting; True makes it the one that others have to beat. `out_of_time` is asked before each.
    """
    best, tried, settled = start, {start}, False
    while not settled:
        settled = True
        for setting in around(best):
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

    `holds` tries a rate, `start` first; `known` is a lower rate that holds. `out_of_time` is asked before each try.
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
