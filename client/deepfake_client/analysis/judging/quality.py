"""How much one face may count in its track's score: small, blurred, turned away and cut off faces say less.

Each concern has a ramp: up to one value a face counts in full, from another on it is left out. A face's weight is
the product of its ramps. The ramps start beyond what ordinary recordings show (measured, see docs/decisions.md),
so nothing is weighted down without need: manipulated faces are often softer than real ones, and leaving them
out for that would be a mistake.

Where the figures come from:

- Size: relative to the network's input, since an enlarged crop holds no more than the face had.
- Blur: the measure of Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual
  blur metric" (SPIE 6492, 2007): blurring changes a blurred picture less than a sharp one. It does not depend on
  contrast, and is taken on the face at one fixed size, so it asks whether detail of a face is there, not how
  many pixels it was drawn with.
- Pose: angles from the five landmarks under parallel projection, after Gee and Cipolla, "Determining the gaze of
  faces in images" (Image and Vision Computing, 1994). Profiles are understated (MTCNN's points shift less than the
  face turns), therefore the ramp ends at 65 degrees already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import atan, atan2, degrees, hypot

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import Concern
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.detector import Face

SIZE_RAMP = (0.25, 0.125)
"""Box side in pixels of the frame, as a share of the network's input side: 56 and 28 px for 224."""
BLUR_RAMP = (0.65, 0.78)
"""Crete's measure at 64 px; a Gaussian of 1/64 of the face side gives about 0.55, 1/32 0.7, 1/16 0.8."""
POSE_RAMP_DEG = (45.0, 65.0)
"""Largest of yaw, pitch and roll."""
INSIDE_RAMP = (0.8, 0.5)
"""Share of the box that is inside the picture."""
MIN_WEIGHT = 0.1
"""Below it a face is left out: a track must not be decided by what is hardly worth anything."""

_BLUR_SIDE_PX = 64
_BLUR_WINDOW_PX = 9
_MIN_CHANGE = 0.25  # from pixel to pixel, in gray levels
# The nose's tip as seen from the front, in units of the eyes' distance: how far it stands out, and its place
# between eyes (0) and mouth (1) with the change of that per unit of tan(pitch). From the commonly used model of
# six points: eyes at +-160 (pupils), 170, -135; mouth corners at -150, -125; nose at the origin.
_NOSE_DEPTH = 0.42
_NOSE_PLACE = 0.53
_NOSE_PLACE_SLOPE = 0.42


@dataclass(frozen=True, slots=True)
class Quality:
    """How much a face counts, in [0, 1], and why less than 1; and how blurred it is."""

    weight: float
    concerns: tuple[Concern, ...]
    blur: float = 0.0

    def without(self, concern: Concern) -> Quality:
        """Return that of a face that is left out, with one more reason."""
        return replace(self, weight=0.0, concerns=tuple(dict.fromkeys([*self.concerns, concern])))


def assess(face: Face, crop: NDArray[np.uint8], frame_wh: tuple[int, int], spec: ModelSpec) -> Quality:
    """Return how much a face may count; `crop` is what `deepfake_preprocess.faces.crop.crop_face` made of it."""
    side_px, blurred = max(face.width_px, face.height_px), blur(inner_face(crop, spec))
    factors = {
        Concern.TINY: _ramp(side_px / min(spec.input_size_wh), SIZE_RAMP),
        Concern.BLURRED: _ramp(blurred, BLUR_RAMP),
        Concern.EXTREME_POSE: _ramp(_largest_angle_deg(face, aligned=spec.crop.align == "eyes"), POSE_RAMP_DEG),
        Concern.CUT_OFF: _ramp(_share_inside(face, frame_wh), INSIDE_RAMP),
    }
    weight = float(np.prod(list(factors.values())))
    concerns = tuple(concern for concern, factor in factors.items() if factor < 1)
    return Quality(weight if weight >= MIN_WEIGHT else 0.0, concerns, blurred)


