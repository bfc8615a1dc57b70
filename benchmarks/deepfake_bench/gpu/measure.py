"""Verifies and times a network in every engine: nothing is timed whose scores are not those of float32 PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepfake_bench.gpu.engines import Engine, EngineKind, Subject
from deepfake_bench.gpu.roofline import Ceilings, bound_s
from deepfake_bench.machine.stopwatch import measure
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.parity import REFERENCE_BATCH
from deepfake_export.proof.running import batches_of
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS, TOLERANCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, ParityError

if TYPE_CHECKING:
    from torch import nn

LIMITS = {
    "fp32": PLAN_PROBABILITY_ABS["fp32"],  # the same arithmetic with other kernels
    "tf32": TOLERANCES["fp16"].probability_abs,  # factors of eleven bits, as half has them
    "fp16": TOLERANCES["fp16"].probability_abs,
    "bf16": TOLERANCES["bf16"].probability_abs,
}
"""By precision, how far a probability may be from float32 PyTorch's. A verdict can then change only for crops that
are nearer to the threshold than this; how many do is in the results."""
VERIFIED_CROPS = 32
"""Different crops; larger batches repeat them. Float32 on a CPU takes its time."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """One engine on one network, with plain JSON data of each batch size.

    `crops_per_s` is at the median wall time; difference and flips of verdicts are from float32 PyTorch on the same
    crops. Where the ceiling of its precision was not measured, the roofline is None. `reason` says why the engine, or
    the rest of the batches, was not measured; `differs` says that its scores are others.
    """

    engine: str
    precision: str
    batches: tuple[dict[str, Any], ...]
    reason: str = ""
    differs: bool = False


def make_subject(spec: ModelSpec, network: nn.Module, folder: Path, max_batch_size: int) -> Subject:
    """Return what engines run and must answer; `network` is in eval mode, float32, on the CPU."""
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
    until: float = math.inf,
) -> EngineSpeed:
    """Verify and time one engine at ascending batch sizes; what stops it is a part of the result.

    After `until`, of `time.monotonic`, no further batch is begun.
    """
    measured: list[dict[str, Any]] = []
    reason, differs = "", False
    try:
        with closing(kind.make(subject, kind.precision, device)) as engine:
            for size in sizes:
                if time.monotonic() > until:
                    reason = _unfinished(measured, "the time was up")
                    break
                difference, flips = _verify(engine, subject, size, LIMITS[kind.precision])
                took = measure(engine.run, seconds=seconds)
                took_s = took.median_ms / 1_000
                bound = None if ceilings is None else bound_s(subject.operations(size), kind.precision, ceilings)
                measured.append(
                    {
                        "batch": size,
                        **asdict(took),
                        "crops_per_s": round(size / took_s, 1),
                        "largest_probability_difference": difference,
                        "verdict_flips": flips,
                        "roofline_crops_per_s": None if bound is None else round(size / bound, 1),
                        "share_of_roofline": None if bound is None else round(bound / took_s, 4),
                    }
                )
    except ParityError as exc:
        reason, differs = str(exc), True
    # Each library has errors of its own, of memory above all, and the other engines must still be measured.
    except Exception as exc:
        reason = _unfinished(measured, _reason(exc))
    return EngineSpeed(name, kind.precision, tuple(measured), reason, differs)


def _unfinished(measured: Sequence[dict[str, Any]], reason: str) -> str:
    return f"batches above {measured[-1]['batch']} were not measured: {reason}" if measured else reason


def _verify(engine: Engine, subject: Subject, size: int, limit: float) -> tuple[float, int]:
    """Return the largest difference from float32 PyTorch and how many verdicts flip; an error above the limit."""
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
