"""Verifies and times one engine: nothing is timed whose scores are not those of float32 PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from deepfake_bench.machine.stopwatch import Timing, measure
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS, TOLERANCES
from deepfake_preprocess.errors import DeepfakeError, ParityError

if TYPE_CHECKING:
    from deepfake_bench.gpu.engines import Engine, EngineKind, Subject
    from deepfake_bench.gpu.roofline import Ceilings, Operation

    Work = Mapping[int, list[Operation]]
    """What the network does, by batch size."""

LIMITS = {
    "fp32": PLAN_PROBABILITY_ABS["fp32"],  # the same arithmetic with other kernels
    "tf32": TOLERANCES["fp16"].probability_abs,  # factors of eleven bits, as half has them
    "fp16": TOLERANCES["fp16"].probability_abs,
}
"""By precision, how far a probability may be from float32 PyTorch's. A verdict can then change only for crops that
are nearer to the threshold than this; how many do is in the results."""

NOT_MEASURED, MEASURED, DIFFERS = "not measured", "measured", "scores differ"


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine at one batch size.

    Attributes:
        batch: crops in it.
        median_ms: of the wall time of one execution; `q1_ms` and `q3_ms` are the quartiles.
        runs: executions that were timed.
        crops_per_s: at the median.
        largest_probability_difference: from float32 PyTorch on the same crops.
        verdict_flips: crops that fall on the other side of the threshold.
        tflops_per_s: floating-point operations of the network at that speed, in 10^12 per second.
        roofline_crops_per_s: what the roofline allows; None where its ceiling was not measured.
        share_of_roofline: `crops_per_s` over that.
    """

    batch: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int
    crops_per_s: float
    largest_probability_difference: float
    verdict_flips: int
    tflops_per_s: float
    roofline_crops_per_s: float | None
    share_of_roofline: float | None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One engine on one network.

    Attributes:
        status: ``measured``, ``not measured`` or ``scores differ``.
        reason: why it, or the rest of the batches, was not measured; empty where all were.
    """

    engine: str
    precision: str
    status: str
    reason: str
    batches: tuple[Batch, ...]


def measure_engine(
    name: str,
    kind: EngineKind,
    subject: Subject,
    work: Work,
    device: str,
    seconds: float,
    ceilings: Ceilings | None,
) -> EngineResult:
    """Verify and time one engine at the batch sizes of `work`; what stops it is told in the result."""
    measured: list[Batch] = []
    status, reason = MEASURED, ""
    try:
        with closing(kind.make(subject, kind.precision, device)) as engine:
            for size, operations in work.items():
                difference, flips = _verify(engine, subject, size, LIMITS[kind.precision])
                timing = measure(engine.run, seconds=seconds)
                measured.append(_batch(size, timing, difference, flips, operations, kind.precision, ceilings))
    except ParityError as exc:
        status, reason = DIFFERS, str(exc)
    # Each library has errors of its own, of memory above all, and the other engines must still be measured.
    except Exception as exc:
        status, reason = (MEASURED if measured else NOT_MEASURED), _reason(exc)
        if measured:
            reason = f"batches above {measured[-1].batch} were not measured: {reason}"
    return EngineResult(name, kind.precision, status, reason, tuple(measured))


def _verify(engine: Engine, subject: Subject, size: int, limit: float) -> tuple[float, int]:
    """Put a batch on the device, run it, and return the largest difference of probability and the changed verdicts.

    Raises:
        ParityError: the difference is above the limit.
    """
    engine.bind(np.resize(subject.crops, (size, *subject.crops.shape[1:])))
    engine.run()
    expected, found = np.resize(subject.reference, size), engine.probabilities()
    difference = float(np.abs(found - expected).max())
    if not difference <= limit:
        raise ParityError(
            f"at batch {size} a probability differs from float32 PyTorch's by {difference:.3g} (limit {limit:g}); "
            "this and larger batches were not timed"
        )
    threshold = subject.spec.threshold
    return difference, int(((found >= threshold) != (expected >= threshold)).sum())


def _batch(
    size: int,
    timing: Timing,
    difference: float,
    flips: int,
    operations: list[Operation],
    precision: str,
    ceilings: Ceilings | None,
) -> Batch:
    from deepfake_bench.gpu.roofline import bound_s

    took_s = timing.median_ms / 1_000
    bound = None if ceilings is None else bound_s(operations, precision, ceilings)
    return Batch(
        batch=size,
        **asdict(timing),
        crops_per_s=round(size / took_s, 1),
        largest_probability_difference=difference,
        verdict_flips=flips,
        tflops_per_s=float(f"{sum(item.flops for item in operations) / took_s / 1e12:.4g}"),
        roofline_crops_per_s=None if bound is None else round(size / bound, 1),
        share_of_roofline=None if bound is None else round(bound / took_s, 4),
    )


def _reason(exc: Exception) -> str:
    if isinstance(exc, DeepfakeError):
        return str(exc)
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0][:300]}" if lines else type(exc).__name__
