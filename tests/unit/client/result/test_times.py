"""Times and shares in a form that people read."""

from __future__ import annotations

import pytest
from verdicts import verdict

from deepfake_client.result.times import clock, duration, stretch
from deepfake_client.result.words import agreeing_percent, side_words


@pytest.mark.parametrize(
    ("seconds", "exact", "whole"),
    [
        (0.0, "0.00 s", "0 s"), (59.996, "1:00.00", "1:00"), (61.25, "1:01.25", "1:01"),
        (3599.999, "1:00:00.00", "1:00:00"), (3725.5, "1:02:05.50", "1:02:06"), (-0.1, "0.00 s", "0 s"),
    ],
)  # fmt: skip
def test_a_time_has_minutes_and_hours_where_it_reaches_them(seconds: float, exact: str, whole: str) -> None:
    assert (clock(seconds), clock(seconds, 0)) == (exact, whole)


def test_a_stretch_has_its_unit_once_and_a_long_duration_is_told_in_full() -> None:
    assert [stretch(0.5, 2), stretch(59, 61), stretch(3599, 3601)] == [
        "0.50 to 2.00 s",
        "59.00 s to 1:01.00",
        "59:59.00 to 1:00:01.00",
    ]
    assert [duration(seconds) for seconds in (0.3, 59.999, 284.67, 3725)] == [
        "0.30 s",
        "1 min 0 s",
        "4 min 45 s",
        "1 h 2 min",
    ]


def test_all_frames_are_100_percent_and_fewer_are_not() -> None:
    assert [agreeing_percent(share) for share in (1.0, 0.998, 0.5)] == [100, 99, 50]


def test_a_side_is_that_of_the_face_s_score() -> None:
    first, second = verdict().tracks
    assert (side_words(first, 0.5), side_words(second, 0.5)) == ("100% above", "100% below")
