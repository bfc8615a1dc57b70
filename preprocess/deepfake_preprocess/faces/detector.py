"""`Face`, what a detector finds, and the protocols that let another detector be used.

`FaceDetector` is all that is needed. A detector that is also a `FaceFollower` saves time on neighboring frames.
Detectors see small pictures: `faces_in` finds the faces of a frame at its full size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import atan2, degrees
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.media.frame import Frame

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Order of `Face.landmarks_xy`; left and right as seen in the picture when the head is upright."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One detected face, in pixels of the image it was found in.

    Attributes:
        box_xyxy: float32 ``[4]``: left, top, right, bottom. May extend beyond the image.
        confidence: the detector's confidence in [0, 1].
        landmarks_xy: float32 ``[5, 2]`` in the order of `LANDMARK_NAMES`, or None.
    """

    box_xyxy: NDArray[np.float32]
    confidence: float
    landmarks_xy: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.box_xyxy.shape != (4,):
            raise ValueError(f"box_xyxy must have shape (4,), got {self.box_xyxy.shape}")
        if self.landmarks_xy is not None and self.landmarks_xy.shape != (5, 2):
            raise ValueError(f"landmarks_xy must have shape (5, 2), got {self.landmarks_xy.shape}")

    def __repr__(self) -> str:
        box = ", ".join(f"{value:.1f}" for value in self.box_xyxy)
        return f"Face(box_xyxy=[{box}], confidence={self.confidence:.3f})"

    @property
    def width_px(self) -> float:
        """Width of the box."""
        return float(self.box_xyxy[2] - self.box_xyxy[0])

    @property
    def height_px(self) -> float:
        """Height of the box."""
        return float(self.box_xyxy[3] - self.box_xyxy[1])

    def scaled(self, factor_x: float, factor_y: float) -> Face:
        """Return the same face in an image that is `factor_x` times as wide and `factor_y` times as high."""
        factors = np.array([factor_x, factor_y], dtype=np.float32)
        landmarks = None if self.landmarks_xy is None else self.landmarks_xy * factors
        return Face(self.box_xyxy * np.tile(factors, 2), self.confidence, landmarks)

    def shifted(self, x_px: float, y_px: float) -> Face:
        """Return the same face in an image with `x_px` more columns to the left of it and `y_px` more rows above."""
        shift = np.array([x_px, y_px], dtype=np.float32)
        landmarks = None if self.landmarks_xy is None else self.landmarks_xy + shift
        return Face(self.box_xyxy + np.tile(shift, 2), self.confidence, landmarks)

    def turned(self, quarter_turns: int, size_wh: tuple[int, int]) -> Face:
        """Return the same face of a picture of that size in ``np.rot90(picture, quarter_turns)``."""
        face, (width, height) = self, size_wh
        for _ in range(quarter_turns % 4):
            left, top, right, bottom = face.box_xyxy
            box = np.array([top, width - right, bottom, width - left], dtype=np.float32)
            points = face.landmarks_xy
            if points is not None:
                points = np.stack([points[:, 1], width - points[:, 0]], axis=1).astype(np.float32)
            face, (width, height) = Face(box, face.confidence, points), (height, width)
        return face

    @property
    def roll_deg(self) -> float | None:
        """Slope of the eye line in degrees, positive when the right eye is lower; None where it is unknown."""
        if self.landmarks_xy is None or not np.isfinite(self.landmarks_xy[:2]).all():
            return None
        dx, dy = (float(value) for value in self.landmarks_xy[1] - self.landmarks_xy[0])
        return degrees(atan2(dy, dx)) if dx or dy else None


@runtime_checkable
class FaceDetector(Protocol):
    """Anything that finds faces. Implementations must be thread-safe."""

    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return the size at which the detector takes a frame of the given size.

        Scaling a planar frame while it is converted is cheaper than converting it first. The aspect ratio is kept
        up to rounding.
        """
        ...

    def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        """Find faces in each image.

        Args:
            images_rgb: uint8 ``[H, W, 3]`` RGB images, already scaled to `detection_size_wh`.

        Returns:
            One list of faces per image, in pixels of that image, largest confidence first.
        """
        ...


@runtime_checkable
class FaceFollower(FaceDetector, Protocol):
    """A detector that finds known faces again at a lower cost than by detection; see `faces.following`."""

    def follow(self, image_rgb: NDArray[np.uint8], faces: Sequence[Face]) -> list[Face | None]:
        """Find faces again in a picture that was taken shortly after.

        Args:
            image_rgb: uint8 ``[H, W, 3]`` RGB image, already scaled to `detection_size_wh`.
            faces: those found in a picture of the same size, in pixels of it.

        Returns:
            For each of `faces` the same face in `image_rgb`, or None where it is lost or uncertain.
        """
        ...


def faces_in(frame: Frame, detector: FaceDetector) -> list[Face]:
    """Detect the faces of a frame.

    Returns:
        The faces in pixels of the frame, largest confidence first.
    """
    image_rgb = detection_image(frame, detector)
    return faces_in_frame(frame, image_rgb, detector.detect([image_rgb])[0])


def detection_image(frame: Frame, detector: FaceDetector) -> NDArray[np.uint8]:
    """Return the frame as the detector takes it: uint8 ``[H, W, 3]`` RGB of `detection_size_wh`."""
    return frame.to_rgb(detector.detection_size_wh(frame.width_px, frame.height_px))


def faces_in_frame(frame: Frame, image_rgb: NDArray[np.uint8], faces: Iterable[Face]) -> list[Face]:
    """Return faces that were found in a frame's `detection_image` in pixels of the frame."""
    height, width = image_rgb.shape[:2]
    factor_x, factor_y = frame.width_px / width, frame.height_px / height
    return [face.scaled(factor_x, factor_y) for face in faces]
