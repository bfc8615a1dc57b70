"""From a face in a frame to the network's input: one uint8 RGB crop, as the model's spec says.

The cut is taken from the full-resolution frame, of which only the needed part is converted to RGB. Training code must
share each of these choices, or scores mean nothing:

- The cut is centered on the box, and its shorter side is the box's longer side times ``1 + 2 * margin``. For a
  network with a square input it is a square; for another, the longer side follows the input's aspect ratio, and a
  face is never stretched.
- Upright cuts are aligned to whole pixels. Outside the picture they are black.
- Shrinking averages (`INTER_AREA`, no aliasing), enlarging interpolates (`INTER_LINEAR`). A rotated cut is averaged
  down by the whole part of the scale and interpolated for the rest, in one step with the rotation.
- ``align: eyes`` rotates the cut about the center of the box until the eye line is level; so does ``none`` for a head
  rolled by more than `geometry.ROLLED_DEG`. Without landmarks, or with
  both eyes in one place, the cut stays upright.
"""

from __future__ import annotations

from math import ceil, cos, floor, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.geometry import place_cut
from deepfake_preprocess.media.frame import Frame

_MAX_CUT_PX = 8192
"""Longest side of a cut before it is shrunk for the network: a box far longer than wide is mostly black around it."""


def crop_face(frame: Frame, face: Face, spec: ModelSpec) -> NDArray[np.uint8]:
    """Cut one face out of a frame.

    Args:
        frame: the full-resolution frame.
        face: in pixels of that frame (see `Face.scaled` after detection on a smaller picture).
        spec: input size, margin and alignment of the model.

    Returns:
        uint8 ``[input_height_px, input_width_px, 3]`` RGB, C-contiguous.

    Raises:
        ValueError: the face's box holds values that are not finite.
    """
    place = place_cut(face, (frame.width_px, frame.height_px), spec)
    target_wh = spec.input_size_wh
    if place.angle != 0.0:
        return _rotated_cut(frame, place.center, place.size_wh, target_wh, place.angle)
    cut = _upright_cut(frame, *place.corner, *place.size_wh)
    if cut.shape[1::-1] == target_wh:
        return cut
    interpolation = cv2.INTER_AREA if cut.shape[1] > target_wh[0] else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(cut, target_wh, interpolation=interpolation), dtype=np.uint8)


def _upright_cut(frame: Frame, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return a part of the frame, black outside of it; averaged down where a side is above `_MAX_CUT_PX`."""
    x0, x1 = max(0, left), min(frame.width_px, left + width)
    y0, y1 = max(0, top), min(frame.height_px, top + height)
    factor = ceil(max(width, height) / _MAX_CUT_PX)
    cut_wh = (ceil(width / factor), ceil(height / factor))
    if x0 >= x1 or y0 >= y1:
        return np.zeros((*cut_wh[::-1], 3), dtype=np.uint8)
    region = frame.region_rgb(x0, y0, x1, y1)
    if factor > 1:
        size_wh = (ceil((x1 - x0) / factor), ceil((y1 - y0) / factor))
        region = np.asarray(cv2.resize(region, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if region.shape[1::-1] == cut_wh:
        return region
    cut = np.zeros((*cut_wh[::-1], 3), dtype=np.uint8)
    y, x = (y0 - top) // factor, (x0 - left) // factor
    rows, columns = min(len(region), len(cut) - y), min(region.shape[1], cut.shape[1] - x)
    cut[y : y + rows, x : x + columns] = region[:rows, :columns]
    return cut


def _rotated_cut(
    frame: Frame, center: tuple[float, float], cut_wh: tuple[int, int], target_wh: tuple[int, int], angle: float
) -> NDArray[np.uint8]:
    width, height = cut_wh
    cosine, sine = cos(angle), sin(angle)
    reach_x = (abs(cosine) * width + abs(sine) * height) / 2
    reach_y = (abs(sine) * width + abs(cosine) * height) / 2
    left, top = floor(center[0] - reach_x) - 1, floor(center[1] - reach_y) - 1
    # Averaged down by a whole factor first: the rotation interpolates between four pixels, so it may shrink by less
    # than two only.
    scale = width / target_wh[0]
    factor = max(1, int(scale))
    columns = ceil((center[0] + reach_x + 1 - left) / factor)
    rows = ceil((center[1] + reach_y + 1 - top) / factor)
    region = _upright_cut(frame, left, top, columns * factor, rows * factor)
    if region.shape[1::-1] != (columns, rows):
        region = np.asarray(cv2.resize(region, (columns, rows), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    # Maps pixel centers of the crop to those of the region; the center of a pixel is half a pixel inside it.
    rotation = np.array([[cosine, -sine], [sine, cosine]]) * (scale / factor)
    middle = np.array([center[0] - left, center[1] - top]) / factor - 0.5
    shift = middle - rotation @ np.array([target_wh[0] / 2 - 0.5, target_wh[1] / 2 - 0.5])
    to_region = np.column_stack([rotation, shift])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(region, to_region, target_wh, flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return np.ascontiguousarray(crop, dtype=np.uint8)
