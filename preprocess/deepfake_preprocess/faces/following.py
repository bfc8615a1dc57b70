"""Faces from one sampled frame to the next: followed where that is safe, otherwise detected again.

Where the picture has hardly changed, a `FaceFollower` finds faces again in a sixth of the time. A new face is found
by detection only: at once where its appearance changes the picture much, otherwise at the latest `DETECT_EVERY - 1`
sampled frames, of at most `MAX_GAP_S` each, after it appeared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.faces.detector import Face, FaceDetector, FaceFollower

DETECT_EVERY: Final = 8
"""Sampled frames from one detection to the next, at most."""
MAX_GAP_S: Final = 1.0
"""Longest time, in seconds, over which faces are followed."""

# Pictures are compared at a small size, where grain and small movements do not count. Averaged over all pixels, they
# differ by 15 to 25 of 255 levels after a cut; a turning camera changes 5 to 13 in a second, a speaker in front of a
# still camera 1 to 3 (six clips). The limit for one pixel of the small picture, 60 px of 1080p, is for new faces.
_THUMBNAIL_WH = (32, 18)
_MAX_CHANGE = 5.0
_MAX_LOCAL_CHANGE = 50.0


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """The faces of one picture, in pixels of it, and what is needed to follow them in the next."""

    faces: tuple[Face, ...]  # largest confidence first
    pts_seconds: float
    size_wh: tuple[int, int]
    thumbnail: NDArray[np.int16]  # [18, 32, 3]


def find_faces(
    detector: FaceDetector, image_rgb: NDArray[np.uint8], pts_seconds: float, before: Sighting | None
) -> Sighting:
    """Find the faces of a uint8 ``[H, W, 3]`` RGB image of the size that the detector asks for.

    A `FaceFollower` follows those seen `before`, in the previous sampled frame. If one is lost, all are detected.
    """
    height, width = image_rgb.shape[:2]
    thumbnail = cv2.resize(image_rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA).astype(np.int16)
    faces: list[Face] | None = None
    if (
        before is not None
        and isinstance(detector, FaceFollower)
        and _may_follow(before, pts_seconds, thumbnail, (width, height))
    ):
        followed = detector.follow(image_rgb, before.faces)
        if all(face is not None for face in followed):
            faces = sorted((face for face in followed if face is not None), key=lambda face: -face.confidence)
    if faces is None:
        faces = detector.detect([image_rgb])[0]
    return Sighting(tuple(faces), pts_seconds, (width, height), thumbnail)


def _may_follow(before: Sighting, pts_seconds: float, thumbnail: NDArray[np.int16], size_wh: tuple[int, int]) -> bool:
    # Where there was no face, there is none to follow, and one may have appeared.
    if not before.faces or before.size_wh != size_wh or abs(pts_seconds - before.pts_seconds) > MAX_GAP_S:
        return False
    change = np.abs(thumbnail - before.thumbnail).mean(axis=2)
    return float(change.mean()) <= _MAX_CHANGE and float(change.max()) <= _MAX_LOCAL_CHANGE
