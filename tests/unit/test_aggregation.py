"""Scores of faces become scores of tracks and of the video, by rules that have names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_client.aggregation import STRATEGIES, most_suspicious, score_tracks, strategy_named
from deepfake_client.verdict import FaceScore, FrameResult, Label
from deepfake_preprocess.errors import OptionError

MEAN = STRATEGIES["mean"]


def frames_of(*tracks: list[float | None]) -> tuple[FrameResult, ...]:
    """One list of probabilities per track, one entry per frame; None where the face is absent."""
    return tuple(
        FrameResult(
            index,
            index * 0.5,
            tuple(
                FaceScore(track, (0, 0, 9, 9), 1.0, scores[index])
                for track, scores in enumerate(tracks)
                if scores[index] is not None
            ),
        )
        for index in range(len(tracks[0]))
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.sampled_from(sorted(STRATEGIES)))
def test_every_strategy_stays_within_the_scores(scores: list[float], name: str) -> None:
    result = STRATEGIES[name](np.array(scores))
    if name == "vote":
        assert 0 <= result <= 1
    else:
        assert min(scores) - 2e-6 <= result <= max(scores) + 2e-6


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("mean", [0.0, 0.5, 1.0], 0.5),
        ("median", [0.1, 0.2, 0.9], 0.2),
        ("trimmed", [0.0] + [0.5] * 8 + [1.0], 0.5),
        ("top_k", [0.1, 0.2, 0.3, 0.9], 0.9),
        ("vote", [0.4, 0.6, 0.7, 0.8], 0.75),
        ("confident", [0.9] * 12 + [0.1] * 8, 0.9),
        ("confident", [0.1] * 19 + [0.9], 0.1),
        ("confident", [0.9, 0.1], 0.5),
        ("log_odds", [0.5, 0.5], 0.5),
    ],
)
def test_strategies_give_known_values(name: str, scores: list[float], expected: float) -> None:
    assert strategy_named(name)(np.array(scores)) == pytest.approx(expected)


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'max' is unknown; choose one of mean, median"):
        strategy_named("max")


def test_one_fake_face_among_real_ones_is_not_averaged_away() -> None:
    tracks = score_tracks(frames_of([0.05] * 8, [0.95] * 8, [0.1] * 8), strategy=MEAN, threshold=0.5)
    assert [track.label for track in tracks] == [Label.REAL, Label.FAKE, Label.REAL]
    suspect = most_suspicious(tracks)
    assert suspect is not None
    assert suspect.track == 1
    assert suspect.fake_probability == pytest.approx(0.95)


def test_a_face_seen_on_a_frame_or_two_of_a_video_does_not_decide() -> None:
    tracks = score_tracks(frames_of([0.1] * 10, [0.99, 0.99] + [None] * 8), strategy=MEAN, threshold=0.5)
    assert [track.counted for track in tracks] == [True, False]
    suspect = most_suspicious(tracks)
    assert suspect is not None
    assert suspect.track == 0


def test_a_short_track_does_not_count_beside_a_long_one() -> None:
    tracks = score_tracks(frames_of([0.1] * 100, [0.99] * 4 + [None] * 96), strategy=MEAN, threshold=0.5)
    assert [track.counted for track in tracks] == [True, False]


def test_one_frame_is_enough_for_an_image() -> None:
    assert most_suspicious(score_tracks(frames_of([0.7]), strategy=MEAN, threshold=0.5)) is not None


def test_no_track_counts_when_faces_are_too_rare() -> None:
    tracks = score_tracks(frames_of([0.7, 0.7] + [None] * 8), strategy=MEAN, threshold=0.5)
    assert most_suspicious(tracks) is None


def test_the_threshold_itself_is_fake() -> None:
    assert score_tracks(frames_of([0.5]), strategy=MEAN, threshold=0.5)[0].label is Label.FAKE


def test_faces_without_an_answer_are_left_out() -> None:
    frames = (
        FrameResult(0, 0.0, (FaceScore(0, (0, 0, 9, 9), 1.0, 0.9),)),
        FrameResult(1, 1.0, (FaceScore(0, (0, 0, 9, 9), 1.0, None),)),
    )
    (track,) = score_tracks(frames, strategy=MEAN, threshold=0.5)
    assert (track.num_frames, track.fake_probability) == (1, 0.9)
