"""A face detector that needs no network weights and no faces. Import it as ``fixed_detector`` (see conftest.py)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.faces.detector import Face

LEFT, RIGHT = (0.1, 0.2, 0.4, 0.8), (0.6, 0.2, 0.9, 0.8)


class FixedDetector:
    """Finds faces at fixed places, given as shares of the frame; by frame count, so that faces can come and go."""

    def __init__(self, *boxes: tuple[float, float, float, float], until: int | None = None) -> None:
        self.threads: set[int] = set()
        self._boxes, self._until, self._calls = boxes, until, 0
        self._lock = threading.Lock()

    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        return max(1, width_px // 2), max(1, height_px // 2)

    def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        self.threads.add(threading.get_ident())
        found = []
        for image in images_rgb:
            with self._lock:
                self._calls += 1
                present = self._until is None or self._calls <= self._until
            height, width = image.shape[:2]
            size = np.array([width, height, width, height], dtype=np.float32)
            found.append([Face(np.array(box, np.float32) * size, 0.9) for box in self._boxes] if present else [])
        return found
