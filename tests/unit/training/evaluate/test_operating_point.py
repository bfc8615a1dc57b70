"""The threshold for a wanted share of false alarms: what it promises holds, also for few clips."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from deepfake_preprocess.errors import OptionError
from deepfake_training.evaluate.operating_point import MOST_UNDECIDED, OperatingPoint, find_operating_point


def point_of(
    reals: NDArray[np.float64] | list[float], fakes: NDArray[np.float64] | list[float] = (), rate: float = 0.1
) -> OperatingPoint:
    labels = np.array([0] * len(reals) + [1] * len(fakes), dtype=np.int64)
    return find_operating_point(labels, np.array([*reals, *fakes], dtype=np.float64), rate)


def true_rate(point: OperatingPoint) -> float:
    """Of scores that are uniform up to 0.9: the share above the threshold."""
    return 1 - point.threshold / 0.9


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (30, 0.1), (45, 0.1)])
def test_further_clips_are_called_fake_at_most_at_the_rate(count: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    rates = [true_rate(point_of(rng.random(count) * 0.9, rate=rate)) for _ in range(1000)]
    allowed = int(rate * (count + 1) + 1e-9) / (count + 1)
    assert np.mean(rates) <= rate
    assert np.mean(rates) == pytest.approx(allowed, abs=0.012)


def test_the_exact_interval_holds_the_rate_of_further_clips() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(300):
        point = point_of(rng.random(40) * 0.9)
        shown = point.real_called_fake
        assert shown.low is not None
        assert shown.high is not None
        held.append(shown.low <= true_rate(point) <= shown.high)
    assert np.mean(held) >= 0.95


def test_too_few_clips_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        OptionError, match=r"10 real clips .* too few .* 0.05: at least 19 are needed; add 9, or allow"
    ):
        point_of(np.linspace(0, 0.5, 10), rate=0.05)
    point = point_of(np.linspace(0, 0.5, 19), rate=0.05)
    assert (point.clips_needed, point.clips_to_be_sure) == (19, 59)
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        point_of([0.1] * 30, rate=0.0)
    with pytest.raises(OptionError, match=r"score up to 1.0000, so a share of false alarms of 0.1 cannot be had"):
        point_of([0.1] * 20 + [1.0] * 10)


def test_equal_scores_are_on_one_side() -> None:
    point = point_of([0.2] * 15 + [0.4] * 5, [0.9] * 5)
    assert 0.4 < point.threshold <= 0.405
    assert point.real_called_fake.value == 0.0
    assert point.fake_found.value == 1.0


def test_scores_are_left_open_down_to_where_few_fakes_are_missed() -> None:
    reals, fakes = np.linspace(0.0, 0.6, 40), np.linspace(0.5, 1.0, 40)
    point = point_of(reals, fakes)
    assert point.fake_called_real.value is not None
    assert point.fake_called_real.value <= 0.1
    assert 0 < point.undecided_from < point.threshold < 0.6
    # Apart from each other: nothing is left open.
    apart = point_of(np.linspace(0, 0.3, 30), np.linspace(0.6, 1, 30))
    assert apart.undecided_from == apart.threshold
    assert (apart.real_undecided.value, apart.fake_undecided.value) == (0.0, 0.0)


def test_fakes_that_are_found_do_not_pay_for_real_clips_that_are_left_open() -> None:
    point = point_of([0.1] * 13 + [0.39, 0.4, 0.41, 0.42, 0.43, 0.44, 0.45], [0.3] + [0.9] * 9)
    assert point.fake_undecided.value == 0.0
    assert point.real_undecided.value is not None
    assert 0.15 < point.real_undecided.value <= MOST_UNDECIDED


def test_a_poor_detector_leaves_at_most_a_quarter_open() -> None:
    rng = np.random.default_rng(2)
    point = point_of(rng.random(60), rng.random(60) ** 0.8)
    shares = [point.real_undecided.value, point.fake_undecided.value]
    assert max(share or 0.0 for share in shares) <= MOST_UNDECIDED
    alone = point_of(rng.random(60))
    assert alone.fake_found.value is None
    assert alone.real_undecided.value == pytest.approx(0.1, abs=0.02)
