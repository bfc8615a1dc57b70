"""The throughput without pauses, from which the search of a rate starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deepfake_bench.tune import tuning
from deepfake_preprocess.errors import ServerTimeoutError


class SlowServer:
    """Answers 6 requests in a window of at least so many seconds, and none in a shorter one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, load: Any) -> list[Any]:
        return [SimpleNamespace(answered=6 if load.measure_s >= self.seconds else 0)]


@pytest.mark.parametrize(("seconds", "rate"), [(1.5, 4.0), (5.0, 1.0), (24.0, 0.25)])
def test_a_slow_network_is_measured_for_longer(seconds: float, rate: float) -> None:
    assert tuning._full_load(SlowServer(seconds)) == rate  # type: ignore[arg-type]


def test_a_server_that_answers_nothing_is_told() -> None:
    with pytest.raises(ServerTimeoutError, match="none was answered within 24 s"):
        tuning._full_load(SlowServer(25))  # type: ignore[arg-type]
