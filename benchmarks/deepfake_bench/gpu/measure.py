"""Verifies and times a network in every engine: nothing is timed whose scores are not those of float32 PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from deepfake_bench.gpu.engines import Engine, EngineKind, Subject
from deepfake_bench.gpu.roofline import Ceilings, bound_s
from deepfake_bench.machine.stopwatch import measure
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import batches_of, generate_crops
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS, TOLERANCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, ParityError

if TYPE_CHECKING:
    from torch import nn

LIMITS = {
    "fp32": PLAN_PROBABILITY_ABS["fp32"],  # the same arithmetic with other kernels
    "tf32": TOLERANCES["fp16"].probability_abs,  # factors of eleven bits, as half has them
    "fp16": TOLERANCES["fp16"].probability_abs,
}
"""By precision, how far a probability may be from float32 PyTorch's. A verdict can then change only for crops that
are nearer to the threshold than this; how many do is in the results."""
VERIFIED_CROPS = 32
"""Different crops; larger batches repeat them. Float32 on a CPU takes its time."""
REFERENCE_BATCH = 8


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """One engine at one batch size.

    Attributes:
        batch: crops in it.
        median_ms: of the wall time of one execution; `q1_ms` and `q3_ms` are the quartiles.
        runs: executions that were timed.
        crops_per_s: at the median.
        largest_probability_difference: from float32 PyTorch on the same crops.
        verdict_flips: crops that fall on the other side of the threshold.
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
    roofline_crops_per_s: float | None
    share_of_roofline: float | None


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """One engine on one network.

    Attributes:
        batches: what was measured; empty where the engine does not run here.
        reason: why it, or the rest of the batches, was not measured; empty where all were.
        differs: whether the reason is that its scores are others.
    """

    engine: str
    precision: str
    batches: tuple[BatchSpeed, ...]
    reason: str = ""
    differs: bool = False


def make_subject(spec: ModelSpec, network: nn.Module, folder: Path, max_batch_size: int) -> Subject:
    """Return what engines run and must answer.

    Args:
        spec: contract of the network.
        network: in eval mode, float32, on the CPU.
        folder: for files of engines.
        max_batch_size: the largest batch that is measured.
    """
    detector = ServedDetector(network, spec).eval()
    crops = generate_crops(min(VERIFIED_CROPS, max_batch_size), spec.input_size_wh)
    with torch.inference_mode():
        scores = [detector(torch.from_numpy(part))[0][:, 0].numpy() for part in batches_of(crops, REFERENCE_BATCH)]
    return Subject(spec, detector, crops, np.concatenate(scores), folder, max_batch_size)


def measure_engine(
    name: str,
    kind: EngineKind,
    subject: Subject,
    sizes: Sequence[int],
    *,
    device: str,
    seconds: float,
    ceilings: Ceilings | None,
) -> EngineSpeed:
    """Verify and time one engine at ascending batch sizes; what stops it is a part of the result."""
    measured: list[BatchSpeed] = []
    reason, differs = "", False
    try:
        with closing(kind.make(subject, kind.precision, device)) as engine:
            for size in sizes:
                difference, flips = _verify(engine, subject, size, LIMITS[kind.precision])
                took = measure(engine.run, seconds=seconds)
                took_s = took.median_ms / 1_000
                bound = None if ceilings is None else bound_s(subject.operations(size), kind.precision, ceilings)
                measured.append(
                    BatchSpeed(
                        batch=size,
                        **asdict(took),
                        crops_per_s=round(size / took_s, 1),
                        largest_probability_difference=difference,
                        verdict_flips=flips,
                        roofline_crops_per_s=None if bound is None else round(size / bound, 1),
                        share_of_roofline=None if bound is None else round(bound / took_s, 4),
                    )
                )
    except ParityError as exc:
        reason, differs = str(exc), True
    # Each library has errors of its own, of memory above all, and the other engines must still be measured.
    except Exception as exc:
        reason = _reason(exc)
        if measured:
            reason = f"batches above {measured[-1].batch} were not measured: {reason}"
    return EngineSpeed(name, kind.precision, tuple(measured), reason, differs)


def _verify(engine: Engine, subject: Subject, size: int, limit: float) -> tuple[float, int]:
    """Return the largest difference from float32 PyTorch, and how many verdicts flip.

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


def _reason(exc: Exception) -> str:
    if isinstance(exc, DeepfakeError):
        return str(exc)
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0][:300]}" if lines else type(exc).__name__
