"""Recorded video traffic: the requests of real analyses, when they came, and how to replay them for many videos.

Requests of a video come in bursts, one for each frame with its faces, as decoding and detection let them. Uniform
load is kinder to a server: its queue hardly ever holds a frame's faces, or two videos' frames, at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.observed import ObservingTransport
from deepfake_bench.load.senders import Crops
from deepfake_client import AnalyzeOptions, DeepfakeClient, Reason, Sampling, Verdict, connect
from deepfake_preprocess.errors import DeepfakeError, OptionError


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

    @property
    def crops_per_video(self) -> float:
        """Crops that a video sends on average."""
        return sum(len(request) for request in self.requests) / len(self.videos)

    @property
    def longest_s(self) -> float:
        """Seconds from the beginning of an analysis to its last request, at most."""
        return max(moment for video in self.videos for moment, _ in video)

    def arrivals(self, videos_per_s: float, until_s: float, *, seed: int) -> list[tuple[float, int]]:
        """Return the requests of videos that begin at random times (Poisson), in order of time.

        With one seed, a higher rate gives the same pattern closer together, so that settings and rates are compared
        under the same luck.

        Args:
            videos_per_s: mean rate at which analyses begin.
            until_s: only requests before it.
            seed: of the times, and of the order of the videos.

        Returns:
            Time in seconds and position in `requests` of each.
        """
        random = np.random.default_rng(seed)
        found: list[tuple[float, int]] = []
        begin = float(random.exponential(1 / videos_per_s))
        while begin < until_s:
            video = self.videos[int(random.integers(len(self.videos)))]
            found += [(begin + moment, number) for moment, number in video if begin + moment < until_s]
            begin += float(random.exponential(1 / videos_per_s))
        return sorted(found)

    def summary(self) -> dict[str, Any]:
        """Return plain JSON data about it."""
        sizes = [len(request) for request in self.requests]
        return {
            "clips": [Path(name).name for name in self.labels],
            "labels": list(self.labels.values()),
            "requests": len(sizes),
            "crops": sum(sizes),
            "crops_per_video": round(self.crops_per_video, 2),
            "seconds_of_each": [round(video[-1][0], 3) if video else 0.0 for video in self.videos],
        }

    def some_crops(self, count: int) -> npt.NDArray[np.uint8]:
        """Return up to `count` crops, spread over the requests."""
        crops = np.concatenate(self.requests)
        return crops[:: max(1, len(crops) // count)][:count]


def record(grpc_url: str, model: str, clips: Sequence[Path], *, num_frames: int) -> Traffic:
    """Analyze each clip alone on a running server and return what it sent, and when.

    Raises:
        OptionError: no face was found in any clip.
        DeepfakeError: a clip cannot be analyzed.
    """
    observed = ObservingTransport(connect(grpc_url))
    requests: list[Crops] = []
    videos: list[list[tuple[float, int]]] = []
    labels = {}
    with DeepfakeClient(observed, model=model) as client:
        analyzed(client, clips[0], num_frames)  # detector and connection are there before the clock runs
        for clip in clips:
            observed.exchanges.clear()
            started = time.perf_counter()
            labels[str(clip)] = analyzed(client, clip, num_frames).label.value
            exchanges = sorted(observed.exchanges, key=lambda item: item.sent_s)
            videos.append([(item.sent_s - started, len(requests) + n) for n, item in enumerate(exchanges)])
            requests += [item.crops for item in exchanges]
    if not requests:
        raise OptionError("no face was found in the clips, so there is nothing to replay; give clips that show faces")
    return Traffic(requests, videos, labels)


def labels_of(grpc_url: str, model: str, clips: Sequence[Path], *, num_frames: int) -> dict[str, str]:
    """Return the verdict of each clip by its path, as a running server gives it.

    Raises:
        DeepfakeError: a clip cannot be analyzed.
    """
    with DeepfakeClient(grpc_url, model=model) as client:
        return {str(clip): analyzed(client, clip, num_frames).label.value for clip in clips}


def analyzed(client: DeepfakeClient, clip: Path, num_frames: int) -> Verdict:
    """Return the verdict of a clip that the server did not fail.

    Raises:
        DeepfakeError: it did.
    """
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=num_frames)))
    if verdict.reason in (Reason.SERVER_ERROR, Reason.SERVER_UNAVAILABLE):
        raise DeepfakeError(f"{clip.name}: {verdict.detail}; nothing was measured")
    return verdict
