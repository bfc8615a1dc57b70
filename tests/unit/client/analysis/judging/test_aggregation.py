"""Scores of faces become scores of tracks and of the video, by rules that have names."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_client import AGGREGATIONS, AnalyzeOptions
from deepfake_client.analysis.judging.aggregation import STRATEGIES, score_tracks
from deepfake_client.result.verdict import FaceScore, FrameResult, Label
from deepfake_preprocess.errors import OptionError

MEAN = STRATEGIES["mean"]


def frames_of(*tracks: list[float | None], weights: list[float] | None = None) -> tuple[FrameResult, ...]:
    """One list of probabilities per track, one entry per frame; None where the face is absent."""
    return tuple(
        FrameResult(
            index,
            index * 0.5,
            tuple(
                FaceScore(track, (0, 0, 9, 9), 1.0, scores[index], weights[index] if weights else 1.0)
                for track, scores in enumerate(tracks)
                if scores[index] is not None
            ),
        )
        for index in range(len(tracks[0]))
    )


WEIGHTED = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1)), min_size=1, max_size=50)
NAMES = st.sampled_from(sorted(STRATEGIES))


def columns(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in points]), np.array([weight for _, weight in points])


@given(WEIGHTED, NAMES)
def test_every_strategy_stays_within_the_scores(points: list[tuple[float, float]], name: str) -> None:
    scores, weights = columns(points)
    result = STRATEGIES[name](scores, weights)
    assert 0 <= result <= 1
    if name != "vote":
        assert min(scores) - 2e-6 <= result <= max(scores) + 2e-6


@given(WEIGHTED, NAMES, st.randoms(use_true_random=False))
def test_order_does_not_matter(points: list[tuple[float, float]], name: str, random: Random) -> None:
    shuffled = random.sample(points, len(points))
    assert STRATEGIES[name](*columns(points)) == pytest.approx(STRATEGIES[name](*columns(shuffled)), abs=1e-9)


@given(WEIGHTED, NAMES)
def test_a_face_of_weight_zero_takes_no_part(points: list[tuple[float, float]], name: str) -> None:
    scores, weights = columns(points)
    padded = np.append(scores, [0.0, 1.0]), np.append(weights, [0.0, 0.0])
    assert STRATEGIES[name](*padded) == pytest.approx(STRATEGIES[name](scores, weights), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), NAMES)
def test_weights_of_one_are_no_weights(values: list[float], name: str) -> None:
    scores = np.array(values)
    assert STRATEGIES[name](scores, np.ones(len(scores))) == STRATEGIES[name](scores)


@given(WEIGHTED, NAMES, st.floats(0.2, 5))
def test_only_the_weights_proportions_matter(points: list[tuple[float, float]], name: str, factor: float) -> None:
    scores, weights = columns(points)
    if name != "confident":  # it counts frames
        expected = STRATEGIES[name](scores, weights)
        assert STRATEGIES[name](scores, weights * factor) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4)), min_size=1, max_size=20), NAMES)
def test_a_weight_is_a_number_of_frames(points: list[tuple[float, int]], name: str) -> None:
    scores, counts = columns(points)
    repeated = np.repeat(scores, counts.astype(int))
    assert STRATEGIES[name](scores, counts) == pytest.approx(STRATEGIES[name](repeated), abs=1e-9)


@given(st.lists(st.sampled_from([0.05, 0.15, 0.2, 0.5, 0.8, 0.85, 0.99]), min_size=1, max_size=40))
def test_confident_is_the_dfdc_winners_rule(values: list[float]) -> None:
    def original(pred: np.ndarray, t: float = 0.8) -> float:  # kernel_utils.confident_strategy, without its 0.5
        sz = len(pred)
        fakes = np.count_nonzero(pred > t)
        if fakes > sz // 2.5 and fakes > 11:
            return float(np.mean(pred[pred > t]))
        if np.count_nonzero(pred < 0.2) > 0.9 * sz:
            return float(np.mean(pred[pred < 0.2]))
        return float(np.mean(pred))

    assert STRATEGIES["confident"](np.array(values)) == pytest.approx(original(np.array(values)), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_plain_median_and_mean_are_numpys(values: list[float]) -> None:
    assert STRATEGIES["median"](np.array(values)) == pytest.approx(np.median(values), abs=1e-12)
    assert STRATEGIES["mean"](np.array(values)) == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("mean", [1, 1, 0.5], 0.58),
        ("median", [1, 1, 0.5], 0.5),
        ("median", [0.1, 0.1, 1], 0.9),
        ("vote", [1, 0.5, 0.5], 0.5),
    ],
)
def test_faces_count_by_their_weight(name: str, weights: list[float], expected: float) -> None:
    assert STRATEGIES[name](np.array([0.5 if name != "vote" else 0.1, 0.5, 0.9]), np.array(weights)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("mean", [0.0, 0.5, 1.0], 0.5),
        ("median", [0.1, 0.2, 0.9], 0.2),
        ("trimmed", [0.0] + [0.5] * 8 + [1.0], 0.5),
        ("trimmed", [0.0, 0.5, 1.0, 0.5, 0.5], 0.5),
        ("top_k", [0.1, 0.2, 0.3, 0.9], 0.9),
        ("top_k", [0.1, 0.3, 0.9, 0.2, 0.1, 0.6], 0.8),
        ("vote", [0.4, 0.6, 0.7, 0.8], 0.75),
        ("confident", [0.9] * 12 + [0.1] * 8, 0.9),
        ("confident", [0.1] * 19 + [0.9], 0.1),
        ("confident", [0.9, 0.1], 0.5),
        ("log_odds", [0.5, 0.5], 0.5),
    ],
)
def test_strategies_give_known_values(name: str, scores: list[float], expected: float) -> None:
    assert STRATEGIES[name](np.array(scores)) == pytest.approx(expected)


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    assert tuple(STRATEGIES) == AGGREGATIONS
    with pytest.raises(OptionError, match=r"`aggregation` is 'max'; allowed: mean, median"):
        AnalyzeOptions(aggregation="max")


def test_one_fake_face_among_real_ones_is_not_averaged_away() -> None:
    tracks = score_tracks(frames_of([0.05] * 8, [0.95] * 8, [0.1] * 8), strategy=MEAN, threshold=0.5)
    assert [track.label for track in tracks] == [Label.REAL, Label.FAKE, Label.REAL]
    assert tracks[1].fake_probability == pytest.approx(0.95)


def test_a_face_seen_on_a_frame_or_two_of_a_video_does_not_decide() -> None:
    tracks = score_tracks(frames_of([0.1] * 10, [0.99, 0.99] + [None] * 8), strategy=MEAN, threshold=0.5)
    assert [track.counted for track in tracks] == [True, False]


def test_a_short_track_does_not_count_beside_a_long_one() -> None:
    tracks = score_tracks(frames_of([0.1] * 100, [0.99] * 4 + [None] * 96), strategy=MEAN, threshold=0.5)
    assert [track.counted for track in tracks] == [True, False]


def test_one_frame_is_enough_for_an_image() -> None:
    assert score_tracks(frames_of([0.7]), strategy=MEAN, threshold=0.5)[0].counted


def test_no_track_counts_when_faces_are_too_rare() -> None:
    tracks = score_tracks(frames_of([0.7, 0.7] + [None] * 8), strategy=MEAN, threshold=0.5)
    assert not any(track.counted for track in tracks)


def test_the_threshold_itself_is_fake() -> None:
    assert score_tracks(frames_of([0.5]), strategy=MEAN, threshold=0.5)[0].label is Label.FAKE


def test_faces_without_an_answer_are_left_out() -> None:
    frames = (
        FrameResult(0, 0.0, (FaceScore(0, (0, 0, 9, 9), 1.0, 0.9),)),
        FrameResult(1, 1.0, (FaceScore(0, (0, 0, 9, 9), 1.0, None),)),
    )
    (track,) = score_tracks(frames, strategy=MEAN, threshold=0.5)
    assert (track.num_frames, track.fake_probability) == (1, 0.9)


def test_faces_that_are_left_out_take_no_part_in_a_track() -> None:
    (track,) = score_tracks(
        frames_of([0.9, 0.1, 0.9, 0.1, 0.9, 0.9], weights=[1, 0, 1, 0, 1, 1]), strategy=MEAN, threshold=0.5
    )
    assert track.fake_probability == pytest.approx(0.9)
    assert track.num_frames == 6
    assert track.counted
    assert track.consistency.agreeing_share == 1
    assert track.consistency.score_variance == pytest.approx(0)
    assert track.consistency.longest_run == 4


def test_a_track_of_poor_faces_alone_has_a_score_and_does_not_count() -> None:
    (track,) = score_tracks(frames_of([0.9] * 8, weights=[0] * 8), strategy=MEAN, threshold=0.5)
    assert track.fake_probability == pytest.approx(0.9)
    assert not track.counted


def test_too_few_faces_that_count_do_not_make_a_track_count() -> None:
    (track,) = score_tracks(frames_of([0.9] * 8, weights=[1, 1] + [0] * 6), strategy=MEAN, threshold=0.5)
    assert not track.counted
