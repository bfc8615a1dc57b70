"""Where in the frame a crop comes from: for `crop.crop_face`, and to map results back to the frame.

Coordinates refer to pixel centers: (0, 0) is the middle of the first pixel, of crop and frame alike. Never touches
the frame's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, floor, hypot, radians, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.detector import Face

ROLLED_DEG = 20.0
"""A head rolled further is turned upright in every crop: networks trained on upright cuts have seen none like it.

Eight clips turned by 30 degrees: their scores moved by up to 0.66 without, by up to 0.09 with it; turned by 10, by up
to 0.19. Within clips heads are rolled by at most 20.
"""
_MIN_EYES_APART = 0.2  # in box sides; of a face in profile the eye line says nothing


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a frame that is cut out, in pixels of the frame."""

    center: tuple[float, float]  # (x, y) from the frame's corner
    size_wh: tuple[int, int]
    angle: float  # in radians, clockwise as seen

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top pixel, where the cut is not rotated."""
        x, y = (floor(middle - length / 2 + 0.5) for middle, length in zip(self.center, self.size_wh, strict=True))
        return x, y


@dataclass(frozen=True, slots=True, eq=False)
class CropGeometry:
    """The map between a crop and the frame that it was cut out of.

    Attributes:
        to_frame: float64 ``[2, 3]``, from a pixel (x, y, 1) of the crop to (x, y) of the frame.
        crop_wh: size of the crop in pixels.
    """

    to_frame: NDArray[np.float64]
    crop_wh: tuple[int, int]

    def points_to_crop(self, points_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return points ``[N, 2]`` of the frame in pixels of the crop; they may be outside of it."""
        rotation, shift = self.to_frame[:, :2], self.to_frame[:, 2]
        return np.asarray((points_xy - shift) @ np.linalg.inv(rotation).T, dtype=np.float64)

    def heatmap_to_frame(self, heatmap: NDArray[np.float32], frame_wh: tuple[int, int]) -> NDArray[np.float32]:
        """Map a heatmap of the crop back onto the frame.

        Args:
            heatmap: float32 ``[crop height, crop width]``.
            frame_wh: size of the frame in pixels.

        Returns:
            float32 ``[frame height, frame width]``, interpolated, and 0 outside the crop.
        """
        inside = np.ones(heatmap.shape, dtype=np.uint8)
        warped = cv2.warpAffine(
            heatmap, self.to_frame, frame_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        covered = cv2.warpAffine(
            inside, self.to_frame, frame_wh, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT
        )
        return np.asarray(warped * covered, dtype=np.float32)


def crop_geometry(face: Face, frame_wh: tuple[int, int], spec: ModelSpec) -> CropGeometry:
    """Return where `crop_face` cuts this face out; a test compares the two, pixel by pixel.

    Args:
        face: in pixels of the frame.
        frame_wh: size of the frame in pixels.
        spec: input size, margin and alignment of the model.

    Raises:
        ValueError: the face's box has values that are not finite.
    """
    cut = place_cut(face, frame_wh, spec)
    (width, height), angle = cut.size_wh, cut.angle
    target = np.array(spec.input_size_wh)
    middle = (target - 1) / 2
    if angle == 0.0:
        corner = np.array(cut.corner)
        scale = np.diag([width / target[0], height / target[1]])
        # The middle is between pixels or on one; for cut and crop it is at (size - 1) / 2.
        shift = corner + (np.array([width, height]) - 1) / 2 - scale @ middle
        return CropGeometry(np.column_stack([scale, shift]), spec.input_size_wh)
    rotation = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]) * (width / target[0])
    shift = np.array(cut.center) - 0.5 - rotation @ middle
    return CropGeometry(np.column_stack([rotation, shift]), spec.input_size_wh)


def place_cut(face: Face, frame_wh: tuple[int, int], spec: ModelSpec) -> Cut:
    """Return the part of the frame that becomes the crop of a face; `ValueError` for a box that is not finite."""
    if not np.isfinite(face.box_xyxy).all():
        raise ValueError(f"box_xyxy must be finite, got {face.box_xyxy.tolist()}")
    left, top, right, bottom = (float(value) for value in face.box_xyxy)
    scale = max(right - left, bottom - top) * (1 + 2 * spec.crop.margin) / min(spec.input_size_wh)
    # For a centered face the size of the picture would do; twice that bounds the memory that an absurd box can need.
    limit = 2 * max(frame_wh)
    width, height = (min(limit, max(1, round(length * scale))) for length in spec.input_size_wh)
    return Cut(((left + right) / 2, (top + bottom) / 2), (width, height), _angle(face, spec))


def _angle(face: Face, spec: ModelSpec) -> float:
    """Return by how much the cut is rotated, in radians, clockwise as seen; 0.0 where the eye line is unknown."""
    roll = face.roll_deg
    if roll is None or face.landmarks_xy is None:
        return 0.0
    if spec.crop.align == "eyes":
        return radians(roll)
    apart = hypot(*(face.landmarks_xy[1] - face.landmarks_xy[0]).tolist())
    is_rolled = abs(roll) > ROLLED_DEG and apart >= _MIN_EYES_APART * max(face.width_px, face.height_px)
    return radians(roll) if is_rolled else 0.0
