"""Follows faces through sampled frames, so that each person gets a score of their own.

Association is greedy on the best overlap first (IoU, as in Bochinski et al., "High-Speed Tracking-by-Detection
Without Using Image Information", AVSS 2017). Sampled frames may lie far apart, so a face that no longer overlaps
may still continue a track when it is close by and of like size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_IOU = 0.2
"""Overlap that continues a track. Lower than for consecutive frames, since samples are tenths of seconds apart."""
MAX_SHIFT = 0.75
"""Without overlap: largest shift of the centre, as a share of the box side, that continues a track."""
MAX_SIZE_RATIO = 1.6
"""Without overlap: largest change of the box side that continues a track."""
MAX_MISSED_FRAMES = 3
"""Sampled frames a track may miss before it is closed."""


@dataclass(slots=True)
class _OpenTrack:
    track: int
    box_xyxy: NDArray[np.float32]
    missed: int = 0


class Tracker:
    """Assigns track ids to the faces of one frame after another.

    ::

        tracker = Tracker()
        ids = tracker.update(boxes_xyxy)      # one id per face of this frame
    """

    def __init__(self) -> None:
        self._open: list[_OpenTrack] = []
        self._next_id = 0

    def update(self, boxes_xyxy: Sequence[NDArray[np.float32]]) -> list[int]:
        """Return the track id of each face of the next frame, in the order given.

        Args:
            boxes_xyxy: one float ``[4]`` box per face, in pixels of the frame; the frames must share one size.
        """
        ids = [-1] * len(boxes_xyxy)
        if self._open and len(boxes_xyxy):
            affinity = _affinity(np.stack([track.box_xyxy for track in self._open]), np.stack(list(boxes_xyxy)))
            while True:
                row, column = divmod(int(affinity.argmax()), affinity.shape[1])
                if affinity[row, column] <= 0.0:
                    break
                matched = self._open[row]
                matched.box_xyxy, matched.missed = boxes_xyxy[column], -1
                ids[column] = matched.track
                affinity[row, :] = affinity[:, column] = 0.0
        for track in self._open:
            track.missed += 1
        self._open = [track for track in self._open if track.missed <= MAX_MISSED_FRAMES]
        for position, box in enumerate(boxes_xyxy):
            if ids[position] < 0:
                ids[position] = self._next_id
                self._open.append(_OpenTrack(self._next_id, box))
                self._next_id += 1
        return ids


def _affinity(tracks: NDArray[np.float32], faces: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``[tracks, faces]`` affinities: 1 + IoU for overlapping boxes, (0, 1] for near ones, else 0."""
    a, b = tracks[:, None, :].astype(np.float64), faces[None, :, :].astype(np.float64)
    overlap_wh = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    overlap = overlap_wh.prod(axis=-1)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    iou = overlap / np.maximum(size_a.prod(axis=-1) + size_b.prod(axis=-1) - overlap, 1e-9)
    side_a, side_b = (np.maximum(size.max(axis=-1), 1e-9) for size in (size_a, size_b))
    centre_shift = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    shift = np.hypot(centre_shift[..., 0], centre_shift[..., 1]) / np.maximum(side_a, side_b)
    ratio = np.maximum(side_a / side_b, side_b / side_a)
    near = np.where((shift <= MAX_SHIFT) & (ratio <= MAX_SIZE_RATIO), 1.0 - shift, 0.0)
    return np.asarray(np.where(iou >= MIN_IOU, 1.0 + iou, near))
