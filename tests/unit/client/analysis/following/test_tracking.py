"""Faces keep their track while they move, cross, vanish for a moment, and while the video cuts away and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from deepfake_client.analysis.following.assignment import assign
from deepfake_client.analysis.following.tracking import MAX_MISSED_FRAMES, Detection, Tracker

FACES = np.sqrt(np.eye(4, dtype=np.float32) * 0.97 + 0.01)
"""Colors of four faces that look nothing like each other."""
STUDIO, STREET = FACES[0], FACES[1]


def face(x: float, y: float = 0, side: float = 100, *, person: int | None = None, points: bool = False) -> Detection:
    box = np.array([x, y, x + side, y + side], dtype=np.float32)
    shares = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    landmarks = (shares * side + [x, y]).astype(np.float32) if points else None
    return Detection(box, landmarks, None if person is None else FACES[person])


class Following:
    """A tracker with a clock: each call is a frame, 0.3 s after the one before unless told otherwise."""

    def __init__(self, step_s: float = 0.3) -> None:
        self.tracker, self.now_s, self.step_s = Tracker(), 0.0, step_s

    def __call__(
        self, *faces: Detection, picture: np.ndarray | None = None, after_s: float | None = None
    ) -> list[int]:
        self.now_s += self.step_s if after_s is None else after_s
        return self.tracker.update(faces, pts_seconds=self.now_s, picture=picture)


def test_a_moving_face_keeps_its_track() -> None:
    follow = Following()
    assert [follow(face(40 * step, 10)) for step in range(8)] == [[0]] * 8


def test_a_fast_face_that_no_longer_overlaps_keeps_its_track_when_near() -> None:
    follow = Following()
    assert follow(face(0)) == [0]
    assert follow(face(50, 50, 110)) == [0]


def test_more_movement_is_allowed_in_more_time() -> None:
    for step_s, expected in ((0.04, [1]), (1.0, [0])):
        follow = Following(step_s)
        assert follow(face(0)) == [0]
        assert follow(face(105)) == expected


def test_two_faces_keep_their_tracks_whatever_their_order() -> None:
    follow = Following()
    assert follow(face(0), face(500)) == [0, 1]
    assert follow(face(510, 5), face(10, 5)) == [1, 0]


def test_the_best_assignment_of_all_is_taken_not_the_best_pair_first() -> None:
    follow = Following()
    assert follow(face(0), face(60)) == [0, 1]
    # Greedily the second track would take the face at 45, and the first would lose its own.
    assert follow(face(45), face(100)) == [0, 1]


def test_landmarks_tell_faces_apart_whose_boxes_overlap_alike() -> None:
    follow = Following()
    assert follow(face(0, points=True), face(0, 0, 140, points=True)) == [0, 1]
    assert follow(face(4, 4, 138, points=True), face(3, 0, 101, points=True)) == [1, 0]


def test_a_far_or_much_larger_face_is_a_new_track() -> None:
    follow = Following()
    assert follow(face(0)) == [0]
    assert follow(face(400)) == [1]
    assert follow(face(-300, -300, 700)) != [0]


def test_a_track_outlives_a_short_gap_only() -> None:
    follow = Following(step_s=0.5)
    assert follow(face(0)) == [0]
    for _ in range(MAX_MISSED_FRAMES):
        assert follow() == []
    assert follow(face(0)) == [0]
    for _ in range(MAX_MISSED_FRAMES + 1):
        follow()
    assert follow(face(0)) == [1]


def test_a_few_frames_missed_in_a_blink_do_not_end_a_track() -> None:
    follow = Following(step_s=1 / 30)
    follow(face(0))
    for _ in range(20):
        follow()
    assert follow(face(0)) == [0]


def test_a_cut_starts_a_new_track_even_in_the_same_place() -> None:
    follow = Following()
    assert follow(face(0, person=0), picture=STUDIO) == [0]
    assert follow(face(0, person=1), picture=STREET) == [1]


def test_a_change_of_light_is_no_cut_for_a_face_that_stays() -> None:
    follow = Following()
    assert follow(face(0, person=2), picture=STUDIO) == [0]
    assert follow(face(5, person=2), picture=STREET) == [0]
    assert follow(face(300, person=2), picture=STUDIO) == [1], "elsewhere, in a picture of other colors"


@pytest.mark.parametrize("step_s", [0.3, 120.0])
def test_an_edited_talk_has_one_track_for_each_person_however_often_it_cuts(step_s: float) -> None:
    follow = Following(step_s)
    for _ in range(10):
        assert follow(face(0, person=0), picture=STUDIO) == [0]
        for _ in range(5):
            assert follow(face(20, person=1), picture=STREET) == [1]


def test_minutes_apart_a_face_of_the_same_colors_may_be_anywhere() -> None:
    follow = Following(step_s=120)
    assert follow(face(0, person=0), face(300, person=1), picture=STUDIO) == [0, 1]
    assert follow(face(0, person=1), face(900, person=0), picture=STUDIO) == [1, 0]
    assert follow(face(600, person=2), picture=STUDIO) == [2]


def test_another_face_in_the_same_place_is_a_new_track() -> None:
    follow = Following()
    assert follow(face(0, person=0), picture=STUDIO) == [0]
    assert follow(face(0, person=1), picture=STUDIO) == [1]


def test_a_film_of_many_shots_stays_bounded() -> None:
    follow = Following()
    for number in range(200):
        follow(face(1000 * number))
    assert len(follow.tracker._open) <= 64
    assert follow(face(1000 * 199)) == [199]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 2000), st.floats(1, 500)), max_size=6),
        max_size=8,
    )
)
def test_no_frame_has_a_track_twice(frames: list[list[tuple[float, float, float]]]) -> None:
    follow = Following()
    for frame in frames:
        ids = follow(*(face(*item) for item in frame))
        assert len(ids) == len(frame)
        assert len(set(ids)) == len(ids)


@given(
    st.integers(0, 7).flatmap(
        lambda columns: st.lists(
            st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 2.7]), min_size=columns, max_size=columns), max_size=7
        )
    )
)
def test_the_assignment_is_as_good_as_scipys(table: Sequence[Sequence[float]]) -> None:
    affinity = np.array(table, dtype=np.float64).reshape(len(table), len(table[0]) if table else 0)
    pairs = assign(affinity)
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    assert sum(affinity[pair] for pair in pairs) == pytest.approx(affinity[rows, columns].sum())
    assert len({row for row, _ in pairs}) == len(pairs) == len({column for _, column in pairs})
    assert all(affinity[pair] > 0 for pair in pairs)


def blend(person: int, other: int, share: float) -> np.ndarray:
    """Colors between those of two faces: two people of like skin."""
    mixed = (1 - share) * FACES[person] + share * FACES[other]
    return np.asarray(mixed / np.linalg.norm(mixed), np.float32)


def looking(x: float, colors: np.ndarray) -> Detection:
    return Detection(face(x).box_xyxy, None, colors)


def test_another_person_in_the_same_place_before_one_background_is_a_new_track() -> None:
    follow = Following()
    for _ in range(5):
        assert follow(looking(0, blend(0, 1, 0.1)), picture=STUDIO) == [0]
    for _ in range(5):
        assert follow(looking(2, blend(0, 1, 0.6)), picture=STUDIO) == [1], "likeness 0.80"


def test_a_change_of_light_ends_no_track() -> None:
    follow = Following()
    dimmed = np.asarray(STUDIO + STREET, np.float32)
    for number in range(10):
        picture = STUDIO if number % 2 else dimmed / np.linalg.norm(dimmed)
        assert follow(looking(0, blend(0, 1, 0.1 if number % 2 else 0.5)), picture=picture) == [0]


def test_a_face_whose_colors_always_flicker_keeps_its_track() -> None:
    follow = Following()
    shares = [0.1, 0.2, 0.3, 0.42, 0.55, 0.42, 0.3, 0.42, 0.55, 0.7]
    assert {follow(looking(0, blend(0, 1, share)), picture=STUDIO)[0] for share in shares} == {0}


def test_two_people_of_like_skin_who_change_places_get_new_tracks() -> None:
    follow, ann, ben = Following(), blend(0, 1, 0.1), blend(0, 1, 0.35)
    assert 0.94 < float(ann @ ben) < 0.97
    for _ in range(5):
        assert follow(looking(0, ann), looking(400, ben), picture=STUDIO) == [0, 1]
    for _ in range(5):
        assert follow(looking(0, ben), looking(400, ann), picture=STUDIO) == [2, 3]