def blur(face_rgb: NDArray[np.uint8]) -> float:
    """Return from 0 (sharp, or plain) to 1 how blurred a face without margin is, uint8 ``[H, W, 3]`` RGB."""
    size_wh = (_BLUR_SIDE_PX, _BLUR_SIDE_PX)
    gray = cv2.cvtColor(face_rgb, cv2.COLOR_RGB2GRAY)
    small = np.asarray(cv2.resize(gray, size_wh, interpolation=cv2.INTER_AREA), dtype=np.float32)
    return max(_blur_along(small, axis=0), _blur_along(small, axis=1))


def inner_face(crop: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return the middle of a crop, without the margin that the spec puts around the face's box."""
    height, width = crop.shape[:2]
    side = max(1, round(min(height, width) / (1 + 2 * spec.crop.margin)))
    top, left = (height - side) // 2, (width - side) // 2
    return crop[top : top + side, left : left + side]


def pose_deg(landmarks_xy: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return yaw, pitch and roll in degrees of float32 ``[5, 2]`` landmarks; 0 for an upright face from the front.

    Yaw is positive when the nose points to the right of the picture, pitch when it points down, roll when the
    picture's right eye is the lower one. Points that no face has give 90.
    """
    left_eye, right_eye, nose, mouth_left, mouth_right = landmarks_xy.astype(np.float64)
    eyes, mouth = (left_eye + right_eye) / 2, (mouth_left + mouth_right) / 2
    across_x, across_y = right_eye - left_eye
    distance = hypot(across_x, across_y)
    roll = degrees(atan2(across_y, across_x))
    if distance == 0:
        return 90.0, 90.0, roll
    across, down = np.array([across_x, across_y]) / distance, np.array([-across_y, across_x]) / distance
    yaw = degrees(atan(float((nose - eyes) @ across) / distance / _NOSE_DEPTH))
    height = float((mouth - eyes) @ down)
    if height <= 0:
        return yaw, 90.0, roll
    place = float((nose - eyes) @ down) / height
    return yaw, degrees(atan((place - _NOSE_PLACE) / _NOSE_PLACE_SLOPE)), roll


def _largest_angle_deg(face: Face, *, aligned: bool) -> float:
    """Return the largest angle of a face; without landmarks 0. A crop that is turned upright has no roll."""
    if face.landmarks_xy is None or not np.isfinite(face.landmarks_xy).all():
        return 0.0
    yaw, pitch, roll = pose_deg(face.landmarks_xy)
    return max(abs(yaw), abs(pitch), 0.0 if aligned else abs(roll))


def _share_inside(face: Face, frame_wh: tuple[int, int]) -> float:
    left, top, right, bottom = (float(value) for value in face.box_xyxy)
    area = (right - left) * (bottom - top)
    if area <= 0:
        return 0.0
    width, height = min(right, frame_wh[0]) - max(left, 0.0), min(bottom, frame_wh[1]) - max(top, 0.0)
    return max(0.0, width) * max(0.0, height) / area


def _blur_along(gray: NDArray[np.float32], *, axis: int) -> float:
    window = (1, _BLUR_WINDOW_PX) if axis == 0 else (_BLUR_WINDOW_PX, 1)
    # At the border the blurred picture is made of invented pixels.
    edge = _BLUR_WINDOW_PX // 2
    inner = (slice(edge, -edge), slice(edge, -edge))
    change = np.abs(np.diff(gray[inner], axis=axis))
    # Nothing can be said of a plain surface; a face that is found in a photograph never is one.
    if float(change.mean()) < _MIN_CHANGE:
        return 0.0
    change_left = np.abs(np.diff(cv2.blur(gray, window)[inner], axis=axis))
    return 1.0 - float(np.maximum(change - change_left, 0).sum() / change.sum())


def _ramp(value: float, full_none: tuple[float, float]) -> float:
    """Return 1 up to the first value, 0 from the second on, and linear between; either may be the larger."""
    full, none = full_none
    return min(1.0, max(0.0, (value - none) / (full - none)))
