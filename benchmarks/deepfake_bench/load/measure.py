"""Measures how much a server takes, and how long its callers wait, at one level of load.

That is done in windows, until the confidence interval of the throughput is tight or the windows run out. See
`deepfake_bench.load.generator` for the kinds of load, and for why latency counts from when a request was due.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt
import psutil

from deepfake_bench.load.counters import Counters, ServerShare, share_between
from deepfake_bench.load.generator import Load, Trace
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.statistics import Latency, half_width, relative_half_width
from deepfake_bench.machine.processes import cpu_seconds, rss_mb

RAMP_S = 0.5
"""Time before each window, in which queues fill and the first batches form; a load may have its own."""
MIN_WINDOWS = 4
REQUESTS_PER_WINDOW = 4
"""Closed loop: a window lasts at least this many times as long as a request, or chance decides what ends in it."""
BUSY_GENERATOR = 0.9
"""Share of a core from which on a load process, which runs one event loop, is taken for the bottleneck."""
LATE_SHARE = 0.1
"""Open loop: requests sent later than this share of the median latency were held up by the generator."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a level has been measured enough.

    Closed loop: when the half-width of the throughput's 95% interval is at most `tolerance` of the mean. Open loop:
    after `max_windows`, because there the arrivals make the throughput, and their randomness its spread.
    """

    window_s: float = 2.0
    tolerance: float = 0.02
    max_windows: int = 10

    def enough(self, rates: list[float], level: Load) -> bool:
        """Return whether the windows' throughputs suffice."""
        if len(rates) >= self.max_windows:
            return True
        return level.mode == "closed" and len(rates) >= MIN_WINDOWS and relative_half_width(rates) <= self.tolerance


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one level of load gave.

    Attributes:
        mode: ``closed``, ``open`` or ``replay``.
        crops_per_s: mean throughput of answered crops.
        crops_per_s_half_width: half-width of its 95% confidence interval, from the windows' means; None for one.
        latency: from when a request was due to its answer; failed requests are not in it.
        errors: failed requests by their status.
        server: what the server counted, in the windows and the ramps before them.
        client_and_network_ms: mean time from sending to the answer, less the server's queue and compute time.
        load_cores: cores the load processes used in the windows.
        load_rss_mb: their memory, pages they share counted in each.
        server_cores: cores the server's processes used; with their memory None for a server elsewhere.
        falls_behind: open loop: the server answered fewer requests than were due; the latencies then only grow with
            the length of the window.
        generator_limited: why the generator, not the server, may have been the bottleneck; empty when it was not.
    """

    mode: str
    concurrency: int | None
    requests_per_s: float | None
    windows: int
    crops_per_s: float
    crops_per_s_half_width: float | None
    latency: Latency
    errors: dict[str, int]
    server: ServerShare
    client_and_network_ms: float | None
    load_cores: float
    load_rss_mb: float
    server_cores: float | None
    server_rss_mb: float | None
    falls_behind: bool
    generator_limited: str


def measure_level(
    load: LoadProcesses,
    level: Load,
    *,
    counters: Callable[[], Counters],
    server: psutil.Process | None,
    stopping: Stopping,
) -> Measurement:
    """Measure one level of load, for the time that `stopping` says.

    `counters` reads the server's totals; `server` is the root of its processes, where they are on this machine.
    """
    rates: list[float] = []
    traces: list[Trace] = []
    started, cpu_before, before = time.perf_counter(), _cpu_s(server), counters()
    window_s = stopping.window_s
    while not stopping.enough(rates, level):
        window = load.run(replace(level, ramp_s=level.ramp_s or RAMP_S, measure_s=window_s, seed=100 * len(rates)))
        if level.mode == "closed" and (needed_s := _needed_s(window, window_s)) > window_s:
            window_s = needed_s
            rates.clear()
            traces.clear()
            started, cpu_before, before = time.perf_counter(), _cpu_s(server), counters()
            continue
        rates.append(sum(trace.answered for trace in window) * load.crops_per_request / window_s)
        traces.extend(window)
    share = share_between(before, counters())
    cpu_after, elapsed_s = _cpu_s(server), time.perf_counter() - started
    due, sent, answered = (
        np.concatenate([getattr(trace, name)[~trace.failed] for trace in traces])
        for name in ("due_s", "sent_s", "answered_s")
    )
    latency = Latency.of(answered - due)
    measured_s = len(rates) * window_s
    succeeded = sum(trace.succeeded for trace in traces)
    exchange_ms = 1_000 * sum(trace.exchange_s for trace in traces)
    interval = half_width(rates)
    return Measurement(
        mode=level.mode,
        concurrency=level.concurrency,
        requests_per_s=level.requests_per_s,
        windows=len(rates),
        crops_per_s=round(fmean(rates), 2),
        crops_per_s_half_width=round(interval, 2) if math.isfinite(interval) else None,
        latency=latency,
        errors=dict(sum((Counter(trace.errors) for trace in traces), Counter())),
        server=share,
        client_and_network_ms=round(exchange_ms / succeeded - share.queue_ms - share.compute_ms, 3)
        if succeeded
        else None,
        load_cores=round(sum(trace.cpu_s for trace in traces) / measured_s, 3),
        load_rss_mb=round(sum(rss_mb(psutil.Process(pid)) for pid in load.pids), 1),
        server_cores=None if server is None else round((cpu_after - cpu_before) / elapsed_s, 3),
        server_rss_mb=None if server is None else rss_mb(server),
        falls_behind=level.concurrency is None and falls_behind(traces),
        generator_limited=_generator_limit(max(trace.cpu_s for trace in traces) / window_s, sent - due, latency),
    )


def _needed_s(window: Sequence[Trace], window_s: float) -> float:
    """Return how long a window must last to hold enough requests; twice as long where none was answered in it."""
    latencies = np.concatenate([(trace.answered_s - trace.due_s)[~trace.failed] for trace in window])
    if len(latencies):
        return REQUESTS_PER_WINDOW * float(np.median(latencies))
    return window_s if any(trace.errors for trace in window) else 2 * window_s


def falls_behind(traces: list[Trace]) -> bool:
    """Return whether fewer requests were answered than were due, by more than chance at the windows' ends."""
    due = sum(len(trace.due_s) for trace in traces)
    missing = due - sum(trace.answered for trace in traces)
    return missing > max(0.05 * due, 3 * math.sqrt(due))


def _cpu_s(server: psutil.Process | None) -> float:
    return 0.0 if server is None else cpu_seconds(server)


def _generator_limit(busiest: float, lateness_s: npt.NDArray[np.float64], latency: Latency) -> str:
    if busiest >= BUSY_GENERATOR:
        return f"a load process used {busiest:.2f} of a core; use more processes"
    late_ms = float(np.quantile(lateness_s, 0.99)) * 1_000 if len(lateness_s) else 0.0
    if latency.p50_ms is not None and late_ms > max(1.0, LATE_SHARE * latency.p50_ms):
        return f"1% of the requests were sent more than {late_ms:.1f} ms late; use more processes or free cores"
    return ""
