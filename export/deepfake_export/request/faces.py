"""`FaceOptions`: the user's own faces that INT8 is calibrated on and an artifact is proved on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError

if TYPE_CHECKING:
    from deepfake_export.proof.crops import CropSet

PROOF_SHARE = 5
"""Where weights are fine-tuned, one file in this many is kept for the proof alone."""
MAX_PROOF_CROPS = 256
"""Limit of the user's own crops, unless one full batch of the largest size needs more."""


@dataclass(frozen=True, slots=True)
class FaceOptions:
    """The user's own faces; without any the proof generates face-like ones.

    Attributes:
        calibration: directory of videos and face images: ranges of INT8, and, without `crops`, the crops of the
            proof. See `deepfake_export.proof.faces` for what is taken from it.
        labels: CSV of real and fake for the files of `calibration`; None takes its folders ``real`` and ``fake``.
        crops: directory of face crops for the proof.

    Raises:
        OptionError: there are labels of nothing.
    """

    calibration: str | Path | None = None
    labels: str | Path | None = None
    crops: str | Path | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.calibration is None:
            raise OptionError("`labels` belong to the files of a calibration set; name that as `calibration`")

    def identity(self) -> dict[str, str | None]:
        """Return the SHA-256 of the files.

        Raises:
            OptionError: a directory or file is missing, or holds nothing.
        """
        calibration = labels = crops = None
        if self.labels is not None:
            if not Path(self.labels).is_file():
                raise OptionError(f"{self.labels}: there is no such file of labels")
            labels = sha256_file(Path(self.labels))
        # Loaded on use: they bring OpenCV and PyAV, which an export without files does not need yet.
        if self.calibration is not None:
            from deepfake_export.proof.faces import hash_media

            calibration = hash_media(self.calibration)
        if self.crops is not None:
            from deepfake_export.proof.crops import hash_files, images_of

            crops = hash_files(images_of(Path(self.crops)), Path(self.crops))
        return {"calibration_sha256": calibration, "labels_sha256": labels, "crops_sha256": crops}

    def read(self, spec: ModelSpec, *, batch_size: int, learned_from: bool) -> tuple[CropSet, CropSet | None]:
        """Return the crops of the proof, and the calibration set where there is one.

        Args:
            spec: of the model that takes them.
            batch_size: of the largest batch; generated crops are some more than fill one.
            learned_from: whether weights are trained on the calibration set: a share of it is for the proof alone.

        Raises:
            OptionError: a file cannot be read, or there are too few faces.
        """
        from deepfake_export.proof.crops import generated_set, read_crops
        from deepfake_export.proof.faces import read_faces

        calibration = None
        if self.calibration is not None:
            calibration = read_faces(self.calibration, spec, labels=self.labels)
        # One full batch, and some more, which make the last batch a smaller one.
        count = batch_size + 4
        if self.crops is not None:
            return read_crops(self.crops, spec.input_size_wh, limit=max(count, MAX_PROOF_CROPS)), calibration
        if calibration is None:
            return generated_set(count, spec.input_size_wh), None
        # Weights that were trained on the crops of the proof would prove nothing.
        return calibration.split(PROOF_SHARE) if learned_from else (calibration, calibration)
