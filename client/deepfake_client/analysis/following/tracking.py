"""Follows faces through sampled frames, so each person gets a score of their own.

Samples may be 0.03 s or minutes apart, so no rule holds for all of them:

- Where a face went is judged by overlap (IoU, as in Bochinski et al., "High-Speed Tracking-by-Detection Without
  Using Image Information", AVSS 2017) and by how far its landmarks moved, for which more is allowed the more time
  has passed. After `LONG_GAP_S` place says nothing any more, and the colors of the face decide.
- A cut ends all tracks. A picture whose colors have little in common with the one in which a track was last seen is
  another shot: there the track goes on only where a face of the same colors is in the same place (a change of
  light, a jump cut). Each track is compared with its own last picture, not with the previous one, so it goes on
  when an edited video comes back to the shot, however often; and frames of other shots do not count as missed.

- A face that changes its colors at once, while the picture keeps its own, is another person in the same place: the
  track ends. Two people who change places before one background are noticed by smaller differences, since each looks
  more like the other's past than like its own.

Among all ways to give faces to tracks the one with the largest total affinity is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.following.appearance import Colors, likeness
from deepfake_client.analysis.following.assignment import assign
from deepfake_preprocess.faces.boxes import iou

MIN_IOU = 0.2
"""Overlap that continues a track. Lower than for consecutive frames, since samples are tenths of seconds apart."""
MIN_IOU_ACROSS_CUT = 0.4
"""Overlap that continues a track in a picture of other colors."""
MAX_SHIFT = 0.75
"""Without overlap: largest shift that continues a track at once, as a share of the box side."""
MAX_SPEED_PER_S = 0.5
"""What is allowed in addition for each second passed, in box sides."""
MAX_SIZE_RATIO = 1.6
"""Without overlap: largest change of the box side that continues a track."""
LONG_GAP_S = 3.0
"""From here on a face of the same colors and of like size may be anywhere in the picture."""
MAX_MISSED_FRAMES = 3
MAX_MISSED_S = 1.0
"""A track is closed when its shot was sampled more than this often, and for longer than this, without the face."""
MAX_OPEN_TRACKS = 64
"""When there are more, those not seen for longest are closed, so a film of a thousand shots does not cost a
thousandfold."""
SAME_SHOT = 0.7
"""Likeness of two pictures' colors: within six clips at least 0.78, across their cuts at most 0.65."""
SAME_FACE = 0.9
"""Likeness of two faces' colors: mostly above 0.92 for one person in one clip, mostly below 0.9 for two."""
OTHER_FACE = 0.7
"""Below this likeness two faces are not the same, wherever they are; within the clips at least 0.75."""
SAME_PLACE = 0.94
"""Likeness below which another face is in the place of the last; from sample to sample within 25 clips at least 0.97,
between their people mostly below 0.94. Of a track whose colors flicker, as many times its usual change as `JUMP`."""
JUMP = 4.0
UNLIKE = 5.0
"""What a lack of likeness costs: 0.2 of it as much as no overlap at all."""
SAME_PICTURE = 0.9
"""Likeness of two pictures' colors from which on the light is the same."""
SWAPPED = 0.04
"""By how much two faces together must be more like each other's past than like their own to have changed places."""


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One face of one frame, as far as tracking is concerned; boxes are in pixels, of frames of one size."""

    box_xyxy: NDArray[np.float32]
    landmarks_xy: NDArray[np.float32] | None = None
    colors: Colors | None = None


@dataclass(slots=True)
class _OpenTrack:
    track: int
    last: Detection
    pts_seconds: float
    picture: Colors | None
    missed: int = 0
    change: float = 0.0  # usual change of the face's colors: 1 - likeness, of late

    def least_likeness(self, picture: Colors | None, passed_s: float) -> float:
        """Return how alike the face in the same place must be to be the same."""
        if self.missed or passed_s >= LONG_GAP_S or not _alike(self.picture, picture, SAME_PICTURE, unknown=True):
            return OTHER_FACE  # much may have changed meanwhile
        return max(OTHER_FACE, min(SAME_PLACE, 1.0 - JUMP * self.change))

    def go_on(self, face: Detection, pts_seconds: float, picture: Colors | None) -> None:
        """Take the face of the next frame."""
        if self.last.colors is not None and face.colors is not None:
            self.change += (1.0 - likeness(self.last.colors, face.colors) - self.change) / 4
        self.last, self.pts_seconds, self.picture, self.missed = face, pts_seconds, picture, 0


class Tracker:
    """Assigns track ids to the faces of one frame after another."""

    def __init__(self) -> None:
        self._open: list[_OpenTrack] = []
        self._next_id = 0

    def update(self, faces: Sequence[Detection], *, pts_seconds: float, picture: Colors | None = None) -> list[int]:
        """Return the track id of each face of the next frame, which is not before the last one, in the order given.

        Without the frame's colors (`analysis.following.appearance.picture_colors`) no cut is seen.
        """
        same_shot = [_alike(track.picture, picture, SAME_SHOT, unknown=True) for track in self._open]
        affinity = np.zeros((len(self._open), len(faces)))
        for row, track in enumerate(self._open):
            for column, face in enumerate(faces):
                passed_s = pts_seconds - track.pts_seconds
                least = track.least_likeness(picture, passed_s)
                affinity[row, column] = _affinity(
                    track.last, face, passed_s=passed_s, same_shot=same_shot[row], least=least
                )
        ids = [-1] * len(faces)
        found: set[int] = set()
        pairs = assign(affinity)
        for row, column in pairs:
            if not any(self._swapped(row, column, faces, other) for other in pairs):
                ids[column] = self._open[row].track
                found.add(row)
        for row, column in pairs:
            if row in found:
                self._open[row].go_on(faces[column], pts_seconds, picture)
        for row, track in enumerate(self._open):
            if row not in found and same_shot[row]:
                track.missed += 1
        self._open = [
            track
            for track in self._open
            if track.missed <= MAX_MISSED_FRAMES or pts_seconds - track.pts_seconds <= MAX_MISSED_S
        ]
        for position, face in enumerate(faces):
            if ids[position] < 0:
                ids[position] = self._next_id
                self._open.append(_OpenTrack(self._next_id, face, pts_seconds, picture))
                self._next_id += 1
        self._open = sorted(self._open, key=lambda track: track.pts_seconds)[-MAX_OPEN_TRACKS:]
        return ids

    def _swapped(self, row: int, column: int, faces: Sequence[Detection], other: tuple[int, int]) -> bool:
        """Return whether two pairs of track and face look as if the people had changed places."""
        a, b, c, d = (
            self._open[row].last.colors,
            self._open[other[0]].last.colors,
            *(faces[number].colors for number in (column, other[1])),
        )
        if row == other[0] or a is None or b is None or c is None or d is None:
            return False
        return likeness(a, d) + likeness(b, c) - likeness(a, c) - likeness(b, d) > SWAPPED


def _affinity(a: Detection, b: Detection, *, passed_s: float, same_shot: bool, least: float) -> float:
    """Return how likely two faces are of one person, in (0, 3]; 0 where they must not be joined.

    `least` is how alike they must be in the same place.
    """
    overlap = iou(a.box_xyxy, b.box_xyxy)
    # Places come first: colors cost more, and most pairs of a crowd are far apart.
    if not same_shot:
        near = overlap >= MIN_IOU_ACROSS_CUT
        return 1.0 + overlap if near and _alike(a.colors, b.colors, SAME_FACE, unknown=False) else 0.0
    side_a, side_b = _side(a.box_xyxy), _side(b.box_xyxy)
    shift = _shift(a, b) / max(side_a, side_b)
    closeness = max(0.0, 1.0 - shift / (MAX_SHIFT + MAX_SPEED_PER_S * passed_s))
    if overlap >= MIN_IOU:
        if not _alike(a.colors, b.colors, least, unknown=True):
            return 0.0
        # Of two tracks that a face could go on with, the one that looks like it.
        unlike = 0.0 if a.colors is None or b.colors is None else 1.0 - likeness(a.colors, b.colors)
        return max(0.1, 1.0 + overlap + closeness - UNLIKE * unlike)
    if max(side_a, side_b) > MAX_SIZE_RATIO * min(side_a, side_b):
        return 0.0
    if passed_s >= LONG_GAP_S and _alike(a.colors, b.colors, SAME_FACE, unknown=False):
        return 0.1 + closeness
    if closeness == 0.0:
        return 0.0
    # With little known of where it went, a face that lost its place must not look different either.
    least = least if shift <= MAX_SHIFT else max(least, SAME_FACE)
    return closeness if _alike(a.colors, b.colors, least, unknown=True) else 0.0


def _alike(a: Colors | None, b: Colors | None, least: float, *, unknown: bool) -> bool:
    return unknown if a is None or b is None else likeness(a, b) >= least


def _side(box_xyxy: NDArray[np.float32]) -> float:
    return max(float(box_xyxy[2] - box_xyxy[0]), float(box_xyxy[3] - box_xyxy[1]), 1e-9)


def _shift(a: Detection, b: Detection) -> float:
    """Return how far the face moved, in pixels: its landmarks on average, or without them its center."""
    if a.landmarks_xy is not None and b.landmarks_xy is not None:
        moved = a.landmarks_xy - b.landmarks_xy
    else:
        moved = (a.box_xyxy.reshape(2, 2) - b.box_xyxy.reshape(2, 2)).mean(axis=0, keepdims=True)
    return float(np.hypot(moved[:, 0], moved[:, 1]).mean())
