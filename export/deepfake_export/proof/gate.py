"""The promotion gate: which of the measured artifacts is served, and why.

An artifact is promoted when it keeps the verdicts and is at least as fast as FP32, measured side by side in one run.
What fails falls back, INT8 -> FP16 -> FP32; FP32 is the checkpoint itself and always there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import JsonData

PRECISIONS = ("fp32", "fp16", "int8")
FALLBACK = ("int8", "fp16", "fp32")
"""From the precision that promises most to the one that cannot fail."""
BEST = "best"
MIN_GAIN = 1.1
"""Below this a ratio is noise, and then FP32 stays: it is the checkpoint itself. FP16, FP32 inside on a CPU, was
measured at 0.92 to 1.06 on a busy machine."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """What the gate looks at.

    Attributes:
        problems: why it is not accurate enough, or could not be made; empty when it passes.
        speed_ratio: speed against FP32 in the same run by batch size, above 1 for faster; empty where not measured.
    """

    precision: str
    problems: tuple[str, ...]
    speed_ratio: Mapping[str, float]

    @property
    def slower(self) -> str:
        """Where it is slower than FP32, as a clause; empty when nowhere."""
        slow = [f"{ratio:.2f}x at batch {size}" for size, ratio in self.speed_ratio.items() if not ratio >= 1]
        return f"slower than FP32 ({', '.join(slow)})" if slow else ""


@dataclass(frozen=True, slots=True)
class Decision(JsonData):
    """What is served.

    Attributes:
        promoted: precision that goes into the repository.
        requested: ``best`` or the precision asked for.
        reason: why, in a sentence without a full stop.
        rejected: the others' reasons, by precision.
    """

    promoted: str
    requested: str
    reason: str
    rejected: Mapping[str, str]


def check_precisions(named: Collection[str]) -> tuple[str, ...]:
    """Return the precisions (else `OptionError`) in order, FP32, the measure of the others, always among them."""
    unknown = [item for item in named if item not in PRECISIONS]
    if unknown:
        raise OptionError(f"precision {unknown[0]!r} is unknown; allowed: {', '.join(PRECISIONS)}")
    return tuple(item for item in PRECISIONS if item in named or item == "fp32")


def decide(entrants: Collection[Entrant], requested: str) -> Decision:
    """Choose what is served.

    Args:
        entrants: one per precision, FP32 among them and without problems.
        requested: ``best`` for the fastest that passes. A precision: that one if it is accurate, whatever its speed
            here (another machine may serve it); if not, the next in the order of `FALLBACK` that passes.
    """
    by_name = {item.precision: item for item in entrants}
    rejected: dict[str, str] = {}
    for item in entrants:
        if item.problems:
            rejected[item.precision] = "; ".join(item.problems)
        elif item.precision not in ("fp32", requested):
            if item.slower:
                rejected[item.precision] = item.slower
            elif _speed(item) < MIN_GAIN:
                rejected[item.precision] = f"not clearly faster than FP32 ({_speed(item):.2f}x)"
    passing = [name for name in FALLBACK if name in by_name and name not in rejected]
    if requested == BEST:
        promoted = max(passing, key=lambda name: _speed(by_name[name]))
        why = f"slower than {promoted.upper()}"
    else:
        promoted = next(name for name in FALLBACK[FALLBACK.index(requested) :] if name in passing)
        fell_back = f"after {promoted.upper()} in the order of fallback"
        why = f"{requested.upper()} was asked for" if promoted == requested else fell_back
    rejected |= {name: why for name in passing if name != promoted}
    return Decision(promoted, requested, _reason(by_name[promoted], requested, rejected), rejected)


def _speed(entrant: Entrant) -> float:
    """Return the ratio at the largest batch measured, where a busy server runs; 1 where none was."""
    if not entrant.speed_ratio:
        return 1.0
    return entrant.speed_ratio[max(entrant.speed_ratio, key=int)]


def _reason(chosen: Entrant, requested: str, rejected: Mapping[str, str]) -> str:
    name = chosen.precision.upper()
    others = "; ".join(f"{key.upper()}: {why}" for key, why in rejected.items() if key != "fp32")
    if chosen.precision == "fp32":
        if not others:
            return "FP32 is the only precision that was asked for"
        if requested == "fp32":
            return f"FP32 was asked for ({others})"
        return f"no other precision passed ({others})"
    ratios = ", ".join(f"{ratio:.2f}x at batch {size}" for size, ratio in chosen.speed_ratio.items())
    why = f"{name} keeps the verdicts and runs at {ratios} of FP32's speed in the same run"
    if requested not in (BEST, chosen.precision):
        why = f"{requested.upper()} fell back to {name}: {rejected[requested]}. {why}"
    elif others:
        why = f"{why} ({others})"
    return why
