"""Packs the faces of folders of images and videos: finds them, keeps their surroundings, names their groups.

What cannot be used (damaged files, pictures without a face) is left out, counted and listed; nothing stops there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaOpenError, OptionError
from deepfake_preprocess.faces.detector import Face, FaceDetector, faces_in
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.media.suffixes import media_of
from deepfake_preprocess.support.json_data import Bounds, JsonData
from deepfake_training.data.labels import FAKE, REAL
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.splits import find_groups

SURROUNDINGS = 0.5
"""What is kept around a face on each side, as a share of its box's longer side; enough for crop margins in use."""
MAX_PICTURE_PX = 384
"""Longest side of a kept picture: a larger face is shrunk. Networks take 128 to 380 px."""
FRAMES_PER_VIDEO = 16
JPEG_QUALITY = 95
BORDER = 0.5
"""Black border around a still picture while its face is looked for, as a share of its shorter side; a still is often
a crop already, and with the face at its edges the detector's boxes are too large and off-center."""
LISTED = 5
"""How many names of files a note shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceFolders(JsonData):
    """Folders of images and videos, and what is taken from them.

    Attributes:
        real: folders whose faces are real; sub-folders are read, too.
        fake: folders whose faces are fake; self-blending needs none.
        frames_per_video: frames taken from each video, evenly spaced; at least 1.
        identity_pattern: regular expression whose groups are the people in a file's name; see `find_groups`.
    """

    real: tuple[str, ...] = ()
    fake: tuple[str, ...] = ()
    frames_per_video: Annotated[int, Bounds(ge=1)] = FRAMES_PER_VIDEO
    identity_pattern: str | None = None

    def __post_init__(self) -> None:
        self.check_fields()

    def files(self) -> list[tuple[Path, Path, int]]:
        """Return the folder, the path and the label of every image and video.

        Raises:
            OptionError: a folder is missing or holds no media, or none was named.
        """
        found = [
            (Path(folder), path, label)
            for label, folders in ((REAL, self.real), (FAKE, self.fake))
            for folder in folders
            for path in media_of(folder)
        ]
        if not found:
            raise OptionError("no folder of faces was named; name at least one of real faces")
        return found


def pack_faces(
    folders: FaceFolders,
    *,
    max_side_px: int = MAX_PICTURE_PX,
    quality: int = JPEG_QUALITY,
    progress: Callable[[str, int, int], None] | None = None,
) -> PackedFaces:
    """Find the faces in folders of real and of fake images and videos.

    Args:
        folders: where to look, and what to take.
        max_side_px: longest side of a kept picture, at least 64.
        quality: of JPEG, 1 to 100.
        progress: called with the file's name, its number and the number of files, before each file.

    Raises:
        OptionError: a folder is missing or holds no media, or there is no face in any of them.
    """
    if max_side_px < 64 or not 1 <= quality <= 100:
        raise OptionError(
            f"pictures need a side of 64 px or more and a quality from 1 to 100, got {max_side_px}, {quality}"
        )
    files = folders.files()
    detector = MtcnnDetector()
    kept: list[tuple[Any, ...]] = []
    without, damaged = [], []
    for number, (folder, path, label) in enumerate(files):
        name = (Path(folder.name) / path.relative_to(folder)).as_posix()
        if progress is not None:
            progress(name, number, len(files))
        try:
            with open_media(path) as media:
                found = [
                    _kept(*_shrunk(picture, face, max_side_px), label, name, quality)
                    for picture, face in _faces_of(media, detector, folders.frames_per_video)
                ]
        except MediaOpenError:
            damaged.append(name)
            continue
        kept += found
        if not found:
            without.append(name)
    if not kept:
        raise OptionError(
            f"no face was found in any of {len(files)} files ({len(damaged)} of them damaged); "
            "check that the folders hold pictures of faces of at least 60 px"
        )
    notes = []
    if damaged:
        notes.append(f"{len(damaged)} of {len(files)} files are damaged and were left out ({_listed(damaged)})")
    if without:
        notes.append(f"no face was found in {len(without)} of {len(files)} files ({_listed(without)})")
    pictures, boxes, landmarks, labels, sources, thumbnails = zip(*kept, strict=True)
    return PackedFaces(
        np.concatenate(pictures),
        np.cumsum([0, *map(len, pictures)], dtype=np.int64),
        np.stack(boxes),
        np.stack(landmarks),
        np.array(labels, dtype=np.int8),
        find_groups(sources, np.stack(thumbnails), identity_pattern=folders.identity_pattern),
        sources,
        tuple(notes),
    )


def _faces_of(
    media: Media, detector: FaceDetector, frames_per_video: int
) -> Iterator[tuple[NDArray[np.uint8], Face]]:
    """Yield each face with the part of the frame around it; of a still picture the surest face only."""
    for frame in media.frames(Sampling(num_frames=frames_per_video)):
        still = media.kind == "image"
        faces = _detect_in_still(frame.to_rgb(), detector)[:1] if still else faces_in(frame, detector)
        for face in faces:
            if face.landmarks_xy is not None:
                yield _surroundings(frame, face)


def _detect_in_still(image_rgb: NDArray[np.uint8], detector: FaceDetector) -> list[Face]:
    border = round(BORDER * min(image_rgb.shape[:2]))
    padded = cv2.copyMakeBorder(image_rgb, border, border, border, border, cv2.BORDER_CONSTANT)
    frame = ArrayFrame.from_rgb(np.asarray(padded, dtype=np.uint8))
    return [face.shifted(-border, -border) for face in faces_in(frame, detector)]


def _surroundings(frame: Frame, face: Face) -> tuple[NDArray[np.uint8], Face]:
    """Return the part of the frame around a face, and the face in it."""
    reach = SURROUNDINGS * max(face.width_px, face.height_px)
    x0, y0 = (max(0, int(value - reach)) for value in face.box_xyxy[:2])
    x1, y1 = (
        min(size, int(value + reach) + 1)
        for value, size in zip(face.box_xyxy[2:], (frame.width_px, frame.height_px), strict=True)
    )
    x0, y0 = min(x0, x1 - 1), min(y0, y1 - 1)
    return frame.region_rgb(x0, y0, x1, y1), face.shifted(-x0, -y0)


def _shrunk(picture: NDArray[np.uint8], face: Face, max_side_px: int) -> tuple[NDArray[np.uint8], Face]:
    height, width = picture.shape[:2]
    factor = max_side_px / max(width, height)
    if factor < 1:
        size_wh = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        face = face.scaled(size_wh[0] / width, size_wh[1] / height)
    return picture, face


def _kept(picture: NDArray[np.uint8], face: Face, label: int, name: str, quality: int) -> tuple[Any, ...]:
    """Return the picture as JPEG, box and landmarks, label and name, and a thumbnail."""
    assert face.landmarks_xy is not None
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    small = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
    thumbnail = np.asarray(small / np.float32(255), dtype=np.float32)
    return (encoded.astype(np.uint8).ravel(), face.box_xyxy, face.landmarks_xy, label, name, thumbnail)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
