"""Whether a face ever moves by itself. A picture on a wall, a poster or a still on a screen never does.

Such a picture moves rigidly with what is around it, however the camera moves, pans, zooms or shakes: one affine map
(found by ECC; Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient
Maximization", PAMI 2008) takes the face and its surroundings from one frame to another, and what is left is noise. A
living face turns, speaks and blinks, or its head moves in front of what is behind it, and no such map explains that.

Pairs of frames far apart are compared, and what most pairs show counts: somebody who passes in front of the picture,
a moment of motion blur or a reflection does not bring it to life. Shadows and light are filtered out. The limits are
from about 50 clips: faces of 21 to 280 px, pictures sharp and blurred, five movements of the camera, added noise, and
compression from CRF 18 to 33 (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import Frame

Patch = NDArray[np.uint8]
"""A face in the middle of its surroundings, uint8 ``[80, 80]`` gray; 0 is outside the frame."""
Map = NDArray[np.float32]

MIN_PATCHES, MIN_STILL_PATCHES = 6, 10
"""Sightings without which nothing is said of a face's motion; and without which it is not called still."""
MAX_PAIRS = 12
"""Pairs compared; each takes 3 to 6 ms."""
MOVED, MOVED_PX = 0.45, 0.15
"""What no rigid motion explains, as a shift in pixels of the patch (1.1% of the face), and in addition in pixels of
the frame, which compression may move. Pictures: up to 0.57 at 26 px and 0.24 above 60 px."""
ABOVE_NOISE, MIN_SHIFT = 1.5, 0.2
"""What moves most, relative to the noise around: pictures up to 1.3; faces that shift less than that, by at
least 0.33, mostly above 2."""

_SIDE_PX, _FACE_PX, _BLOCK_PX = 80, 40, 8
_MIN_DETECTION_PX = 28  # smaller faces are cut out of the frame itself
_FINE, _COARSE = 1.5, 8.0  # details in between are compared: no pixel noise, no shadows
_MIN_NOISE = 0.25  # of 255 levels, squared: rounding alone
_MOST_PAIRS = 0.6
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 1e-4)


