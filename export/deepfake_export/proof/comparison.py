"""Compares artifacts with the checkpoint and with each other: verdicts of frames and videos, AUC, and speed.

`deepfake_export.proof.parity` gives the figures of one artifact; here are those that need files, labels or a second
artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepfake_export.proof.crops import CropSet
from deepfake_export.proof.gate import Entrant, Promotion
from deepfake_export.proof.parity import ParityReport
from deepfake_export.proof.running import Float32Array
from deepfake_export.proof.speed import Speed
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.support.engines import ONNX_RUNTIME
from deepfake_preprocess.support.json_data import JsonData
from deepfake_preprocess.support.ranking import roc_auc


@dataclass(frozen=True, slots=True)
class Auc(JsonData):
    """Area under the ROC curve, where the crops have labels."""

    json_properties = ("difference",)

    checkpoint: float
    artifact: float

    @property
    def difference(self) -> float:
        """The artifact's less the checkpoint's."""
        return self.artifact - self.checkpoint


@dataclass(frozen=True, slots=True)
class Videos(JsonData):
    """Videos among the sources of the crops, and how many change their verdict on the mean of their crops."""

    count: int = 0
    verdict_flips: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ArtifactProof(JsonData):
    """All figures of one artifact; `path`, `parity` and `probability` are None where it could not be made.

    Attributes:
        parity: crop by crop.
        probability: ``[N]`` of the proof's crops.
        auc: None without labels.
        speed: side by side with FP32; None where it could not be made, or FP32 is alone.
        failure: why it could not be made.
        details: how it was made (plain JSON data).
        engine: that runs it.
    """

    json_properties = ("name", "passed", "problems")

    precision: str
    path: Path | None = field(default=None, metadata={"exclude": True})
    parity: ParityReport | None = None
    probability: Float32Array | None = field(default=None, metadata={"exclude": True})
    videos: Videos = Videos()
    auc: Auc | None = None
    speed: Speed | None = None
    failure: str = field(default="", metadata={"exclude": True})
    details: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ONNX_RUNTIME

    @property
    def name(self) -> str:
        """See `Entrant.name`."""
        return self.entrant().name

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond the table of tolerances."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """What is beyond the table of tolerances; empty when the artifact passes."""
        if self.parity is None:
            return (self.failure,)
        tolerance = TOLERANCES[self.precision]
        found = list(self.parity.problems)
        videos, limit = self.videos, tolerance.allowed_flips(self.videos.count)
        if limit is not None and videos.verdict_flips > limit:
            found.append(f"{videos.verdict_flips} of {videos.count} videos' verdicts change (limit {limit})")
        if (auc := self.auc) is not None and not abs(auc.difference) <= tolerance.auc_abs:
            change = f"{auc.checkpoint:.4f} to {auc.artifact:.4f}"
            found.append(f"the AUC goes from {change} (limit {tolerance.auc_abs:g})")
        return tuple(found)

    def entrant(self) -> Entrant:
        """Return what the gate looks at."""
        return Entrant(self.precision, self.problems, self.speed.ratio_to_fp32 if self.speed else {}, self.engine)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What was measured, FP32 first, the decision, and probabilities ``[N]`` of the checkpoint in float32 PyTorch."""

    artifacts: tuple[ArtifactProof, ...]
    decision: Promotion
    reference: Float32Array

    @property
    def promoted(self) -> ArtifactProof:
        """What is served."""
        return next(
            item
            for item in self.artifacts
            if (item.precision, item.engine) == (self.decision.promoted, self.decision.engine)
        )

    @property
    def accurate(self) -> dict[str, Path]:
        """The files of the precisions that are accurate enough in an engine; BF16 has none of its own."""
        passed = [item for item in self.artifacts if item.path is not None and not item.problems]
        return {item.precision: item.path for item in passed if item.path is not None and item.precision != "bf16"}


def compare(
    parity: ParityReport,
    probability: Float32Array,
    reference: Float32Array,
    crops: CropSet,
    *,
    path: Path,
    engine: str,
    details: Mapping[str, Any],
) -> ArtifactProof:
    """Return the figures of an artifact but for its speed, from probabilities ``[N]`` of it and of the checkpoint."""
    labels = crops.labels
    usable = labels is not None and bool(np.isfinite(probability).all())
    return ArtifactProof(
        parity.precision,
        path,
        parity,
        probability,
        Videos(len(crops.videos), video_flips(reference, probability, crops, parity.threshold)),
        Auc(roc_auc(reference, labels), roc_auc(probability, labels)) if usable and labels is not None else None,
        details=details,
        engine=engine,
    )


def video_flips(reference: Float32Array, probability: Float32Array, crops: CropSet, threshold: float) -> int:
    """Return how many videos change their verdict, each scored by the mean of its crops, the client's default."""
    sources = np.array(crops.sources)
    flips = 0
    for video in crops.videos:
        mine = sources == video
        flips += bool((reference[mine].mean() >= threshold) != (probability[mine].mean() >= threshold))
    return flips
