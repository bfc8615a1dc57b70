"""The promotion gate: which of the measured artifacts is served, and why.

An artifact is promoted when it keeps the verdicts and is at least as fast as FP32, measured side by side in one run.
What fails falls back, INT8 -> BF16 -> FP16 -> FP32; FP32 in ONNX Runtime is the checkpoint itself and always there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deepfake_preprocess.contract.forms import ENGINE_NAMES
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.engines import ONNX_RUNTIME
from deepfake_preprocess.support.json_data import JsonData

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
FALLBACK = ("int8", "bf16", "fp16", "fp32")
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
        engine: that runs it.
    """

    precision: str
    problems: tuple[str, ...]
    speed_ratio: Mapping[str, float]
    engine: str = ONNX_RUNTIME

    @property
    def name(self) -> str:
        """The precision, and the engine where it is not ONNX Runtime: ``int8``, ``int8 openvino``."""
        return self.precision if self.engine == ONNX_RUNTIME else f"{self.precision} {self.engine}"

    @property
    def slower(self) -> str:
        """Where it is slower than FP32, as a clause; empty when nowhere."""
        slow = [f"{ratio:.2f}x at batch {size}" for size, ratio in self.speed_ratio.items() if not ratio >= 1]
        return f"slower than FP32 ({', '.join(slow)})" if slow else ""


@dataclass(frozen=True, slots=True)
class Promotion(JsonData):
    """What is served.

    Attributes:
        promoted: precision that goes into the repository.
        requested: ``best`` or the precision asked for.
        reason: why, in a sentence without a full stop.
        rejected: the others' reasons, by `Entrant.name`.
        engine: that runs what is promoted.
    """

    promoted: str
    requested: str
    reason: str
    rejected: Mapping[str, str]
    engine: str = ONNX_RUNTIME


def check_precisions(named: Collection[str]) -> tuple[str, ...]:
    """Return the precisions (else `OptionError`) in order, FP32, the measure of the others, always among them."""
    unknown = [item for item in named if item not in PRECISIONS]
    if unknown:
        raise OptionError(f"precision {unknown[0]!r} is unknown; allowed: {', '.join(PRECISIONS)}")
    return tuple(item for item in PRECISIONS if item in named or item == "fp32")


def shown(name: str) -> str:
    """Return an `Entrant.name` for people."""
    precision, _, engine = name.partition(" ")
    return f"{precision.upper()} in {ENGINE_NAMES[engine]}" if engine else precision.upper()


def decide(entrants: Collection[Entrant], requested: str) -> Promotion:
    """Choose what is served.

    Args:
        entrants: one per precision and engine, FP32 in ONNX Runtime among them and without problems.
        requested: ``best`` for the fastest that passes. A precision: that one if it is accurate, whatever its speed
            here (another machine may serve it), in its fastest engine; if not, the next in the order of `FALLBACK`
            that passes.
    """
    by_name = {item.name: item for item in entrants}
    rejected: dict[str, str] = {}
    for name, item in by_name.items():
        if item.problems:
            rejected[name] = "; ".join(item.problems)
        elif name != "fp32" and (item.precision != requested or requested == "fp32"):
            if item.slower:
                rejected[name] = item.slower
            elif _speed(item) < MIN_GAIN:
                rejected[name] = f"not clearly faster than FP32 ({_speed(item):.2f}x)"
    passing = [item for name, item in by_name.items() if name not in rejected]
    if requested == BEST:
        # Of equals the one that promises most.
        chosen = max(passing, key=lambda item: (_speed(item), -FALLBACK.index(item.precision)))
        why = f"slower than {shown(chosen.name)}"
    else:
        allowed = FALLBACK[FALLBACK.index(requested) :]
        precision = next(name for name in allowed if name in {item.precision for item in passing})
        chosen = max((item for item in passing if item.precision == precision), key=_speed)
        fell_back = f"after {shown(chosen.name)} in the order of fallback"
        why = f"{requested.upper()} was asked for" if precision == requested else fell_back
    for item in passing:
        if item is not chosen:
            slower = item.precision == chosen.precision and f"slower than {shown(chosen.name)}"
            rejected[item.name] = slower or why
    return Promotion(chosen.precision, requested, _reason(chosen, requested, rejected), rejected, chosen.engine)


def _speed(entrant: Entrant) -> float:
    """Return the ratio at the largest batch measured, where a busy server runs; 1 where none was."""
    if not entrant.speed_ratio:
        return 1.0
    return entrant.speed_ratio[max(entrant.speed_ratio, key=int)]


def _reason(chosen: Entrant, requested: str, rejected: Mapping[str, str]) -> str:
    name = shown(chosen.name)
    others = "; ".join(f"{shown(key)}: {why}" for key, why in rejected.items() if key != "fp32")
    if chosen.name == "fp32":
        if not others:
            return "FP32 is the only precision that was asked for"
        if requested == "fp32":
            return f"FP32 was asked for ({others})"
        return f"no other precision passed ({others})"
    ratios = ", ".join(f"{ratio:.2f}x at batch {size}" for size, ratio in chosen.speed_ratio.items())
    why = f"{name} keeps the verdicts and runs at {ratios} of FP32's speed in the same run"
    if requested not in (BEST, chosen.precision):
        of_requested = next(text for key, text in rejected.items() if key.partition(" ")[0] == requested)
        why = f"{requested.upper()} fell back to {name}: {of_requested}. {why}"
    elif others:
        why = f"{why} ({others})"
    return why
