"""Which parts of a face a heatmap is on: connected areas, and the share of heat on eyes, nose, mouth and so on.

Parts are drawn around the five landmarks in the face's own directions (along the eye line, and across it), so they
turn and scale with it. Five points do not outline a face: borders are approximate, and forehead, cheeks, jaw and the
face's outline follow the proportions of an average adult face seen from the front.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.types import Region

PARTS = ("outside face", "forehead", "eyes", "nose", "cheeks", "mouth", "jaw")
"""Names of the parts; their places are the numbers in `part_map`."""

MATTERS_FROM = 0.5
"""An area begins where the heat is half of the map's largest, as for the localization boxes of CAM papers."""
SMALLEST_SHARE = 0.02
"""Areas with less of the total heat are not worth a name."""


def part_map(landmarks_xy: NDArray[np.float32], crop_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Return for each pixel of a crop which of `PARTS` it shows: uint8 ``[H, W]``.

    `landmarks_xy`, float32 ``[5, 2]`` in the crop's pixels, are in the order of `LANDMARK_NAMES`.
    """
    left_eye, right_eye, nose, mouth_left, mouth_right = landmarks_xy.astype(np.float64)
    eyes, mouth = (left_eye + right_eye) / 2, (mouth_left + mouth_right) / 2
    # The longer of the two measures: a turned head shortens the one across, a raised one the one along.
    drop = float(np.linalg.norm(mouth - eyes))
    width = max(float(np.linalg.norm(right_eye - left_eye)), 0.85 * drop, 1.0)
    down = (mouth - eyes) / drop if drop > 0 else np.array([0.0, 1.0])
    drop = max(drop, 0.85 * width)
    across = np.array([down[1], -down[0]])
    columns, rows = np.meshgrid(np.arange(crop_wh[0]), np.arange(crop_wh[1]))
    points = np.stack([columns, rows], axis=-1) - eyes
    # From the eye line: x in eye distances to the right, y in eye-to-mouth distances down.
    x, y = points @ across / width, points @ down / drop
    nose_x = (nose - eyes) @ across / width
    mouth_half = max(float(np.linalg.norm(mouth_right - mouth_left)) / width, 0.6) * 0.65
    parts = np.zeros((crop_wh[1], crop_wh[0]), dtype=np.uint8)
    inside = ((x - nose_x / 2) / 1.15) ** 2 + ((y - 0.35) / 1.4) ** 2 <= 1

    def paint(part: str, where: NDArray[np.bool_]) -> None:
        parts[inside & where] = PARTS.index(part)

    paint("forehead", y < -0.4)
    paint("eyes", (y >= -0.4) & (y < 0.25))
    paint("cheeks", (y >= 0.25) & (y < 1.0))
    paint("jaw", y >= 1.0)
    paint("nose", (y >= 0.1) & (y < 0.75) & (np.abs(x - nose_x * np.clip(y / 0.6, 0, 1)) < 0.28))
    paint("mouth", (y >= 0.75) & (y < 1.25) & (np.abs(x) < mouth_half))
    return parts


def find_regions(heatmap: NDArray[np.float32], parts: NDArray[np.uint8] | None) -> tuple[Region, ...]:
    """Return the connected areas of a heatmap ``[H, W]`` in [0, 1] that matter, the largest share first."""
    total = float(heatmap.sum())
    if total == 0.0:
        return ()
    hot = (heatmap >= MATTERS_FROM * float(heatmap.max())).astype(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    regions = []
    for label in range(1, count):
        heat = np.where(labels == label, heatmap, 0)
        share = float(heat.sum()) / total
        if share < SMALLEST_SHARE:
            continue
        left, top, width, height = (int(value) for value in boxes[label][:4])
        part = None if parts is None else max(part_shares(heat, parts).items(), key=lambda item: item[1])[0]
        regions.append(Region((left, top, left + width, top + height), share, part))
    return tuple(sorted(regions, key=lambda region: -region.share))


def part_shares(heatmap: NDArray[np.float32], parts: NDArray[np.uint8] | None) -> dict[str, float]:
    """Return the share of the heat on each of `PARTS`; they add up to 1. Empty without parts or heat."""
    total = float(heatmap.sum())
    if parts is None or total == 0.0:
        return {}
    sums = np.bincount(parts.ravel(), weights=heatmap.ravel().astype(np.float64), minlength=len(PARTS))
    return {part: float(value / sums.sum()) for part, value in zip(PARTS, sums, strict=True)}
