"""The load generator: latency from when a request was due, shares over processes, errors that are not timed."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from deepfake_bench.load.generator import Load, Trace, run_load
from deepfake_bench.load.measure import Stopping, falls_behind
from deepfake_bench.load.senders import RequestFailedError
from deepfake_preprocess.errors import OptionError


class FakeServer:
    """Answers one request after another; stalls once, and fails every `fail_every`-th request."""

    def __init__(self, *, stall_s: float = 0.0, fail_every: int = 0) -> None:
        self._free = asyncio.Lock()
        self._stall_s, self._fail_every = stall_s, fail_every
        self.sent: list[int] = []
        self.requests = 0
        self.most_in_flight = self._in_flight = 0

    async def send(self, number, timeout_s):
        self.sent.append(number)
        self.requests += 1
        number = self.requests
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        async with self._free:
            await asyncio.sleep(self._stall_s if number == 10 else 0.001)
        self._in_flight -= 1
        if self._fail_every and number % self._fail_every == 0:
            raise RequestFailedError("UNAVAILABLE")
        return b""


def load(*, concurrency: int | None = None, requests_per_s: float | None = None) -> Load:
    return Load(concurrency=concurrency, requests_per_s=requests_per_s, start_at=time.perf_counter(), measure_s=0.6)


def test_an_open_loop_shows_the_wait_that_a_stall_causes() -> None:
    stall_s = 0.4
    trace = asyncio.run(run_load(FakeServer(stall_s=stall_s).send, load(requests_per_s=200)))
    waits = trace.answered_s - trace.due_s
    # Requests came due all through the stall: many of them waited, not only the one that was being served.
    assert np.quantile(waits, 0.9) > 0.5 * stall_s
    assert (waits > 0.25 * stall_s).sum() > 20


def test_a_closed_loop_keeps_so_many_in_flight_and_hides_the_stall() -> None:
    server = FakeServer(stall_s=0.3)
    trace = asyncio.run(run_load(server.send, load(concurrency=3)))
    assert server.most_in_flight == 3
    assert (trace.due_s == trace.sent_s).all()
    assert (trace.answered_s - trace.due_s > 0.2).sum() <= 3
    assert trace.answered == len(trace.answered_s)


def test_failures_are_counted_by_status_and_are_no_throughput() -> None:
    trace = asyncio.run(run_load(FakeServer(fail_every=3).send, load(concurrency=2)))
    assert trace.errors == {"UNAVAILABLE": int(trace.failed.sum())}
    assert 0 < trace.failed.sum() < len(trace.failed)
    assert trace.answered == int((~trace.failed).sum())


def test_arrivals_come_at_the_rate_and_repeat_with_the_seed() -> None:
    traces = [asyncio.run(run_load(FakeServer().send, load(requests_per_s=200))) for _ in range(2)]
    assert len(traces[0].due_s) == pytest.approx(120, abs=40)
    assert np.allclose(np.diff(np.sort(traces[0].due_s)), np.diff(np.sort(traces[1].due_s)), atol=1e-6)


def test_what_is_answered_after_the_window_is_timed_but_is_no_throughput() -> None:
    """An overloaded server must not seem to manage all that was asked of it."""
    trace = asyncio.run(run_load(FakeServer(stall_s=1.5).send, load(requests_per_s=100)))
    assert trace.answered < 15 < len(trace.due_s)
    assert trace.answered_s.max() > 1.0
    assert falls_behind([trace])


def test_a_replay_sends_the_given_requests_at_their_times() -> None:
    server = FakeServer()
    arrivals = [(0.0, 3), (0.0, 1), (0.2, 3), (0.4, 0)]
    wanted = Load(arrivals=arrivals, start_at=time.perf_counter() + 0.05, ramp_s=0.1, measure_s=0.6)
    trace = asyncio.run(run_load(server.send, wanted))
    assert server.sent == [3, 1, 3, 0]
    # Those of the ramp are sent and not measured.
    assert trace.due_s == pytest.approx([0.1, 0.3])
    assert (trace.sent_s >= trace.due_s).all()
    assert (trace.answered, trace.succeeded) == (2, 4)


def test_an_even_server_does_not_fall_behind() -> None:
    assert not falls_behind([asyncio.run(run_load(FakeServer().send, load(requests_per_s=100)))])


def test_a_load_has_a_concurrency_or_a_rate() -> None:
    for wrong in ({}, {"concurrency": 1, "requests_per_s": 1.0}):
        with pytest.raises(OptionError, match="only one of them"):
            load(**wrong)


@pytest.mark.parametrize(("concurrency", "processes"), [(32, 1), (32, 3), (2, 4), (1, 1)])
def test_processes_share_the_concurrency(concurrency: int, processes: int) -> None:
    parts = [Load(concurrency=concurrency).share(number, processes, start_at=5.0) for number in range(processes)]
    shares = [0 if part is None else part.concurrency for part in parts]
    assert sum(shares) == concurrency
    assert max(shares) - min(shares) <= 1
    assert {part.start_at for part in parts if part is not None} == {5.0}


def test_processes_share_a_rate_and_a_replay_with_other_seeds() -> None:
    first, second = (Load(requests_per_s=8.0, seed=4).share(number, 2, start_at=0.0) for number in (0, 1))
    assert first is not None
    assert second is not None
    assert (first.requests_per_s, first.seed, second.seed) == (4.0, 4, 5)
    replay = Load(arrivals=[(0.0, 1), (0.1, 2), (0.2, 3)])
    parts = [replay.share(number, 2, start_at=0.0) for number in (0, 1)]
    assert [part.arrivals for part in parts if part is not None] == [[(0.0, 1), (0.2, 3)], [(0.1, 2)]]


def test_a_level_is_measured_until_the_interval_is_tight() -> None:
    stopping = Stopping(tolerance=0.05, max_windows=8)
    even, uneven = [100.0, 101.0, 99.0, 100.0], [100.0, 160.0, 60.0, 90.0]
    assert not stopping.enough(even[:3], Load(concurrency=8))
    assert stopping.enough(even, Load(concurrency=8))
    assert not stopping.enough(uneven, Load(concurrency=8))
    assert stopping.enough(uneven * 2, Load(concurrency=8))
    assert not stopping.enough(even, Load(requests_per_s=100.0))


def test_a_trace_of_nothing_is_empty() -> None:
    class Silent(FakeServer):
        async def send(self, number, timeout_s):
            await asyncio.sleep(10)

    trace: Trace = asyncio.run(
        run_load(Silent().send, Load(requests_per_s=1e-3, start_at=time.perf_counter(), measure_s=0.05))
    )
    assert trace.answered == len(trace.due_s) == 0
