"""How alike two pictures or two faces look, by their colors: cheap, and blind to where things are.

Color histograms change little while things and camera move, and much at a cut (Swain and Ballard, "Color
indexing", IJCV 1991; J. Boreczky and L. Rowe, "Comparison of video shot boundary detection techniques", 1996).
This module decides nothing; `deepfake_client.analysis.following.tracking` does.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_PICTURE_SIDE_PX = 64
_FACE_SIDE_PX = 32

Colors = NDArray[np.float32]
"""Square roots of a histogram's shares, float32 ``[bins]`` of length 1."""


def picture_colors(image_rgb: NDArray[np.uint8]) -> Colors:
    """Return the colors of a uint8 ``[H, W, 3]`` RGB picture: 8 levels of luma and both chroma differences each."""
    # Chroma differences of natural pictures are around 128; the outer quarters would stay empty.
    return _histogram(image_rgb, _PICTURE_SIDE_PX, [0, 1, 2], [8, 8, 8], [0, 256, 64, 192, 64, 192])


def face_colors(face_rgb: NDArray[np.uint8]) -> Colors:
    """Return the colors of a face without margin: 32 levels of both chroma differences; brightness is left out."""
    return _histogram(face_rgb, _FACE_SIDE_PX, [1, 2], [32, 32], [0, 256, 0, 256])


def likeness(a: Colors, b: Colors) -> float:
    """Return the Bhattacharyya coefficient of two histograms, from 0 (nothing in common) to 1 (equal)."""
    return float(a @ b)


def _histogram(
    image_rgb: NDArray[np.uint8], side_px: int, channels: list[int], bins: list[int], ranges: list[float]
) -> Colors:
    step = max(1, min(image_rgb.shape[:2]) // side_px)
    thinned = np.ascontiguousarray(image_rgb[::step, ::step])
    luma_chroma = cv2.cvtColor(thinned, cv2.COLOR_RGB2YCrCb)
    histogram = cv2.calcHist([luma_chroma], channels, None, bins, ranges)
    if histogram.ndim == 2:
        # A skin tone on the border of two bins must not look like two skin tones.
        histogram = cv2.GaussianBlur(histogram, (0, 0), 1.0)
    return np.asarray(np.sqrt(histogram.ravel() / max(float(histogram.sum()), 1e-9)), dtype=np.float32)
