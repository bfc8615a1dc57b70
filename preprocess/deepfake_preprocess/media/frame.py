"""`Frame`: one picture of a video, with its time, converted to RGB only when needed and only as large as needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Frame(ABC):
    """One upright picture (rotation metadata applied).

    Attributes:
        index: position in the decoded stream, or among the frames that an application passed in; from 0.
        pts_seconds: presentation time from the start of the stream, in seconds; 0.0 for an image.
        width_px: width after rotation.
        height_px: height after rotation.
    """

    index: int
    pts_seconds: float
    width_px: int
    height_px: int

    @abstractmethod
    def to_rgb(self, size_wh: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the picture as uint8 ``[H, W, 3]`` RGB, C-contiguous, scaled to `size_wh` if given."""

    def region_rgb(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Return a part of the full-resolution picture, without converting the rest where that is possible.

        Args:
            left: first column, in [0, right).
            top: first row, in [0, bottom).
            right: column after the last, at most `width_px`.
            bottom: row after the last, at most `height_px`.

        Returns:
            uint8 ``[bottom - top, right - left, 3]`` RGB, C-contiguous; a slice of `to_rgb`.

        Raises:
            ValueError: the region is empty or extends beyond the picture.
        """
        self._check_region(left, top, right, bottom)
        return np.ascontiguousarray(self.to_rgb()[top:bottom, left:right])

    def _check_region(self, left: int, top: int, right: int, bottom: int) -> None:
        if not (0 <= left < right <= self.width_px and 0 <= top < bottom <= self.height_px):
            raise ValueError(
                f"region must be a part of {self.width_px}x{self.height_px} pixels, "
                f"got columns {left} to {right} and rows {top} to {bottom}"
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(index={self.index}, pts_seconds={self.pts_seconds:.3f}, "
            f"size={self.width_px}x{self.height_px})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ArrayFrame(Frame):
    """A frame that is already an RGB array (an image, or a frame that an application passed in)."""

    image_rgb: NDArray[np.uint8]

    @classmethod
    def from_rgb(cls, image_rgb: NDArray[np.uint8], *, index: int = 0, pts_seconds: float = 0.0) -> ArrayFrame:
        """Wrap a uint8 ``[H, W, 3]`` RGB array.

        Raises:
            ValueError: the array has another shape or dtype.
        """
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 [H, W, 3] RGB, got {image_rgb.dtype} {list(image_rgb.shape)}")
        height, width = image_rgb.shape[:2]
        return cls(index, pts_seconds, width, height, image_rgb)

    def to_rgb(self, size_wh: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """See `Frame.to_rgb`; shrinks with area averaging."""
        if size_wh is None or size_wh == (self.width_px, self.height_px):
            return np.ascontiguousarray(self.image_rgb)
        resized = cv2.resize(self.image_rgb, size_wh, interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)
