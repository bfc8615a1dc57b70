"""Face boxes, `box_xyxy`: left, top, right and bottom in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def iou(box_xyxy: NDArray[np.float32], other_xyxy: NDArray[np.float32]) -> float:
    """Return the intersection over union of two boxes ``[4]``, in [0, 1]; 0 where they do not overlap."""
    # Plain numbers: for a single pair numpy takes ten times as long.
    left, top, right, bottom = box_xyxy.tolist()
    other_left, other_top, other_right, other_bottom = other_xyxy.tolist()
    width = min(right, other_right) - max(left, other_left)
    height = min(bottom, other_bottom) - max(top, other_top)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    both = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    return float(shared / (both - shared))
