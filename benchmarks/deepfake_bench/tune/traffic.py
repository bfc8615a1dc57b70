"""Recorded video traffic: the requests of real analyses, when they came, and how to replay them for many videos.

Requests of a video come in bursts, one for each frame with its faces, as decoding and detection let them. Uniform
load is kinder to a server: its queue hardly ever holds a frame's faces, or two videos' frames, at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepfake_bench.load.counters import share_between
from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import falls_behind
from deepfake_bench.load.observed import ObservingTransport
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Crops
from deepfake_bench.load.statistics import Latency
from deepfake_bench.server.serving import Server
from deepfake_client import AnalyzeOptions, DeepfakeClient, Reason, Sampling, Verdict, connect
from deepfake_preprocess.errors import DeepfakeError, OptionError

MAX_RAMP_S = 3.0
MIN_VIDEOS = 8
"""A window in which fewer begin is made longer, up to `MAX_LONGER` times: the p99 of two videos is chance."""
MAX_LONGER = 4


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """What analyses of some clips sent to a server.

    Attributes:
        requests: uint8 ``[N, H, W, 3]`` crops of each request.
        videos: of each clip its requests: seconds after the analysis began, and position in `requests`.
        labels: verdict of each clip, by its path.
    """

    requests: list[Crops]
    videos: list[list[tuple[float, int]]]
    labels: dict[str, str]

    def arrivals(self, videos_per_s: float, until_s: float, *, seed: int) -> list[tuple[float, int]]:
        """Return times in seconds and positions of the requests of videos that begin at random times (Poisson).

        With one seed, a higher rate gives the same pattern closer together: settings and rates are compared under the
        same luck.
        """
        random = np.random.default_rng(seed)
        found: list[tuple[float, int]] = []
        begin = float(random.exponential(1 / videos_per_s))
        while begin < until_s:
            video = self.videos[int(random.integers(len(self.videos)))]
            found += [(begin + moment, number) for moment, number in video if begin + moment < until_s]
            begin += float(random.exponential(1 / videos_per_s))
        return sorted(found)

    def some_crops(self, count: int) -> Crops:
        """Return up to `count` crops, spread over the requests."""
        crops = np.concatenate(self.requests)
        return crops[:: max(1, len(crops) // count)][:count]


@dataclass(frozen=True, slots=True)
class Replay:
    """What one replay of traffic gave; see `deepfake_bench.load.measure.Measurement`.

    Attributes:
        videos_per_s: rate at which analyses began.
        mean_batch: crops per execution.
    """

    videos_per_s: float
    latency: Latency
    mean_batch: float | None
    errors: dict[str, int]
    falls_behind: bool

    def holds(self, p99_ms: float) -> bool:
        """Return whether the bound was kept."""
        return not self.errors and not self.falls_behind and self.p99_ms <= p99_ms

    @property
    def p99_ms(self) -> float:
        """The latency that counts; infinite when nothing was answered."""
        return float("inf") if self.latency.p99_ms is None else self.latency.p99_ms


def replay(
    traffic: Traffic, server: Server, load: LoadProcesses, videos_per_s: float, *, window_s: float, seed: int = 0
) -> Replay:
    """Replay traffic at a rate, after a time in which the queue fills.

    Args:
        traffic: whose requests `load` was given.
        server: that `load` is sent to.
        load: one process.
        videos_per_s: rate at which videos begin.
        window_s: measured time, longer where few videos begin in it.
        seed: of the arrivals.
    """
    window_s = min(max(window_s, MIN_VIDEOS / videos_per_s), MAX_LONGER * window_s)
    ramp_s = min(max(moment for video in traffic.videos for moment, _ in video), MAX_RAMP_S)
    arrivals = traffic.arrivals(videos_per_s, ramp_s + window_s, seed=seed)
    before = server.counters()
    (trace,) = load.run(Load(arrivals=arrivals, ramp_s=ramp_s, measure_s=window_s))
    share = share_between(before, server.counters())
    return Replay(
        round(videos_per_s, 4),
        Latency.of((trace.answered_s - trace.due_s)[~trace.failed]),
        None if share.mean_batch is None else round(share.mean_batch, 2),
        dict(trace.errors),
        falls_behind([trace]),
    )


def record(server: Server, clips: Sequence[Path], *, num_frames: int) -> Traffic:
    """Analyze each clip alone on a running server and return what it sent, and when.

    Raises:
        OptionError: no face was found in any clip.
        DeepfakeError: a clip cannot be analyzed, or the server fails.
    """
    observed = ObservingTransport(connect(server.connection))
    traffic = Traffic([], [], {})
    with DeepfakeClient(observed, model=server.model.name) as client:
        _analyze(client, clips[0], num_frames)  # detector and connection are there before the clock runs
        for clip in clips:
            observed.exchanges.clear()
            started = time.perf_counter()
            traffic.labels[str(clip)] = _analyze(client, clip, num_frames).label.value
            exchanges = sorted(observed.exchanges, key=lambda item: item.sent_s)
            first = len(traffic.requests)
            traffic.videos.append([(item.sent_s - started, first + n) for n, item in enumerate(exchanges)])
            traffic.requests.extend(item.crops for item in exchanges)
    if not traffic.requests:
        raise OptionError("no face was found in the clips, so there is nothing to replay; give clips that show faces")
    return traffic


def _analyze(client: DeepfakeClient, clip: Path, num_frames: int) -> Verdict:
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=num_frames)))
    if verdict.reason in (Reason.SERVER_ERROR, Reason.SERVER_UNAVAILABLE):
        raise DeepfakeError(f"{clip.name}: {verdict.detail}; nothing was measured")
    return verdict
