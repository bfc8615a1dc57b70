"""Faces keep their track while they move, cross and vanish for a moment."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepfake_client.tracking import MAX_MISSED_FRAMES, Tracker


def box(x: float, y: float, side: float = 100) -> np.ndarray:
    return np.array([x, y, x + side, y + side], dtype=np.float32)


def test_a_moving_face_keeps_its_track() -> None:
    tracker = Tracker()
    assert [tracker.update([box(40 * step, 10)]) for step in range(8)] == [[0]] * 8


def test_a_fast_face_that_no_longer_overlaps_keeps_its_track_when_near() -> None:
    tracker = Tracker()
    assert tracker.update([box(0, 0)]) == [0]
    assert tracker.update([box(50, 50, 110)]) == [0]


def test_two_faces_keep_their_tracks_whatever_their_order() -> None:
    tracker = Tracker()
    assert tracker.update([box(0, 0), box(500, 0)]) == [0, 1]
    assert tracker.update([box(510, 5), box(10, 5)]) == [1, 0]


def test_a_far_or_much_larger_face_is_a_new_track() -> None:
    tracker = Tracker()
    assert tracker.update([box(0, 0)]) == [0]
    assert tracker.update([box(400, 0)]) == [1]
    assert tracker.update([box(-300, -300, 700)]) != [0]


def test_a_track_outlives_a_short_gap_only() -> None:
    tracker = Tracker()
    assert tracker.update([box(0, 0)]) == [0]
    for _ in range(MAX_MISSED_FRAMES):
        assert tracker.update([]) == []
    assert tracker.update([box(0, 0)]) == [0]
    for _ in range(MAX_MISSED_FRAMES + 1):
        tracker.update([])
    assert tracker.update([box(0, 0)]) == [1]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 2000), st.floats(1, 500)), max_size=6),
        max_size=8,
    )
)
def test_no_frame_has_a_track_twice(frames: list[list[tuple[float, float, float]]]) -> None:
    tracker = Tracker()
    for frame in frames:
        ids = tracker.update([box(*face) for face in frame])
        assert len(ids) == len(frame)
        assert len(set(ids)) == len(ids)
