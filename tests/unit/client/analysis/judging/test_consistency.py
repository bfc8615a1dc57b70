"""Intervals cover what they should, whatever the rule; consistency figures are what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deepfake_client.analysis.judging.aggregation import STRATEGIES
from deepfake_client.analysis.judging.consistency import consistency, interval, student_t_quantile

NAMES = st.sampled_from(sorted(STRATEGIES))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1)), min_size=1, max_size=40), NAMES)
def test_an_interval_holds_its_score_and_stays_within_0_and_1(points: list[tuple[float, float]], name: str) -> None:
    scores, weights = (np.array(column) for column in zip(*points, strict=True))
    result = interval(STRATEGIES[name], scores, weights)
    assert 0 <= result.low <= STRATEGIES[name](scores, weights) <= result.high <= 1
    again = interval(STRATEGIES[name], scores, weights)
    assert result == again


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_one_frame_says_nothing_on_the_spread_and_equal_scores_have_none(name: str) -> None:
    one = interval(STRATEGIES[name], np.array([0.9]), np.ones(1))
    assert (one.low, one.high) == (0, 1)
    for count in (2, 3, 32):
        same = interval(STRATEGIES[name], np.full(count, 0.9), np.ones(count))
        assert same.high - same.low == pytest.approx(0, abs=1e-6)


def test_few_frames_have_wide_intervals_and_more_frames_narrower_ones() -> None:
    scores = np.tile([0.6, 0.8, 0.7], 40)
    widths = []
    for count in (2, 3, 12, 60, 120):
        result = interval(STRATEGIES["mean"], scores[:count], np.ones(count))
        widths.append(result.high - result.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 1


def test_the_mean_of_six_frames_has_the_textbooks_interval() -> None:
    scores = np.array([0.2, 0.3, 0.25, 0.4, 0.35, 0.3])
    expected = stats.t.interval(0.95, 5, scores.mean(), stats.sem(scores))
    result = interval(STRATEGIES["mean"], scores, np.ones(6))
    assert (result.low, result.high) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mean", "trimmed", "log_odds", "confident"])
def test_intervals_cover_the_true_score_of_frames_that_resemble_their_neighbours(name: str) -> None:
    rng = np.random.default_rng(7)
    rule = STRATEGIES[name]

    def clips(count: int, frames: int, memory: float = 0.5) -> np.ndarray:
        noise = rng.standard_normal((count, frames))
        logits = noise.copy()
        for frame in range(1, frames):
            logits[:, frame] = memory * logits[:, frame - 1] + np.sqrt(1 - memory**2) * noise[:, frame]
        return np.asarray(1 / (1 + np.exp(-1.5 * logits)))

    truth = rule(clips(1, 50_000)[0], np.ones(50_000))
    covered = naive = 0
    for scores in clips(250, 48):
        result = interval(rule, scores, np.ones(48))
        covered += result.low <= truth <= result.high
        naive += abs(rule(scores, np.ones(48)) - truth) <= 1.96 * scores.std(ddof=1) / np.sqrt(48)
    assert covered / 250 > 0.86, "nominally 0.95; 0.89 to 0.95 over thousands of clips"
    if name == "mean":
        assert covered > naive + 15, "frames are not independent, and the interval knows"


@pytest.mark.parametrize("degrees", range(1, 9))
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.975, 0.995, 0.9999])
def test_quantiles_are_scipys(probability: float, degrees: int) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_consistency_figures() -> None:
    scores = np.array([0.6, 0.7, 0.2, 0.9, 0.9, 0.9, 0.1, 0.5])
    result = consistency(scores, np.ones(8), fake=True, threshold=0.5)
    assert result.agreeing_share == pytest.approx(6 / 8)
    assert result.longest_run == 3
    assert result.score_variance == pytest.approx(scores.var())
    weighed = consistency(scores, np.array([1, 1, 0.1, 1, 1, 1, 0.1, 1]), fake=True, threshold=0.5)
    assert weighed.agreeing_share == pytest.approx(6 / 6.2)
    assert consistency(scores, np.ones(8), fake=False, threshold=0.5).agreeing_share == pytest.approx(2 / 8)
