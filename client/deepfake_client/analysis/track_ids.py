"""Keeps the ids of tracks the same from one window of a live source to the next. Knows no server and no clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from deepfake_client.analysis.judging.scoring import Judgment
from deepfake_client.result.verdict import FrameResult


class StableIds:
    """Gives the tracks of overlapping judgments the ids that their faces had before.

    Every window is judged by itself, so its tracks are counted from 0 again. A track goes on under the id that most
    of its faces had in the window before; one with new faces only gets an id that was never used.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}
        self._next_id = 0

    def apply(self, judgment: Judgment) -> Judgment:
        """Return the judgment with lasting ids."""
        lasting = self._lasting(judgment.frames)
        self._known = {
            (frame.index, position): lasting[face.track]
            for frame in judgment.frames
            for position, face in enumerate(frame.faces)
        }
        deciding = judgment.deciding_track
        return replace(
            judgment,
            deciding_track=None if deciding is None else lasting[deciding],
            tracks=tuple(
                sorted(
                    (replace(track, track=lasting[track.track]) for track in judgment.tracks),
                    key=lambda track: track.track,
                )
            ),
            frames=tuple(
                replace(frame, faces=tuple(replace(face, track=lasting[face.track]) for face in frame.faces))
                for frame in judgment.frames
            ),
        )

    def _lasting(self, frames: tuple[FrameResult, ...]) -> dict[int, int]:
        votes: Counter[tuple[int, int]] = Counter()
        tracks: set[int] = set()
        for frame in frames:
            for position, face in enumerate(frame.faces):
                tracks.add(face.track)
                known = self._known.get((frame.index, position))
                if known is not None:
                    votes[face.track, known] += 1
        lasting: dict[int, int] = {}
        for (track, known), _ in votes.most_common():
            if track not in lasting and known not in lasting.values():
                lasting[track] = known
        for track in sorted(tracks - lasting.keys()):
            lasting[track] = self._next_id
            self._next_id += 1
        return lasting
