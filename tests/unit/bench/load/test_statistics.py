"""Percentiles and intervals, against values worked out elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepfake_bench.load.statistics import Latency, half_width, relative_half_width


def test_percentiles_are_in_milliseconds() -> None:
    latency = Latency.of(np.arange(0.0, 0.101, 0.001))
    assert (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.max_ms) == (50, 90, 95, 99, 100)


def test_without_answers_there_are_no_percentiles() -> None:
    assert Latency.of(np.empty(0)) == Latency(None, None, None, None, None)


@pytest.mark.parametrize(("count", "t"), [(4, 3.182), (5, 2.776), (10, 2.262), (30, 2.045)])
def test_the_interval_is_students(count: int, t: float) -> None:
    samples = [100.0 + (-1) ** index for index in range(count)]
    spread = float(np.std(samples, ddof=1)) / math.sqrt(count)
    assert half_width(samples) == pytest.approx(t * spread, rel=0.02)


def test_one_sample_says_nothing_about_the_mean() -> None:
    assert half_width([5.0]) == relative_half_width([5.0]) == relative_half_width([]) == math.inf


def test_the_relative_interval_of_no_throughput_is_never_tight() -> None:
    assert relative_half_width([0.0, 0.0, 0.0, 0.0]) == math.inf
