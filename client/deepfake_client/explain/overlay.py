"""Lays heatmaps over pictures, which are uint8 ``[H, W, 3]`` RGB. OpenCV only; reads and writes no file."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import OptionError

Image = NDArray[np.uint8]

OVERLAY_STRENGTH = 0.6
"""How much of the picture the hottest pixel covers; cold pixels cover nothing, so the face stays visible."""


def overlay_heatmap(image: Image, heatmap: NDArray[np.float32]) -> Image:
    """Lay a heatmap ``[H, W]`` in [0, 1] over a picture of the same size; blue is little, red is most."""
    if image.shape[:2] != heatmap.shape:
        raise OptionError(
            f"picture and heatmap must have one size, got {list(image.shape[:2])} and {list(heatmap.shape)}"
        )
    heat = np.clip(heatmap, 0, 1)
    colors = heat_colors(heat).astype(np.float32)
    share = (OVERLAY_STRENGTH * np.sqrt(heat))[..., None]
    return np.asarray(np.rint(image * (1 - share) + colors * share), dtype=np.uint8)


def heat_colors(heat: NDArray[np.float32]) -> Image:
    """Return the color of each value in [0, 1]: a map ``[H, W]`` as a picture."""
    levels = np.asarray(np.rint(heat * 255), np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB), np.uint8)
