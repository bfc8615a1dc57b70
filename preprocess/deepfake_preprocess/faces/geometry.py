"""Where in the frame a crop comes from, for `crop.crop_face`, and for pictures that go back.

Pixels are named by their centres: (0, 0) is the middle of the first pixel, of crop and frame alike. Never touches
the frame's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, floor, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.detector import Face


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a frame is cut out.

    Attributes:
        center: its middle (x, y), in pixels from the frame's corner.
        size_wh: its size in pixels of the frame.
        angle: by which it is turned, in radians, clockwise as seen.
    """

    center: tuple[float, float]
    size_wh: tuple[int, int]
    angle: float

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top pixel, where the cut is not turned."""
        x, y = (floor(middle - length / 2 + 0.5) for middle, length in zip(self.center, self.size_wh, strict=True))
        return x, y


@dataclass(frozen=True, slots=True, eq=False)
class CropGeometry:
    """The map between a crop and the frame it was cut out of.

    Attributes:
        to_frame: float64 ``[2, 3]``, from a crop's pixel (x, y, 1) to the frame's (x, y).
        crop_wh: size of the crop in pixels.
    """

    to_frame: NDArray[np.float64]
    crop_wh: tuple[int, int]

    def points_to_crop(self, points_xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return points ``[N, 2]`` of the frame in pixels of the crop; outside of it where the frame goes on."""
        turn, shift = self.to_frame[:, :2], self.to_frame[:, 2]
        return np.asarray((points_xy - shift) @ np.linalg.inv(turn).T, dtype=np.float64)

    def heatmap_to_frame(self, heatmap: NDArray[np.float32], frame_wh: tuple[int, int]) -> NDArray[np.float32]:
        """Lay a map over the crop back onto the frame.

        Args:
            heatmap: float32 ``[crop height, crop width]``.
            frame_wh: size of the frame in pixels.

        Returns:
            float32 ``[frame height, frame width]``, interpolated, and 0 where the frame was not cut out.
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
    """Return where `crop_face` cuts this face out; a test holds both together, pixel by pixel.

    Args:
        face: in pixels of the frame.
        frame_wh: size of the frame in pixels.
        spec: input size, margin and alignment of the model.

    Raises:
        ValueError: the face's box holds values that are not finite.
    """
    cut = place_cut(face, frame_wh, spec)
    (width, height), angle = cut.size_wh, cut.angle
    target = np.array(spec.input_size_wh)
    middle = (target - 1) / 2
    if angle == 0.0:
        corner = np.array(cut.corner)
        scale = np.diag([width / target[0], height / target[1]])
        # The cut's middle lies between pixels or on one; both sizes have theirs at (size - 1) / 2.
        return CropGeometry(
            np.column_stack([scale, corner + (np.array([width, height]) - 1) / 2 - scale @ middle]),
            spec.input_size_wh,
        )
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]) * (width / target[0])
    return CropGeometry(np.column_stack([turn, np.array(cut.center) - 0.5 - turn @ middle]), spec.input_size_wh)


def place_cut(face: Face, frame_wh: tuple[int, int], spec: ModelSpec) -> Cut:
    """Return the part of the frame that becomes the crop of a face.

    Raises:
        ValueError: the face's box holds values that are not finite.
    """
    if not np.isfinite(face.box_xyxy).all():
        raise ValueError(f"box_xyxy must be finite, got {face.box_xyxy.tolist()}")
    left, top, right, bottom = (float(value) for value in face.box_xyxy)
    scale = max(right - left, bottom - top) * (1 + 2 * spec.crop.margin) / min(spec.input_size_wh)
    # At most the size of the picture in each direction would be enough, were it not for off-centre faces; twice
    # bounds the memory that an absurd box can ask for.
    limit = 2 * max(frame_wh)
    width, height = (min(limit, max(1, round(length * scale))) for length in spec.input_size_wh)
    angle = _eye_angle(face) if spec.crop.align == "eyes" else 0.0
    return Cut(((left + right) / 2, (top + bottom) / 2), (width, height), angle)


def _eye_angle(face: Face) -> float:
    """Return the eye line's slope in radians, clockwise as seen; 0.0 where it is unknown."""
    if face.landmarks_xy is None or not np.isfinite(face.landmarks_xy[:2]).all():
        return 0.0
    dx, dy = (float(value) for value in face.landmarks_xy[1] - face.landmarks_xy[0])
    return atan2(dy, dx) if dx or dy else 0.0
