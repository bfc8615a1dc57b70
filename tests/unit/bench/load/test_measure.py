"""A window is long enough for several requests, whatever was asked for."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepfake_bench.load.counters import Counters
from deepfake_bench.load.generator import Load, Trace
from deepfake_bench.load.measure import REQUESTS_PER_WINDOW, Stopping, measure_level

REQUEST_S = 3.0
IN_FLIGHT = 8


def whole_requests_only(level: Load) -> list[Trace]:
    """Return what a server gives that answers all requests in flight together, the first time at 0.05 s."""
    ends = np.arange(0.05, level.measure_s, REQUEST_S).repeat(IN_FLIGHT)
    begins = ends - REQUEST_S
    return [
        Trace(
            due_s=begins, sent_s=begins, answered_s=ends, failed=np.zeros(len(ends), bool), answered=len(ends),
            succeeded=len(ends), exchange_s=float(REQUEST_S * len(ends)), errors={}, cpu_s=0.0,
        )
    ]  # fmt: skip


def test_a_window_shorter_than_a_request_is_lengthened() -> None:
    asked: list[float] = []

    def run(level: Load) -> list[Trace]:
        asked.append(level.measure_s)
        return whole_requests_only(level)

    load: Any = SimpleNamespace(run=run, crops_per_request=1, pids=[os.getpid()])
    found = measure_level(
        load,
        Load(concurrency=IN_FLIGHT),
        counters=lambda: Counters(0, 0, 0, 0, 0, 0, {}),
        server=None,
        stopping=Stopping(window_s=0.1),
    )
    assert (asked[0], asked[-1]) == (0.1, REQUESTS_PER_WINDOW * REQUEST_S)
    assert found.crops_per_s == pytest.approx(IN_FLIGHT / REQUEST_S, rel=0.4), "not 8 answers in a tenth of a second"
