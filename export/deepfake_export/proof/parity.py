"""The proof that an artifact gives the checkpoint's verdicts: both see the same crops, and the figures are compared.

The reference is always `ServedDetector` in float32 PyTorch. An artifact is anything that maps a batch of crops to
(probability, logit), so that ONNX Runtime, a TensorRT engine and a running server are measured by the same code.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import UInt8Array, batches_of
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME
from deepfake_preprocess.errors import ParityError
from deepfake_preprocess.support.sessions import open_session

Float32Array = npt.NDArray[np.float32]
Runner = Callable[[UInt8Array], tuple[Float32Array, Float32Array]]
"""From uint8 ``[N, H, W, 3]`` RGB to probability and logit, each float32 ``[N, 1]``."""

REFERENCE_BATCH = 8
"""Batch size of the reference; it only bounds memory."""

WEAK_SPREAD = 1e-3
"""A reference whose logits differ by less between crops hardly depends on them, and then parity proves little."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Absolute difference between artifact and reference.

    Attributes:
        max_abs: largest over all crops and batch sizes.
        mean_abs: mean over all crops and batch sizes.
        limit: what `max_abs` may be.
    """

    max_abs: float
    mean_abs: float
    limit: float


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Figures of one artifact against the checkpoint in float32 PyTorch.

    Attributes:
        artifact: what was measured, for people.
        precision: key of the table of tolerances.
        crops: where the crops came from, for people.
        num_crops: how many.
        batch_sizes: batch sizes that all crops were run at.
        probability: difference of `fake_probability`.
        logit: difference of `logit`.
        batch_dependence: largest difference of one crop's probability between batch sizes.
        batch_dependence_limit: what that may be.
        verdict_flips: crops whose verdict at the threshold changed.
        verdict_flips_near_threshold: those of them so near to the threshold that either verdict is right.
        threshold: decision threshold of the spec.
        reference_logit_range: smallest and largest reference logit.
        size_bytes: size of the artifact.
        latency_ms: median time of a batch on this machine, by batch size; for orientation, not a benchmark.
        reason: why the limits are what they are.
    """

    artifact: str
    precision: str
    crops: str
    num_crops: int
    batch_sizes: tuple[int, ...]
    probability: Difference
    logit: Difference
    batch_dependence: float
    batch_dependence_limit: float
    verdict_flips: int
    verdict_flips_near_threshold: int
    threshold: float
    reference_logit_range: tuple[float, float]
    size_bytes: int
    latency_ms: Mapping[str, float]
    reason: str

    @property
    def problems(self) -> list[str]:
        """What is beyond tolerance, as clauses with the figure and its limit; empty when the artifact passes."""
        found = [
            f"{name} differs by up to {figure:.3g} (limit {limit:.3g})"
            for name, figure, limit in (
                (PROBABILITY_NAME, self.probability.max_abs, self.probability.limit),
                (LOGIT_NAME, self.logit.max_abs, self.logit.limit),
                ("one crop's probability in different batches", self.batch_dependence, self.batch_dependence_limit),
            )
            # Written so that NaN, which compares as neither, is a problem.
            if not figure <= limit
        ]
        tolerance = TOLERANCES[self.precision]
        if not self.probability.mean_abs <= tolerance.probability_mean_abs:
            found.append(
                f"{PROBABILITY_NAME} differs by {self.probability.mean_abs:.3g} on average "
                f"(limit {tolerance.probability_mean_abs:.3g})"
            )
        exempt = self.verdict_flips_near_threshold if tolerance.flip_share is None else 0
        allowed = tolerance.allowed_flips(self.num_crops)
        if self.verdict_flips - exempt > allowed:
            found.append(f"{self.verdict_flips - exempt} of {self.num_crops} verdicts change (limit {allowed})")
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the proof itself."""
        low, high = self.reference_logit_range
        if high - low < WEAK_SPREAD:
            return [f"the reference gives almost the same logit for every crop ({low:.4g} to {high:.4g}): weak proof"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data that `from_dict` reads back."""
        data = {**dataclasses.asdict(self), "passed": not self.problems, "notes": self.notes}
        # Through JSON, so that what is kept in memory equals what is read back (lists, not tuples).
        return dict(json.loads(json.dumps(data)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParityReport:
        """Read a report back from `to_dict`.

        Raises:
            KeyError: a figure is missing.
        """
        values = {item.name: data[item.name] for item in dataclasses.fields(cls)}
        for key in ("probability", "logit"):
            values[key] = Difference(**values[key])
        for key in ("batch_sizes", "reference_logit_range"):
            values[key] = tuple(values[key])
        return cls(**values)

    def to_markdown(self) -> str:
        """Return the report as a short Markdown page."""
        low, high = self.reference_logit_range
        tolerance = TOLERANCES[self.precision]
        latency = ", ".join(f"{value:.1f} ms at batch {size}" for size, value in self.latency_ms.items())
        rows = [
            (f"`{PROBABILITY_NAME}`, largest difference", f"{self.probability.max_abs:.2e}", self.probability.limit),
            (
                f"`{PROBABILITY_NAME}`, mean difference",
                f"{self.probability.mean_abs:.2e}",
                tolerance.probability_mean_abs,
            ),
            (f"`{LOGIT_NAME}`, largest difference", f"{self.logit.max_abs:.2e}", self.logit.limit),
            (f"`{LOGIT_NAME}`, mean difference", f"{self.logit.mean_abs:.2e}", None),
            ("same crop in different batches", f"{self.batch_dependence:.2e}", self.batch_dependence_limit),
        ]
        lines = [
            f"# Parity of {self.artifact}",
            "",
            f"{'Within' if not self.problems else 'BEYOND'} tolerance of the checkpoint in float32 PyTorch.",
            "",
            "| What | Figure | Limit |",
            "|---|---|---|",
            *(f"| {name} | {figure} | {'' if limit is None else f'{limit:.2e}'} |" for name, figure, limit in rows),
            f"| verdict flips at {self.threshold:g} (of these, within the limit of the threshold) "
            f"| {self.verdict_flips} ({self.verdict_flips_near_threshold}) | "
            f"{tolerance.allowed_flips(self.num_crops)}{' (any)' if tolerance.flip_share is None else ''} |",
            "",
            f"- Crops: {self.num_crops}, {self.crops}, each at batch {', '.join(map(str, self.batch_sizes))}.",
            f"- Reference logits: {low:.3f} to {high:.3f}.",
            f"- Size: {self.size_bytes / 1e6:.1f} MB. On the exporting machine: {latency}.",
            f"- Why these limits: {self.reason}.",
            *(f"- Note: {note}." for note in self.notes),
        ]
        return "\n".join(lines) + "\n"


def measure_parity(
    detector: ServedDetector,
    artifact: Runner,
    crops: UInt8Array,
    *,
    name: str,
    precision: str,
    threshold: float,
    max_batch_size: int,
    crops_source: str,
    size_bytes: int,
    reference: tuple[Float32Array, Float32Array] | None = None,
) -> ParityReport:
    """Run reference and artifact on the same crops at batch 1, 3 and the largest, and compare.

    Args:
        detector: the reference, in eval mode on the CPU.
        artifact: what is to be proved.
        crops: uint8 ``[N, H, W, 3]`` RGB. N need not be a multiple of a batch size: a smaller last batch is
            another size proved.
        name: the artifact's name, for the report.
        precision: key of the table of tolerances.
        threshold: decision threshold.
        max_batch_size: the largest batch that will be served.
        crops_source: where the crops came from, for the report.
        size_bytes: size of the artifact, for the report.
        reference: what `reference_outputs` gives for these crops, where the caller has it already.

    Returns:
        The report; whether it is within tolerance is for `require_parity`.
    """
    tolerance = TOLERANCES[precision]
    reference_probability, reference_logit = (
        reference if reference is not None else reference_outputs(detector, crops)
    )
    batch_sizes = tuple(sorted({1, min(3, max_batch_size), max_batch_size}))
    probabilities, logits, latency_ms = [], [], {}
    for batch_size in batch_sizes:
        probability, logit, batch_ms = _run_batched(artifact, crops, batch_size)
        probabilities.append(probability)
        logits.append(logit)
        latency_ms[str(batch_size)] = round(batch_ms, 3)
    probability, logit = np.stack(probabilities), np.stack(logits)
    probability_error = np.abs(probability - reference_probability)
    logit_error = np.abs(logit - reference_logit)
    flipped = ((probability >= threshold) != (reference_probability >= threshold)).any(axis=0)
    near = np.abs(reference_probability - threshold) <= tolerance.probability_abs
    return ParityReport(
        artifact=name,
        precision=precision,
        crops=crops_source,
        num_crops=len(crops),
        batch_sizes=batch_sizes,
        probability=Difference(
            float(probability_error.max()), float(probability_error.mean()), tolerance.probability_abs
        ),
        logit=Difference(
            float(logit_error.max()),
            float(logit_error.mean()),
            tolerance.logit_limit(float(np.abs(reference_logit).max())),
        ),
        # Batch 1 comes first, and a crop alone in its batch cannot depend on others.
        batch_dependence=float(np.abs(probability - probability[0]).max()),
        batch_dependence_limit=tolerance.batch_abs,
        verdict_flips=int(flipped.sum()),
        verdict_flips_near_threshold=int((flipped & near).sum()),
        threshold=threshold,
        reference_logit_range=(float(reference_logit.min()), float(reference_logit.max())),
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        reason=tolerance.reason,
    )


def prove_onnx(
    detector: ServedDetector,
    model_path: Path,
    crops: UInt8Array,
    *,
    name: str,
    threshold: float,
    max_batch_size: int,
    crops_source: str,
) -> ParityReport:
    """Compare an FP32 ONNX file in ONNX Runtime with its network, and accept nothing less than parity.

    Args:
        detector: the network under the wire contract, in eval mode.
        model_path: what `export_onnx` wrote from it.
        crops: uint8 ``[N, H, W, 3]`` RGB.
        name: what the report calls the model.
        threshold: at or above it a crop is fake.
        max_batch_size: largest batch to compare at.
        crops_source: where the crops came from, for the report.

    Raises:
        ParityError: the file does not reproduce the network.
    """
    report = measure_parity(
        detector,
        onnxruntime_runner(model_path),
        crops,
        name=f"{name}, ONNX FP32 in ONNX Runtime on the CPU",
        precision="fp32",
        threshold=threshold,
        max_batch_size=max_batch_size,
        crops_source=crops_source,
        size_bytes=model_path.stat().st_size,
    )
    require_parity(report)
    return report


def require_parity(report: ParityReport) -> None:
    """Do nothing where a report is within tolerance.

    Raises:
        ParityError: names every figure that is beyond its limit, and the limit.
    """
    if report.problems:
        raise ParityError(
            f"{report.artifact} does not reproduce the checkpoint: {'; '.join(report.problems)}, on "
            f"{report.num_crops} crops; it was not put into the repository"
        )


def reference_outputs(detector: ServedDetector, crops: UInt8Array) -> tuple[Float32Array, Float32Array]:
    """Return probability and logit of the float32 PyTorch reference, each float32 ``[N, 1]``."""

    def run(batch: UInt8Array) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            probability, logit = detector(torch.from_numpy(batch))
        return probability, logit

    # A batch per core instead of all cores for each: on a shared machine 7.3 against 1.4 crops/s (EfficientNet-B0),
    # because PyTorch's threads wait for each other within every layer, and spin meanwhile.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            outputs = list(pool.map(run, batches_of(crops, REFERENCE_BATCH)))
    finally:
        torch.set_num_threads(threads)
    return tuple(np.concatenate([item[index].numpy() for item in outputs]) for index in (0, 1))  # type: ignore[return-value]


def onnxruntime_runner(path: Path, *, num_threads: int | None = None) -> Runner:
    """Return a runner of an ONNX file on the CPU, with the provider's default optimizations, as it is served.

    Args:
        path: the file.
        num_threads: threads of one call; all cores where None.

    Raises:
        ExportError: ONNX Runtime cannot load the file.
    """
    session = open_session(path, threads=num_threads)

    def run(faces: UInt8Array) -> tuple[Float32Array, Float32Array]:
        probability, logit = session.run([PROBABILITY_NAME, LOGIT_NAME], {INPUT_NAME: faces})
        return probability, logit

    return run


def _run_batched(artifact: Runner, crops: UInt8Array, batch_size: int) -> tuple[Float32Array, Float32Array, float]:
    """Return all probabilities, all logits, and the median milliseconds of a full batch."""
    probabilities, logits, times_ms = [], [], []
    for batch in batches_of(crops, batch_size):
        start = time.perf_counter()
        probability, logit = artifact(batch)
        if len(batch) == min(batch_size, len(crops)):
            times_ms.append((time.perf_counter() - start) * 1000)
        for name, values in ((PROBABILITY_NAME, probability), (LOGIT_NAME, logit)):
            if values.shape != (len(batch), 1):
                raise ParityError(
                    f"for {len(batch)} crops the artifact's {name!r} has shape {list(values.shape)} instead of "
                    f"{[len(batch), 1]}"
                )
        probabilities.append(probability)
        logits.append(logit)
    return np.concatenate(probabilities), np.concatenate(logits), median(times_ms)
