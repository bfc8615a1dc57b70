"""Faces from one sampled frame to the next: followed where that is safe, otherwise detected again.

Where the picture has hardly changed, a `FaceFollower` finds faces again in a sixth of the time. A new face is found
by detection only: at once where its appearance changes the picture much, otherwise at the latest `DETECT_EVERY - 1`
sampled frames, of at most `MAX_GAP_S` each, after it appeared.

Detectors know upright heads. Where they find none, or are not sure, the picture may lie on its side or upside down:
then the turned picture is tried as well.
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

# Of 29 clips the surest face of nearly every upright frame is above 0.99; in the same frames, turned, one frame in
# three has a "face" at all, mostly below 0.98 and with eyes one above the other.
_SURE = 0.99
_SURE_AFTER_TRIAL = (
    0.9  # where the picture before was turned in vain, three detections are saved unless a face is lost
)
_MIN_TURNED_CONFIDENCE = 0.98
_TIMES_AS_SURE = 3.0  # in odds
_MAX_UPRIGHT_ROLL_DEG = 35.0
_SURE_ROLL_DEG = 25.0


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """The faces of one picture, in pixels of it, and what is needed to follow them in the next."""

    faces: tuple[Face, ...]  # largest confidence first
    pts_seconds: float
    size_wh: tuple[int, int]
    thumbnail: NDArray[np.int16]  # [18, 32, 3]
    turned: bool = False  # found in the turned picture
    turned_in_vain: bool = False  # this picture, or one before it that its faces were looked for after, was no surer


def find_faces(
    detector: FaceDetector, image_rgb: NDArray[np.uint8], pts_seconds: float, before: Sighting | None
) -> Sighting:
    """Find the faces of a uint8 ``[H, W, 3]`` RGB image of the size that the detector asks for.

    A `FaceFollower` follows those seen `before`, in the previous sampled frame. If one is lost, all are detected.
    Where they are not found surely, the turned picture is tried as well.
    """
    height, width = image_rgb.shape[:2]
    thumbnail = cv2.resize(image_rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA).astype(np.int16)
    faces: list[Face] | None = None
    turned, in_vain = False, before is not None and before.turned_in_vain
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
        # Where there is nobody, there is mostly nobody in the next frames either.
        may_lie = bool(faces) or before is None or before.turned
        if may_lie and _surest(faces, _SURE_ROLL_DEG) < (_SURE_AFTER_TRIAL if in_vain else _SURE):
            faces, turned = _faces_of_turned(detector, image_rgb, faces)
            in_vain = not turned
    return Sighting(tuple(faces), pts_seconds, (width, height), thumbnail, turned, in_vain)


def _faces_of_turned(
    detector: FaceDetector, image_rgb: NDArray[np.uint8], faces: list[Face]
) -> tuple[list[Face], bool]:
    """Return the faces of the picture turned so that they are found most surely, in its own pixels, and if it was."""
    height, width = image_rgb.shape[:2]
    upright = min(_surest(faces, _MAX_UPRIGHT_ROLL_DEG), 0.9999)
    odds = _TIMES_AS_SURE * upright / (1 - upright)
    surest, turned = max(odds / (1 + odds), _MIN_TURNED_CONFIDENCE), False
    if any(face.landmarks_xy is None for face in faces):
        return faces, turned  # of such a detector nobody knows where up is
    for turns, size_wh in ((1, (height, width)), (2, (width, height)), (3, (height, width))):
        found = detector.detect([np.ascontiguousarray(np.rot90(image_rgb, turns))])[0]
        if _surest(found, _MAX_UPRIGHT_ROLL_DEG) > surest:
            surest, turned = _surest(found, _MAX_UPRIGHT_ROLL_DEG), True
            faces = [face.turned(-turns, size_wh) for face in found]
    return faces, turned


def _surest(faces: list[Face], max_roll_deg: float) -> float:
    """Return the largest confidence among upright faces; 0 without any."""
    return max((face.confidence for face in faces if abs(face.roll_deg or 0.0) <= max_roll_deg), default=0.0)


def _may_follow(before: Sighting, pts_seconds: float, thumbnail: NDArray[np.int16], size_wh: tuple[int, int]) -> bool:
    # Where there was no face, there is none to follow, and one may have appeared.
    if not before.faces or before.size_wh != size_wh or abs(pts_seconds - before.pts_seconds) > MAX_GAP_S:
        return False
    change = np.abs(thumbnail - before.thumbnail).mean(axis=2)
    return float(change.mean()) <= _MAX_CHANGE and float(change.max()) <= _MAX_LOCAL_CHANGE
