"""The proof that an artifact gives the checkpoint's verdicts: both see the same crops, and the figures are compared.

The reference is always `ServedDetector` in float32 PyTorch. An artifact is anything that maps a batch of crops to
(probability, logit): ONNX Runtime, a TensorRT engine and a running server are measured by the same code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import CropSet
from deepfake_export.proof.running import Float32Array, Outputs, Runner, UInt8Array, batches_of
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import LOGIT_NAME, PROBABILITY_NAME
from deepfake_preprocess.errors import ParityError
from deepfake_preprocess.support.json_data import JsonData

REFERENCE_BATCH = 8
"""Batch size of the reference; it only bounds memory."""

WEAK_SPREAD = 1e-3
"""A reference whose logits differ by less between crops hardly depends on them, and then parity proves little."""


@dataclass(frozen=True, slots=True)
class Difference(JsonData):
    """Absolute difference between artifact and reference over all crops and batch sizes; `limit` is for `max_abs`."""

    max_abs: float
    mean_abs: float
    limit: float

    @classmethod
    def of(cls, errors: Float32Array, limit: float) -> Difference:
        """Return the difference of all absolute errors."""
        return cls(float(errors.max()), float(errors.mean()), limit)


@dataclass(frozen=True, slots=True)
class ParityReport(JsonData):
    """Figures of one artifact against the checkpoint in float32 PyTorch.

    Attributes:
        artifact: what was measured, for people.
        precision: key of the table of tolerances.
        crops: where the crops came from, for people.
        batch_sizes: batch sizes that all crops were run at.
        batch_dependence: largest difference of one crop's probability between batch sizes.
        verdict_flips: crops whose verdict at the threshold changed.
        latency_ms: median time of a batch on this machine, by batch size; for orientation, not a benchmark.
        reason: why the limits are what they are.
        logit_mean_limit: for the mean of `logit`, where the crops are generated; None on faces, whose verdicts count.
    """

    json_properties = ("passed", "notes")

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
    threshold: float
    reference_logit_range: tuple[float, float]
    size_bytes: int
    latency_ms: Mapping[str, float]
    reason: str
    logit_mean_limit: float | None

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
            # Not `figure > limit`: NaN, which compares as neither, is a problem.
            if not figure <= limit
        ]
        tolerance, mean = TOLERANCES[self.precision], self.probability.mean_abs
        if not mean <= (limit := tolerance.probability_mean_abs):
            found.append(f"{PROBABILITY_NAME} differs by {mean:.3g} on average (limit {limit:.3g})")
        of_logit, limit_of_logit = self.logit.mean_abs, self.logit_mean_limit
        if limit_of_logit is not None and not of_logit <= limit_of_logit:
            found.append(
                f"{LOGIT_NAME} of generated faces differs by {of_logit:.3g} on average (limit {limit_of_logit:.3g}; "
                "of faces of your own, verdicts would count)"
            )
        allowed = tolerance.allowed_flips(self.num_crops)
        if allowed is not None and self.verdict_flips > allowed:
            found.append(f"{self.verdict_flips} of {self.num_crops} verdicts change (limit {allowed})")
        return found

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond tolerance."""
        return not self.problems

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the proof itself."""
        low, high = self.reference_logit_range
        if high - low < WEAK_SPREAD:
            return [f"the reference gives almost the same logit for every crop ({low:.4g} to {high:.4g}): weak proof"]
        return []


def measure_parity(
    reference: Outputs,
    artifact: Runner,
    crops: CropSet,
    *,
    name: str,
    precision: str,
    threshold: float,
    max_batch_size: int,
    size_bytes: int,
) -> tuple[ParityReport, Float32Array]:
    """Run an artifact at batch 1, 3 and the largest on the crops that the reference saw, and compare.

    The number of crops need not be a multiple of a batch size: a smaller last batch is another size proved.

    Returns:
        The report (whether it is within tolerance is for `require_parity`), and the artifact's `fake_probability`
        float32 ``[N]`` of each crop alone in its batch.
    """
    tolerance = TOLERANCES[precision]
    reference_probability, reference_logit = reference
    batch_sizes = tuple(sorted({1, min(3, max_batch_size), max_batch_size}))
    probabilities, logits, latency_ms = [], [], {}
    for batch_size in batch_sizes:
        probability, logit, batch_ms = _run_batched(artifact, crops.crops, batch_size)
        probabilities.append(probability)
        logits.append(logit)
        latency_ms[str(batch_size)] = round(batch_ms, 3)
    probability, logit = np.stack(probabilities), np.stack(logits)
    probability_error = np.abs(probability - reference_probability)
    logit_error = np.abs(logit - reference_logit)
    flipped = ((probability >= threshold) != (reference_probability >= threshold)).any(axis=0)
    logit_limit = tolerance.logit_limit(float(np.abs(reference_logit).max()))
    report = ParityReport(
        artifact=name,
        precision=precision,
        crops=crops.origin,
        num_crops=len(crops.crops),
        batch_sizes=batch_sizes,
        probability=Difference.of(probability_error, tolerance.probability_abs),
        logit=Difference.of(logit_error, logit_limit),
        # Batch 1 comes first, and a crop alone in its batch cannot depend on others.
        batch_dependence=float(np.abs(probability - probability[0]).max()),
        batch_dependence_limit=tolerance.batch_abs,
        verdict_flips=int(flipped.sum()),
        threshold=threshold,
        reference_logit_range=(float(reference_logit.min()), float(reference_logit.max())),
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        reason=tolerance.reason,
        logit_mean_limit=None if crops.sha256 else tolerance.generated_logit_mean_abs,
    )
    return report, probability[0, :, 0]


def require_parity(report: ParityReport) -> None:
    """Raise a `ParityError` that names every figure beyond its limit, and the limit."""
    if report.problems:
        raise ParityError(
            f"{report.artifact} does not reproduce the checkpoint: {'; '.join(report.problems)}, on "
            f"{report.num_crops} crops; it was not put into the repository"
        )


def reference_outputs(detector: ServedDetector, crops: UInt8Array) -> Outputs:
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
