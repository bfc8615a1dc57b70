"""`CropSet`: face crops for proofs, read from a directory, or generated: every machine gets the same ones.

Generated crops are smooth and structured (an oval with features on a gradient, some grain), because white noise
drives a network far outside of what it sees in service and hides errors behind saturated logits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deepfake_export.proof.running import UInt8Array
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.suffixes import IMAGE_SUFFIXES

GENERATED_SEED = 20240607


@dataclass(frozen=True, slots=True, eq=False)
class CropSet:
    """Face crops and where they came from.

    Attributes:
        crops: uint8 ``[N, H, W, 3]``, RGB.
        origin: where they came from, for people.
        sources: for each crop the name of its file, relative to the directory; empty for generated crops.
        videos: those of the `sources` that are videos.
        labels: for each crop 1 for fake and 0 for real; None where the files do not say it for all.
        sha256: hash over names and contents of the directory's files; None for generated crops.
        notes: what a reader should know, as sentences without a full stop.
    """

    crops: UInt8Array
    origin: str
    sources: tuple[str, ...] = ()
    videos: frozenset[str] = frozenset()
    labels: npt.NDArray[np.int64] | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of crops."""
        return len(self.crops)

    def split(self, share: int) -> tuple[CropSet, CropSet]:
        """Return the crops of one of `share` files, evenly taken, and those of the others.

        Raises:
            OptionError: there are fewer files than that.
        """
        files = list(dict.fromkeys(self.sources))
        if len(files) < share:
            raise OptionError(
                f"fine-tuning needs crops of other files for the proof, and there are faces in {len(files)} files "
                f"only; add files ({share} or more), or name other face crops for the proof as `crops`"
            )
        chosen = np.isin(np.array(self.sources), files[::share])
        return self._part(chosen, "for the proof"), self._part(~chosen, "for calibration")

    def _part(self, chosen: npt.NDArray[np.bool_], use: str) -> CropSet:
        sources = tuple(np.array(self.sources)[chosen].tolist())
        return dataclasses.replace(
            self,
            crops=self.crops[chosen],
            origin=f"{self.origin}; of these {len(sources)} from {len(set(sources))} files {use}",
            sources=sources,
            videos=self.videos & set(sources),
            labels=None if self.labels is None else self.labels[chosen],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data of all but the crops themselves."""
        return {
            "count": len(self.crops),
            "origin": self.origin,
            "num_videos": len(self.videos),
            "labeled": self.labels is not None,
            "sha256": self.sha256,
        }


def generated_set(count: int, size_wh: tuple[int, int]) -> CropSet:
    """Return `count` generated crops; see `generate_crops`."""
    return CropSet(generate_crops(count, size_wh), f"generated face-like images (seed {GENERATED_SEED})")


def generate_crops(count: int, size_wh: tuple[int, int], *, seed: int = GENERATED_SEED) -> UInt8Array:
    """Return face-like crops, uint8 ``[count, H, W, 3]`` RGB: the same ones for the same arguments."""
    width, height = size_wh
    random = np.random.default_rng(seed)
    return np.stack([_one_crop(random, width, height) for _ in range(count)])


def read_crops(directory: str | Path, size_wh: tuple[int, int], *, limit: int) -> CropSet:
    """Read the first `limit` of a directory's images (see `images_of`), resized to the model's input size.

    Raises:
        OptionError: no directory, no image in it, or an image that cannot be decoded.
    """
    directory = Path(directory)
    paths = images_of(directory)
    return CropSet(
        np.stack([_read_image(path, size_wh) for path in paths[:limit]]),
        f"images of the directory {directory.name!r}",
        tuple(path.name for path in paths[:limit]),
        sha256=hash_files(paths, directory),
    )


def images_of(directory: Path) -> list[Path]:
    """Return the images (PNG, JPEG, BMP or WebP) in a directory but not below it, in the order of their names.

    Raises:
        OptionError: no directory, or no image in it.
    """
    if not directory.is_dir():
        raise OptionError(f"{directory}: there is no such directory of crops; name one that holds face images")
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise OptionError(f"{directory} holds no images; put face crops there as {', '.join(IMAGE_SUFFIXES)}")
    return paths


def hash_files(paths: Sequence[Path], directory: Path) -> str:
    """Return the SHA-256 over contents, and names relative to `directory`, of files, as `sha256sum` lists them."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{sha256_file(path)}  {path.relative_to(directory).as_posix()}\n".encode())
    return digest.hexdigest()


def _one_crop(random: np.random.Generator, width: int, height: int) -> UInt8Array:
    # Five control points per side give the slow color changes of a background and of light on a face.
    background = cv2.resize(random.uniform(20, 200, (5, 5, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    skin = cv2.resize(random.uniform(90, 230, (3, 3, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    face = np.zeros((height, width), dtype=np.uint8)
    middle = np.array([0.5, 0.5]) + random.uniform(-0.05, 0.05, 2)
    _ellipse(face, middle, np.array([0.3, 0.4]) * random.uniform(0.8, 1.1), value=255)
    dark = np.zeros((height, width), dtype=np.uint8)
    for feature_xy, radii in (((-0.12, -0.08), (0.05, 0.03)), ((0.12, -0.08), (0.05, 0.03)), ((0, 0.2), (0.1, 0.03))):
        _ellipse(dark, middle + np.array(feature_xy), np.array(radii) * random.uniform(0.7, 1.4), value=255)
    soft = max(width, height) / 64
    inside = cv2.GaussianBlur(face, (0, 0), soft)[..., None] / 255.0
    shade = cv2.GaussianBlur(dark, (0, 0), soft)[..., None] / 255.0
    image = background * (1 - inside) + skin * inside
    image = image * (1 - 0.7 * shade) + random.normal(0, random.uniform(1, 6), (height, width, 3))
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def _ellipse(
    mask: UInt8Array, middle_xy: npt.NDArray[np.float64], radii: npt.NDArray[np.float64], *, value: int
) -> None:
    scale = np.array([mask.shape[1], mask.shape[0]])
    center, axes = np.rint(middle_xy * scale).astype(int), np.rint(radii * scale).astype(int)
    cv2.ellipse(mask, center.tolist(), axes.tolist(), 0, 0, 360, (value,), cv2.FILLED)


def _read_image(path: Path, size_wh: tuple[int, int]) -> UInt8Array:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OptionError(f"{path} cannot be decoded as an image; remove it or put a valid one there")
    if (image.shape[1], image.shape[0]) != size_wh:
        # AREA is the filter that does not alias when shrinking, and cubic the one that stays smooth when growing.
        shrinks = image.shape[1] > size_wh[0]
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
