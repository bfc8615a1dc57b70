"""Faces from sampled frame to sampled frame: followed where that is safe, else detected anew.

Detection searches the whole picture, which takes most of its time. Where the picture has hardly changed, faces are
near where they were, and a `FaceFollower` finds them again for a sixth of the time. A face that was not there before
is seen by detection only: at once where its coming changes the picture much, else at the latest `DETECT_EVERY - 1`
sampled frames, of `MAX_GAP_S` at most each, after it came.

This module decides; it runs no network of its own, and knows nothing of tracks, which are made of the finished faces.
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

# Pictures are compared small, so that grain and small movements do not count. On the average of all pixels, they
# differ by 15 to 25 of 255 levels after a cut; a turning camera changes 5 to 13 in a second, a speaker before a still
# camera 1 to 3 (six clips). The limit for one pixel of the small picture, 60 px of 1080p, is for faces that come.
_THUMBNAIL_WH = (32, 18)
_MAX_CHANGE = 5.0
_MAX_LOCAL_CHANGE = 50.0


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """What was seen in one picture.

    Attributes:
        faces: the faces, in pixels of the picture, largest confidence first.
        pts_seconds: its time.
        size_wh: its width and height in pixels.
        thumbnail: int16 ``[18, 32, 3]``, for comparison with the next one.
    """

    faces: tuple[Face, ...]
    pts_seconds: float
    size_wh: tuple[int, int]
    thumbnail: NDArray[np.int16]


def find_faces(
    detector: FaceDetector, image_rgb: NDArray[np.uint8], pts_seconds: float, before: Sighting | None
) -> Sighting:
    """Follow the faces of the picture before, or detect.

    Args:
        detector: follows only where it is a `FaceFollower`.
        image_rgb: uint8 ``[H, W, 3]`` RGB image of the size the detector asks for.
        pts_seconds: its time.
        before: what was seen in the sampled frame before; None asks for detection.

    Returns:
        The faces of this picture. When one of those before is lost, all are detected.
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
    # Where there was no face there is nothing to follow, and one may have come.
    if not before.faces or before.size_wh != size_wh or abs(pts_seconds - before.pts_seconds) > MAX_GAP_S:
        return False
    change = np.abs(thumbnail - before.thumbnail).mean(axis=2)
    return float(change.mean()) <= _MAX_CHANGE and float(change.max()) <= _MAX_LOCAL_CHANGE
