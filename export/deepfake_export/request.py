"""What an export was asked for beyond checkpoint and spec: precisions, crops, limits; and whether it was done.

What decides about the result is kept with the parity figures, so that the same request adds no version, and another
one does and says what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake_export.proof.gate import BEST
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError

if TYPE_CHECKING:
    from deepfake_export.proof.faces import FaceSet

INT8_TARGETS = ("cpu", "tensorrt")
REQUEST_KEY = "request"
"""Where the parity figures of a version hold `ExportRequest.identity`."""

DECIDES = {
    "precisions": "--precision",
    "promote": "--promote",
    "int8_target": "--int8-target",
    "calibration_sha256": "the calibration set",
    "labels_sha256": "the labels",
    "crops_sha256": "the crops of the proof",
    "tolerances_sha256": "the table of tolerances",
}
"""What decides about the result, and its name for people."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The options about precisions and proof, checked; see `deepfake_export.api.export_checkpoint`.

    Raises:
        OptionError: they do not fit together.
    """

    precisions: tuple[str, ...]
    calibration: str | Path | None
    labels: str | Path | None
    promote: str
    int8_target: str
    artifacts: str | Path | None
    crops: str | Path | None
    spec_path: str | Path | None

    def __post_init__(self) -> None:
        if self.promote not in (BEST, *self.precisions):
            allowed = ", ".join((BEST, *self.precisions))
            raise OptionError(f"promote is {self.promote!r}; allowed with these precisions: {allowed}")
        if self.int8_target not in INT8_TARGETS:
            raise OptionError(f"int8_target is {self.int8_target!r}; allowed: {', '.join(INT8_TARGETS)}")
        if "int8" in self.precisions and self.calibration is None:
            raise OptionError(
                "INT8 needs faces to calibrate on; name a directory of your clips or face images with --calibration"
            )
        if self.labels is not None and self.calibration is None:
            raise OptionError("labels belong to the files of a calibration set; name that with --calibration")

    @property
    def compares(self) -> bool:
        """Whether there is more to do than to export FP32 and to prove it."""
        return self.precisions != ("fp32",) or self.calibration is not None

    def identity(self) -> dict[str, Any]:
        """Return what decides about the result, as plain JSON data; files by their hash.

        Raises:
            OptionError: a directory or file is missing, or holds nothing.
        """
        labels = Path(self.labels) if self.labels is not None else None
        if labels is not None and not labels.is_file():
            raise OptionError(f"{labels}: there is no such file of labels")
        return {
            "precisions": list(self.precisions),
            "promote": self.promote if self.compares else None,
            "int8_target": self.int8_target if "int8" in self.precisions else None,
            "calibration_sha256": _hash_of_media(self.calibration) if self.calibration is not None else None,
            "labels_sha256": sha256_file(labels) if labels is not None else None,
            "crops_sha256": _hash_of_crops(Path(self.crops)) if self.crops is not None else None,
            "tolerances_sha256": _hash_of_tolerances(),
        }

    def read_faces(self, spec: ModelSpec) -> FaceSet | None:
        """Return the calibration set; None where there is none."""
        from deepfake_export.proof.faces import read_faces

        return read_faces(self.calibration, spec, labels=self.labels) if self.calibration is not None else None

    def command(self, checkpoint: str | Path, repository: Path, max_batch_size: int) -> Callable[[str], str]:
        """Return what gives, by precision, the command line that repeats its comparison."""

        def command(precision: str) -> str:
            words: list[Any] = ["deepfake", "export", checkpoint]
            for option, value in (
                ("--spec", self.spec_path),
                ("--repository", repository),
                ("--max-batch", max_batch_size),
                ("--precision", precision if precision == "fp32" else f"fp32,{precision}"),
                ("--calibration", self.calibration),
                ("--labels", self.labels),
                ("--crops", self.crops),
                ("--promote", precision),
                ("--int8-target", self.int8_target if precision == "int8" else None),
            ):
                words += [] if value is None else [option, value]
            return shlex.join([*map(str, words), "--force"])

        return command


def what_changed(parity: Mapping[str, Any], identity: Mapping[str, Any], max_batch_size: int) -> tuple[str, ...]:
    """Return in what a request differs from the one that a version was made for, as names for people.

    Args:
        parity: figures of the version, from its manifest.
        identity: `ExportRequest.identity` of the new request.
        max_batch_size: largest batch of the new request; a smaller one than was proved is no difference.
    """
    before = parity.get(REQUEST_KEY)
    if not isinstance(before, Mapping):  # from before requests were kept
        return ("what it was asked for, which that version does not say",)
    changed = [name for key, name in DECIDES.items() if before.get(key) != identity[key]]
    if max(parity.get("batch_sizes") or [0]) < max_batch_size:
        changed.append("a larger --max-batch")
    return tuple(changed)


def _hash_of_media(directory: str | Path) -> str:
    # Loaded on use, like the one below: they bring OpenCV and PyAV, which an export without files does not need yet.
    from deepfake_export.proof.faces import hash_media

    return hash_media(directory)


def _hash_of_crops(directory: Path) -> str:
    from deepfake_export.proof.crops import hash_files, images_of

    return hash_files(images_of(directory), directory)


def _hash_of_tolerances() -> str:
    limits = {name: dataclasses.asdict(item) for name, item in TOLERANCES.items()}
    for item in limits.values():
        del item["reason"]  # text
    return hashlib.sha256(json.dumps(limits, sort_keys=True).encode()).hexdigest()
