"""Recorded video traffic: the requests of real analyses, when they came, and how to replay them for many videos.

Requests of a video come in bursts, each of the faces of some frames, as decoding and detection let them. Uniform
load is kinder to a server: its queue hardly ever holds a frame's faces, or two videos' frames, at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import RAMP_S, Measurement, Stopping, measure_level
from deepfake_bench.load.observed import ObservingTransport, analyzed
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Crops
from deepfake_bench.server.serving import Server
from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling, connect
from deepfake_preprocess.errors import OptionError

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
        labels: verdict of each clip.
    """

    requests: list[Crops]
    videos: list[list[tuple[float, int]]]
    labels: dict[Path, str]

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


def replay(
    traffic: Traffic, server: Server, load: LoadProcesses, videos_per_s: float, *, window_s: float, seed: int = 0
) -> Measurement:
    """Replay traffic on one load process that was given its requests, after a time in which the queue fills.

    The measured time is longer than `window_s` where few videos begin in it.
    """
    window_s = min(max(window_s, MIN_VIDEOS / videos_per_s), MAX_LONGER * window_s)
    ramp_s = min(max(RAMP_S, *(moment for video in traffic.videos for moment, _ in video)), MAX_RAMP_S)
    arrivals = traffic.arrivals(videos_per_s, ramp_s + window_s, seed=seed)
    return measure_level(
        load,
        Load(arrivals=arrivals, ramp_s=ramp_s),
        counters=server.counters,
        server=server.root,
        stopping=Stopping(window_s, max_windows=1),
    )


def p99_ms(replayed: Measurement) -> float:
    """Return the 99th percentile of the latency; infinite when nothing was answered."""
    return math.inf if replayed.latency.p99_ms is None else replayed.latency.p99_ms


def holds(replayed: Measurement, bound_ms: float) -> bool:
    """Return whether every request was answered, and 99% of them within the bound."""
    return not replayed.errors and not replayed.falls_behind and p99_ms(replayed) <= bound_ms


def record(server: Server, clips: Sequence[Path], *, num_frames: int) -> Traffic:
    """Analyze each clip alone on a running server and return what it sent, and when; an error without any face."""
    observed = ObservingTransport(connect(server.connection))
    options = AnalyzeOptions(sampling=Sampling(num_frames=num_frames))
    traffic = Traffic([], [], {})
    with DeepfakeClient(observed, model=server.model.name) as client:
        analyzed(client, clips[0], options)  # detector and connection are there before the clock runs
        for clip in clips:
            observed.exchanges.clear()
            started = time.perf_counter()
            traffic.labels[clip] = analyzed(client, clip, options).label.value
            exchanges = sorted(observed.exchanges, key=lambda item: item.sent_s)
            first = len(traffic.requests)
            traffic.videos.append([(item.sent_s - started, first + n) for n, item in enumerate(exchanges)])
            traffic.requests.extend(item.crops for item in exchanges)
    if not traffic.requests:
        raise OptionError("no face was found in the clips, so there is nothing to replay; give clips that show faces")
    return traffic
