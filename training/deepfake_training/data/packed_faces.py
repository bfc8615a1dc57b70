"""`PackedFaces`: labeled face pictures with their boxes and landmarks, found once and kept in one file.

Faces are found by the project's own detector when the set is made, so an epoch decodes small JPEG pictures and
nothing else. A picture keeps the surroundings of its face, because blending and re-compression happen to a video
frame and not to a 128 px crop; the crop is cut during training, by `crop_face`, as in service.

The file (``.safetensors``) holds no code, is read without copying, and travels to another machine as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.support.text import reason_of
from deepfake_training.data.fakes.mesh import NUM_POINTS, Mesh, fit_mesh
from deepfake_training.data.labels import FAKE

FORMAT_VERSION = "2"
_ARRAYS = ("encoded", "offsets", "boxes_xyxy", "landmarks_xy", "labels", "meshes_xy")
_TEXTS = ("groups", "sources", "notes")


def _no_meshes() -> NDArray[np.float16]:
    return np.zeros((0, NUM_POINTS, 2), dtype=np.float16)


@dataclass(frozen=True, slots=True, eq=False)
class PackedFaces:
    """Faces with labels, in the order in which their files were read.

    Attributes:
        encoded: uint8 ``[bytes]``: the pictures as JPEG or PNG, one after the other.
        offsets: int64 ``[N + 1]``: where each one starts, and the end of the last.
        boxes_xyxy: float32 ``[N, 4]``: the face in its picture.
        landmarks_xy: float32 ``[N, 5, 2]`` in the order of `LANDMARK_NAMES`.
        labels: int8 ``[N]``, `REAL` or `FAKE`.
        groups: what each face must stay together with in a split (see `splits`).
        sources: file that each came from, relative to its folder of training data.
        notes: what was left out, as sentences.
        meshes_xy: float16 ``[N, 468, 2]``, dense landmarks in pixels of the picture, NaN for a face without; or
            empty, where none were measured (``scripts/add_face_meshes.py``).
    """

    encoded: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    landmarks_xy: NDArray[np.float32]
    labels: NDArray[np.int8]
    groups: tuple[str, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    meshes_xy: NDArray[np.float16] = field(default_factory=_no_meshes)

    def __post_init__(self) -> None:
        count = len(self.labels)
        meshes = (count if len(self.meshes_xy) else 0, NUM_POINTS, 2)
        parts = {"offsets": (count + 1,), "boxes_xyxy": (count, 4), "landmarks_xy": (count, 5, 2)}
        for name, expected in {**parts, "meshes_xy": meshes, "groups": (count,), "sources": (count,)}.items():
            if (actual := np.shape(getattr(self, name))) != expected:
                raise ValueError(f"{name} must have shape {expected} for {count} labels, got {actual}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        fakes = int((self.labels == FAKE).sum())
        return f"PackedFaces(real={len(self) - fakes}, fake={fakes}, groups={len(set(self.groups))})"

    def picture_rgb(self, index: int) -> NDArray[np.uint8]:
        """Decode one picture: uint8 ``[H, W, 3]`` RGB."""
        data = self.encoded[self.offsets[index] : self.offsets[index + 1]]
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        assert picture is not None  # decoded once already when the set was made
        return np.asarray(picture, dtype=np.uint8)

    def face(self, index: int) -> Face:
        """Return where the face is in its picture."""
        return Face(self.boxes_xyxy[index], 1.0, self.landmarks_xy[index])

    def mesh(self, index: int) -> Mesh:
        """Return the face's mesh, float32 ``[468, 2]``: its own, or the mean mesh fitted to its landmarks."""
        if len(self.meshes_xy) and np.isfinite(self.meshes_xy[index]).all():
            return np.asarray(self.meshes_xy[index], dtype=np.float32)
        return fit_mesh(self.face(index))

    def save(self, path: str | Path) -> None:
        """Write the set to a ``.safetensors`` file.

        Raises:
            OptionError: the file cannot be written.
        """
        texts = {name: json.dumps(getattr(self, name)) for name in _TEXTS}
        # safetensors writes memory as it lies, and stacked landmarks may lie transposed.
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, path, metadata={"format": FORMAT_VERSION, **texts})
        except (OSError, SafetensorError) as exc:
            raise OptionError(
                f"{path}: the packed faces cannot be written ({reason_of(exc)}); free space, or name another file"
            ) from exc

    @classmethod
    def load(cls, path: str | Path) -> PackedFaces:
        """Read a set that `save` wrote.

        Raises:
            OptionError: there is no such file, or it is not a set of faces.
        """
        if not Path(path).is_file():
            raise OptionError(f"{path}: there is no such file of packed faces; make it with `deepfake pack-faces`")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT_VERSION:
                    raise OptionError(f"{path} holds no faces packed by `deepfake pack-faces`; make the file again")
                values: dict[str, Any] = {name: file.get_tensor(name) for name in _ARRAYS}
                values |= {name: tuple(json.loads(metadata[name])) for name in _TEXTS}
                return cls(**values)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as exc:
            if isinstance(exc, OptionError):
                raise
            raise OptionError(f"{path} is damaged ({reason_of(exc)}); pack the faces again") from exc
