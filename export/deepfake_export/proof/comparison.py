"""Compares artifacts with the checkpoint and with each other: verdicts of frames and videos, AUC, and speed.

`deepfake_export.proof.parity` gives the figures of one artifact; here are those that need files, labels or a second
artifact. Speed is measured side by side: one batch of each in turn, and the median of the rounds' ratios, so that
another program on the machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deepfake_export.proof.crops import UInt8Array
from deepfake_export.proof.faces import FaceSet
from deepfake_export.proof.gate import Decision
from deepfake_export.proof.parity import Float32Array, ParityReport, Runner
from deepfake_export.proof.tolerances import TOLERANCES

SPEED_ROUNDS = 9
"""Odd, so that the median is a measured one; in a shared machine the quartiles of a ratio are then within 10%."""
MIN_ROUND_S = 0.05
"""A measurement takes at least about this long, so that small networks are not lost in the clock."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of one artifact by batch size.

    Attributes:
        latency_ms: median time of a batch.
        crops_per_s: the throughput that follows.
        ratio: median over the rounds of FP32's time over this one's; above 1 for faster.
    """

    latency_ms: Mapping[str, float]
    crops_per_s: Mapping[str, float]
    ratio: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "latency_ms": dict(self.latency_ms),
            "crops_per_s": dict(self.crops_per_s),
            "ratio_to_fp32": dict(self.ratio),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All figures of one artifact.

    Attributes:
        precision: its precision.
        parity: frame by frame; None where the artifact could not be made.
        probability: ``[N]`` of the proof's crops; empty where it could not be made.
        num_videos: videos among the sources.
        video_flips: those whose verdict, on the mean of their crops, changed.
        auc: of the checkpoint and of the artifact; None without labels.
        speed: side by side with FP32; None where it could not be made.
        failure: why it could not be made.
        details: how it was made (plain JSON data).
    """

    precision: str
    parity: ParityReport | None
    probability: Float32Array
    num_videos: int
    video_flips: int
    auc: tuple[float, float] | None
    speed: Speed | None
    failure: str
    details: Mapping[str, Any]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is beyond the table of tolerances; empty when the artifact passes."""
        if self.parity is None:
            return (self.failure,)
        tolerance = TOLERANCES[self.precision]
        found = list(self.parity.problems)
        if self.video_flips > tolerance.allowed_flips(self.num_videos):
            found.append(
                f"{self.video_flips} of {self.num_videos} videos' verdicts change "
                f"(limit {tolerance.allowed_flips(self.num_videos)})"
            )
        if self.auc is not None and not abs(self.auc[0] - self.auc[1]) <= tolerance.auc_abs:
            found.append(f"the AUC goes from {self.auc[0]:.4f} to {self.auc[1]:.4f} (limit {tolerance.auc_abs:g})")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "precision": self.precision,
            "passed": not self.problems,
            "problems": list(self.problems),
            "parity": None if self.parity is None else self.parity.to_dict(),
            "videos": {"count": self.num_videos, "verdict_flips": self.video_flips},
            "auc": None
            if self.auc is None
            else {"checkpoint": self.auc[0], "artifact": self.auc[1], "difference": self.auc[1] - self.auc[0]},
            "speed": None if self.speed is None else self.speed.to_dict(),
            "details": dict(self.details),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """All that was measured, and the decision.

    Attributes:
        comparisons: one per precision, FP32 first.
        decision: what is served.
        paths: files of the precisions that are accurate enough, by precision.
        reference: ``[N]`` probabilities of the checkpoint in float32 PyTorch.
    """

    comparisons: tuple[Comparison, ...]
    decision: Decision
    paths: dict[str, Path]
    reference: Float32Array

    @property
    def promoted_path(self) -> Path:
        """The file of what is served."""
        return self.paths[self.decision.promoted]

    @property
    def promoted(self) -> Comparison:
        """The comparison of what is served."""
        return next(item for item in self.comparisons if item.precision == self.decision.promoted)


def video_flips(reference: Float32Array, probability: Float32Array, faces: FaceSet, threshold: float) -> int:
    """Return how many videos change their verdict, each scored by the mean of its crops as the client's default is.

    Args:
        reference: ``[N]`` of the checkpoint.
        probability: ``[N]`` of the artifact.
        faces: where the N crops came from.
        threshold: decision threshold.
    """
    sources = np.array(faces.sources)
    flips = 0
    for video in faces.videos & set(faces.sources):
        mine = sources == video
        flips += bool((reference[mine].mean() >= threshold) != (probability[mine].mean() >= threshold))
    return flips


def measure_speed(runners: Mapping[str, Runner], crops: UInt8Array, batch_sizes: Sequence[int]) -> dict[str, Speed]:
    """Measure artifacts side by side.

    Args:
        runners: by precision, ``fp32`` among them.
        crops: uint8 ``[N, H, W, 3]`` RGB, repeated where a batch is larger.
        batch_sizes: sizes to measure.
    """
    latency: dict[str, dict[str, float]] = {name: {} for name in runners}
    ratio: dict[str, dict[str, float]] = {name: {} for name in runners}
    for size in batch_sizes:
        batch = np.resize(crops, (size, *crops.shape[1:]))
        repeats = {}
        for name, run in runners.items():
            run(batch)  # allocates
            repeats[name] = max(1, round(MIN_ROUND_S / max(_time(run, batch, 1), 1e-6)))
        rounds = [
            {name: _time(run, batch, repeats[name]) for name, run in runners.items()} for _ in range(SPEED_ROUNDS)
        ]
        for name in runners:
            latency[name][str(size)] = round(median(item[name] for item in rounds) * 1000, 3)
            ratio[name][str(size)] = round(median(item["fp32"] / item[name] for item in rounds), 3)
    return {
        name: Speed(
            latency[name],
            {size: round(int(size) / value * 1000, 1) for size, value in latency[name].items()},
            ratio[name],
        )
        for name in runners
    }


def _time(run: Runner, batch: UInt8Array, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run(batch)
    return (time.perf_counter() - start) / repeats