def patch_of(frame: Frame, detection_rgb: NDArray[np.uint8], face: Face) -> Patch:
    """Cut a face, in pixels of the frame, out with its surroundings, twice as wide as its box.

    That is done in `detection_rgb`, the frame in small (uint8 ``[H, W, 3]`` RGB), where it suffices.
    """
    scale = detection_rgb.shape[1] / frame.width_px
    image, box = detection_rgb, face.box_xyxy * scale
    if _side_px(box) < _MIN_DETECTION_PX:
        reach = 1.1 * _side_px(face.box_xyxy)
        x, y = ((face.box_xyxy[:2] + face.box_xyxy[2:]) / 2).tolist()
        left, top = (
            int(min(max(0, at - reach), size - 1)) for at, size in ((x, frame.width_px), (y, frame.height_px))
        )
        right, bottom = min(frame.width_px, int(x + reach) + 1), min(frame.height_px, int(y + reach) + 1)
        image = frame.region_rgb(left, top, max(right, left + 1), max(bottom, top + 1))
        box = face.box_xyxy - np.array([left, top, left, top], dtype=np.float32)
    gray = np.maximum(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1)
    shrink = max(1, int(_side_px(box) / _FACE_PX))
    if shrink > 1:
        size_wh = (max(1, gray.shape[1] // shrink), max(1, gray.shape[0] // shrink))
        box = box * (np.array([*size_wh, *size_wh]) / np.array([*gray.shape[::-1], *gray.shape[::-1]]))
        gray = np.asarray(cv2.resize(gray, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    zoom = _FACE_PX / _side_px(box)
    x, y = ((box[:2] + box[2:]) / 2).tolist()
    placed = np.array([[zoom, 0, _SIDE_PX / 2 - x * zoom], [0, zoom, _SIDE_PX / 2 - y * zoom]])
    return np.asarray(cv2.warpAffine(gray, placed, (_SIDE_PX, _SIDE_PX)), dtype=np.uint8)


def moves(patches: Sequence[Patch], side_px: float) -> bool | None:
    """Return whether a face of that size in the frame moves by itself; None where that cannot be said.

    `patches` are of one face, in order of time.
    """
    if len(patches) < MIN_PATCHES:
        return None
    lag = max(1, len(patches) // 4)
    starts = np.unique(np.linspace(0, len(patches) - lag - 1, MAX_PAIRS).round().astype(int))
    pairs = [_compare(patches[start], patches[start + lag]) for start in starts]
    compared = [pair for pair in pairs if pair is not None]
    if len(compared) * 2 < len(starts):
        return None
    changes, details = (np.stack(maps) for maps in zip(*compared, strict=True))
    seen = ~np.isnan(changes).all(axis=0)
    change = np.nanquantile(np.where(seen, changes, 0), _MOST_PAIRS, axis=0)
    face, near = _ellipse(1.0) & seen, _ellipse(2.0) & seen
    if not face.any():
        return None
    shift = np.sqrt(change[face].mean() / max(float(np.median(details, axis=0)[face].mean()), 1e-6))
    noise = max(float(np.quantile(change[near], 0.4)), _MIN_NOISE)
    stands_out = shift >= MIN_SHIFT and np.sqrt(np.quantile(change[face], 0.9) / noise) >= ABOVE_NOISE
    if stands_out or shift >= MOVED + MOVED_PX * _FACE_PX / side_px:
        return True
    return False if len(patches) >= MIN_STILL_PATCHES else None


def _side_px(box_xyxy: NDArray[np.floating]) -> float:
    return max(float(box_xyxy[2] - box_xyxy[0]), float(box_xyxy[3] - box_xyxy[1]), 1.0)


def _compare(patch: Patch, other: Patch) -> tuple[Map, Map] | None:
    """Return squared change and slope for each block of two patches, aligned; None where they do not align."""
    (details, inside), (moved, inside_moved) = _details(patch), _details(other)
    mask = ((_ellipse_px(1.45) & inside & inside_moved) * 255).astype(np.uint8)
    half_wh = (_SIDE_PX // 2, _SIDE_PX // 2)
    small, small_moved = (cv2.resize(image, half_wh, interpolation=cv2.INTER_AREA) for image in (details, moved))
    small_mask = cv2.resize(mask, half_wh, interpolation=cv2.INTER_NEAREST)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, found = cv2.findTransformECC(small, small_moved, start, cv2.MOTION_EUCLIDEAN, _CRITERIA, small_mask, 3)
        start = np.asarray(found, dtype=np.float32) * np.array([1, 1, 2], dtype=np.float32)
        _, warp = cv2.findTransformECC(details, moved, start, cv2.MOTION_AFFINE, _CRITERIA, mask, 1)
    except cv2.error:
        return None  # the two have nothing in common
    size_wh, backward = (_SIDE_PX, _SIDE_PX), cv2.WARP_INVERSE_MAP
    aligned = cv2.warpAffine(moved, warp, size_wh, flags=cv2.INTER_LINEAR | backward)
    covered = cv2.warpAffine(inside_moved.astype(np.uint8), warp, size_wh, flags=cv2.INTER_NEAREST | backward)
    valid = inside & (covered > 0)
    common = valid & _ellipse_px(1.45)
    gain = (details[common] * aligned[common]).sum() / max(float((aligned[common] ** 2).sum()), 1e-6)
    change = np.where(valid, details - gain * aligned, np.nan)
    slope_x, slope_y = (cv2.Sobel(details, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    return _blocks(change**2), _blocks(slope_x**2 + slope_y**2)


def _details(patch: Patch) -> tuple[Map, NDArray[np.bool_]]:
    """Return a patch without pixel noise and without slow changes of brightness, and where it is inside the frame."""
    inside = cv2.erode((patch > 0).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(bool)
    known = inside.astype(np.float32)
    fine, coarse = (
        cv2.GaussianBlur(patch * known, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(known, (0, 0), sigma), 1e-3)
        for sigma in (_FINE, _COARSE)
    )
    return np.asarray((fine - coarse) * known, dtype=np.float32), inside


def _blocks(values: Map) -> Map:
    count = _SIDE_PX // _BLOCK_PX
    return np.asarray(values.reshape(count, _BLOCK_PX, count, _BLOCK_PX).mean(axis=(1, 3)), dtype=np.float32)


@lru_cache
def _ellipse_px(factor: float) -> NDArray[np.bool_]:
    """Return the pixels of an upright ellipse around the face, `factor` times as wide as its box."""
    y, x = np.mgrid[:_SIDE_PX, :_SIDE_PX] - (_SIDE_PX - 1) / 2
    radius = factor * _FACE_PX / 2
    return np.asarray((x / radius) ** 2 + (y / (1.15 * radius)) ** 2 <= 1)


def _ellipse(factor: float) -> NDArray[np.bool_]:
    """Return the blocks of which more than half lies in `_ellipse_px`."""
    return _blocks(_ellipse_px(factor).astype(np.float32)) > 0.5
