"""Clip to verdict on a warm embedded Triton, against its parts and the usual pipeline.

Ours runs with uniform and fast sampling. The lower bounds are PyAV decoding the clip, the detector on the sampled
frames, and the server's engine in-process on the crops (`deepfake_bench.pipeline.lower_bounds`); for the usual
pipeline see `deepfake_bench.pipeline.usual`. All run in turn in every round, as a noisy machine then disturbs them
alike; ratios are medians over rounds. All but the fast one look at the same frames.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from deepfake_bench.load.counters import Counters
from deepfake_bench.load.observed import ObservingTransport, analyzed
from deepfake_bench.machine.stopwatch import in_turn, median_ratio
from deepfake_bench.pipeline.lower_bounds import decode_alone, detector_alone, inference_alone
from deepfake_bench.server.reference import tolerance_of
from deepfake_bench.server.serving import Server
from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling, Verdict, connect
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.faces.mtcnn import MtcnnDetector

LOWER_BOUNDS = ("decode_alone", "detector_alone", "inference_alone")
COUNTED_WITHIN_S = 1.0
"""Triton counts a request just after it has answered it."""

Usual = Callable[[Path, Sequence[int]], Callable[[], list[float]]]
"""From a clip and frames to the usual pipeline on them; see `deepfake_bench.pipeline.usual`."""


class Analyses:
    """Analyses on one embedded server, with nobody else on it, each with its split; the context closes the client.

    `num_frames` are sampled of each clip; `announce` is called with one line before each measurement.
    """

    def __init__(self, server: Server, num_frames: int, announce: Callable[[str], None]) -> None:
        self.server = server
        self.detector = MtcnnDetector()
        self.uniform = AnalyzeOptions(sampling=Sampling(num_frames=num_frames))
        self.fast = AnalyzeOptions(sampling=Sampling(num_frames=num_frames, mode="fast"))
        self.observed = ObservingTransport(connect(server.connection))
        self.client = DeepfakeClient(self.observed, model=server.model.name, detector=self.detector)
        self._announce = announce

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()

    def analyze(self, clip: Path, options: AnalyzeOptions) -> tuple[Verdict, dict[str, float]]:
        """Analyze a clip and return its verdict and its `split`."""
        self.observed.exchanges.clear()
        before = self.server.counters()
        started = time.perf_counter()
        verdict = analyzed(self.client, clip, options)
        total_s = time.perf_counter() - started
        deadline = time.monotonic() + COUNTED_WITHIN_S
        after = self.server.counters()
        while after.requests - before.requests < len(self.observed.exchanges) and time.monotonic() < deadline:
            after = self.server.counters()
        exchange_s = sum(item.answered_s - item.sent_s for item in self.observed.exchanges)
        return verdict, split(verdict, total_s, exchange_s, before, after)

    def crops(self, clip: Path) -> Any:
        """Return the crops of the last analysis, uint8 ``[N, H, W, 3]``, its answers checked; None without a face."""
        exchanges = self.observed.exchanges
        if not exchanges:
            return None
        crops = np.concatenate([item.crops for item in exchanges])
        answers = np.concatenate([item.probabilities for item in exchanges])
        largest = float(np.abs(inference_alone(self.server, crops)() - answers).max())
        if not largest <= tolerance_of(self.server.model.precision):
            raise DeepfakeError(
                f"{clip.name}: the served probabilities differ from the file's by {largest:g}; nothing was measured"
            )
        return crops

    def measure(self, clip: Path, *, rounds: int, usual: Usual | None = None) -> dict[str, Any]:
        """Time one clip in all ways, `rounds` times in turn; return plain JSON data, times in seconds."""
        fast_verdict, _ = self.analyze(clip, self.fast)
        verdict, _ = self.analyze(clip, self.uniform)  # warms up, and says which frames are taken
        crops = self.crops(clip)
        splits: list[dict[str, float]] = []
        ways: dict[str, Callable[[], object]] = {
            "decode_alone": lambda: decode_alone(clip),
            "detector_alone": detector_alone(clip, self.uniform.sampling, self.detector),
            **({} if crops is None else {"inference_alone": inference_alone(self.server, crops)}),
            "ours": lambda: splits.append(self.analyze(clip, self.uniform)[1]),
            "ours_fast": lambda: self.client.analyze(clip, options=self.fast),
        }
        extra: dict[str, Any] = {}
        if usual is not None:
            ways["usual"] = run = usual(clip, [frame.index for frame in verdict.frames])
            scores = run()
            extra = {"faces_usual": len(scores), "mean_score_usual": statistics.fmean(scores) if scores else None}
        taken = in_turn(ways, rounds, lambda line: self._announce(f"{clip.name}: {line}"))
        seconds = {name: [wall_s for wall_s, _ in pairs] for name, pairs in taken.items()}
        seconds["ours"] = [item["total"] for item in splits]  # the server's counters are read outside of it
        ratios = {f"ours_over_{name}": seconds[name] for name in (*LOWER_BOUNDS, "usual") if name in seconds}
        return {
            "clip": clip.name,
            "frames": len(verdict.frames),
            "faces_ours": sum(len(frame.faces) for frame in verdict.frames),
            "mean_score_ours": _mean_score(verdict),
            "seconds": seconds,
            "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
            **{name: median_ratio(seconds["ours"], other) for name, other in ratios.items()},
            "stages_s": {name: round(statistics.median(item[name] for item in splits), 4) for name in splits[0]},
            "faces_fast": sum(len(frame.faces) for frame in fast_verdict.frames),
            "mean_score_fast": _mean_score(fast_verdict),
            "fast_over_decode_alone": median_ratio(seconds["ours_fast"], seconds["decode_alone"]),
            **extra,
        }

    def measure_set(self, clips: Sequence[Path], measured: Sequence[dict[str, Any]], rounds: int) -> dict[str, Any]:
        """Analyze all clips in one run; return videos per second, and those of the usual pipeline as measured."""

        def analyze_all() -> None:
            for outcome in self.client.analyze_many(clips, options=self.uniform):
                if outcome.error is not None:
                    raise outcome.error

        seconds = [wall_s for wall_s, _ in in_turn({"set": analyze_all}, rounds)["set"]]
        data: dict[str, Any] = {
            "clips": len(clips),
            "seconds": seconds,
            "videos_per_s": round(len(clips) / statistics.median(seconds), 4),
        }
        if all("usual" in item["median_seconds"] for item in measured):
            usual = len(clips) / sum(item["median_seconds"]["usual"] for item in measured)
            data["usual_videos_per_s"] = round(usual, 4)
            data["ours_over_usual"] = round(data["videos_per_s"] / usual, 2)
        return data


def split(verdict: Verdict, total_s: float, exchange_s: float, before: Counters, after: Counters) -> dict[str, float]:
    """Return where the time of one analysis went, in seconds of wall clock in which each stage was at work.

    Stages overlap, and their sum may exceed `total_s`, which includes opening the clip. The time in which requests
    were under way (`exchange_s` is summed over them) is shared out to wire, queue and compute in proportion to what
    they took of each request, by the server's totals before and after the analysis.
    """
    stages = verdict.timing_s.to_dict()
    under_way_s = stages.pop("infer")
    del stages["total"]
    aggregate_s = stages.pop("aggregate")
    queue_s, compute_s = (after.queue_ns - before.queue_ns) / 1e9, (after.compute_ns - before.compute_ns) / 1e9
    wire_s = max(0.0, exchange_s - queue_s - compute_s)
    whole_s = (wire_s + queue_s + compute_s) or 1.0
    shares = {"wire": wire_s, "queue": queue_s, "compute": compute_s}
    return {
        **stages,
        **{name: round(under_way_s * part / whole_s, 4) for name, part in shares.items()},
        "aggregate": aggregate_s,
        "total": round(total_s, 4),
    }


def _mean_score(verdict: Verdict) -> float | None:
    scores = [
        face.fake_probability for frame in verdict.frames for face in frame.faces if face.fake_probability is not None
    ]
    return statistics.fmean(scores) if scores else None
