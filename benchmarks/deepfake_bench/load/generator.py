"""Keeps a server under load and notes when each request was due, sent and answered.

There are three kinds of load:

- closed loop: a number of requests is kept in flight; the next one is sent when an answer arrives. Shows the
  throughput that many callers get, but hides waiting: a slow server is asked less often.
- open loop: requests are due at random times (Poisson arrivals), whether or not earlier ones were answered. Latency
  counts from the time a request was due, not from when it could be sent, or waiting would be hidden ("coordinated
  omission", G. Tene, "How NOT to Measure Latency", 2013).
- replay: an open loop whose arrival times and requests are given, as recorded from real traffic.

Runs in a process of its own, see `deepfake_bench.load.process`.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.senders import RequestFailedError, Send
from deepfake_preprocess.errors import OptionError

MAX_IN_FLIGHT = 4096
"""Open loop: a request that is due while this many are unanswered is not sent, and counted as an error."""
PAUSE_AFTER_ERROR_S = 0.01
"""Closed loop: a server that refuses at once must not be asked in a tight loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How a measurement loads the server: exactly one of concurrency, rate and arrivals is set.

    Attributes:
        concurrency: closed loop: requests kept in flight.
        requests_per_s: open loop: mean rate of Poisson arrivals.
        arrivals: replay: when each request is due, in seconds after `start_at` and ascending, and its number among
            the requests that the sender was given.
        ramp_s: time after `start_at` that is not measured.
        seed: of the arrival times.
        start_at: `time.perf_counter` at which the first request is sent; the clock is the machine's, by which several
            processes start together.
    """

    concurrency: int | None = None
    requests_per_s: float | None = None
    arrivals: Sequence[tuple[float, int]] | None = None
    ramp_s: float = 0.0
    measure_s: float = 1.0
    seed: int = 0
    timeout_s: float = 30.0
    start_at: float = 0.0

    def __post_init__(self) -> None:
        if sum(item is not None for item in (self.concurrency, self.requests_per_s, self.arrivals)) != 1:
            raise OptionError("a load has a concurrency, a rate or arrivals, and only one of them")

    @property
    def mode(self) -> str:
        """``closed``, ``open`` or ``replay``."""
        return "closed" if self.concurrency is not None else "open" if self.arrivals is None else "replay"

    def __str__(self) -> str:
        if self.arrivals is not None:
            return f"{len(self.arrivals)} requests"
        return f"{self.concurrency} in flight" if self.concurrency is not None else f"{self.requests_per_s:g} req/s"

    def share(self, number: int, count: int, *, start_at: float) -> Load | None:
        """Return the share of one process of several, as even as possible; None where nothing is left for it."""
        concurrency = self.concurrency
        if concurrency is not None:
            concurrency = concurrency // count + (number < concurrency % count)
        if concurrency == 0:
            return None
        return replace(
            self,
            concurrency=concurrency,
            requests_per_s=None if self.requests_per_s is None else self.requests_per_s / count,
            arrivals=None if self.arrivals is None else self.arrivals[number::count],
            seed=self.seed + number,
            start_at=start_at,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one process saw; times in seconds after the start of the measured time.

    The rows are the requests that were answered in the measured time (closed loop), or were due in it (open loop,
    however late they were answered).

    Attributes:
        due_s: when each request was due; in a closed loop when it was sent.
        answered_s: when its answer was there, or its failure.
        answered: requests answered well in the measured time, whenever they were due: the throughput.
        succeeded: requests of the whole run that were answered well, which are those in the server's statistics.
        exchange_s: their time from sending to the answer, summed.
        errors: the rows that failed, by status.
        cpu_s: CPU time of the process during the measured time.
    """

    due_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    answered_s: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    answered: int
    succeeded: int
    exchange_s: float
    errors: dict[str, int]
    cpu_s: float


async def run_load(send: Send, load: Load) -> Trace:
    """Load a connected target as asked and return what was seen."""
    recorder = _Recorder(send, load)
    cpu = asyncio.create_task(recorder.cpu_while_measuring())
    try:
        await asyncio.sleep(max(0.0, load.start_at - time.perf_counter()))
        if load.concurrency is not None:
            await recorder.closed_loop(load.concurrency)
        if load.requests_per_s is not None:
            await recorder.open_loop(recorder.random_arrivals(load.requests_per_s))
        if load.arrivals is not None:
            await recorder.open_loop((load.start_at + due, number) for due, number in load.arrivals)
        return recorder.trace(await cpu)
    finally:
        cpu.cancel()


class _Recorder:
    def __init__(self, send: Send, load: Load) -> None:
        self._send_request, self._load = send, load
        self._numbers = itertools.count()
        self._begin = load.start_at + load.ramp_s
        self._end = self._begin + load.measure_s
        self._rows: list[tuple[float, float, float, str | None]] = []

    async def closed_loop(self, concurrency: int) -> None:
        async def one() -> None:
            while time.perf_counter() < self._end:
                if not await self._send(next(self._numbers)):
                    await asyncio.sleep(PAUSE_AFTER_ERROR_S)

        await asyncio.gather(*(one() for _ in range(concurrency)))

    def random_arrivals(self, requests_per_s: float) -> Iterator[tuple[float, int]]:
        random = np.random.default_rng(self._load.seed)
        due = self._load.start_at
        while (due := due + float(random.exponential(1 / requests_per_s))) < self._end:
            yield due, next(self._numbers)

    async def open_loop(self, arrivals: Iterable[tuple[float, int]]) -> None:
        under_way: set[asyncio.Task[bool]] = set()
        for due, number in arrivals:
            # Also where it is late: the loop must read answers, or it would see none until it has caught up.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(under_way) >= MAX_IN_FLIGHT:
                now = time.perf_counter()
                self._rows.append((due, now, now, "too many in flight"))
                continue
            task = asyncio.create_task(self._send(number, due=due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def cpu_while_measuring(self) -> float:
        spent = []
        for moment in (self._begin, self._end):
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            usage = resource.getrusage(resource.RUSAGE_SELF)
            spent.append(usage.ru_utime + usage.ru_stime)
        return spent[1] - spent[0]

    async def _send(self, number: int, *, due: float | None = None) -> bool:
        sent, status = time.perf_counter(), None
        try:
            await self._send_request(number, self._load.timeout_s)
        except RequestFailedError as exc:
            status = str(exc)
        self._rows.append((sent if due is None else due, sent, time.perf_counter(), status))
        return status is None

    def trace(self, cpu_s: float) -> Trace:
        rows = np.array([row[:3] for row in self._rows], dtype=np.float64).reshape(-1, 3) - self._begin
        failed = np.array([status is not None for *_, status in self._rows], dtype=np.bool_)
        answered = _inside(rows[:, 2], self._load.measure_s)
        rows_kept = answered if self._load.concurrency is not None else _inside(rows[:, 0], self._load.measure_s)
        statuses = (str(self._rows[index][3]) for index in np.flatnonzero(failed & rows_kept))
        due_s, sent_s, answered_s = rows[rows_kept].T
        return Trace(
            due_s,
            sent_s,
            answered_s,
            failed[rows_kept],
            answered=int((answered & ~failed).sum()),
            succeeded=int((~failed).sum()),
            exchange_s=float((rows[:, 2] - rows[:, 1])[~failed].sum()),
            errors=dict(Counter(statuses)),
            cpu_s=cpu_s,
        )


def _inside(moments_s: npt.NDArray[np.float64], measure_s: float) -> npt.NDArray[np.bool_]:
    return (moments_s >= 0) & (moments_s < measure_s)
