"""One setting under recorded traffic: the private Triton that serves it, the load on it, and what a replay gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from deepfake_bench.load.counters import read_counters, share_between
from deepfake_bench.load.measure import falls_behind
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.statistics import Latency
from deepfake_bench.load.traffic import Traffic
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.triton_config import ServingOptions
from deepfake_serve.server import EmbeddedTriton

MAX_RAMP_S = 3.0
MIN_VIDEOS = 8
"""A window in which fewer begin is made longer, up to `MAX_LONGER` times: the p99 of two videos is chance."""
MAX_LONGER = 4
FULL_LOAD, FULL_LOAD_S = 32, 1.5


@dataclass(frozen=True, slots=True)
class Replay:
    """What one replay of traffic gave.

    Attributes:
        videos_per_s: rate at which analyses began.
        crops_per_s: crops answered.
        latency: of requests, from when they were due.
        mean_batch: crops per execution.
        errors: failed requests by status.
        falls_behind: fewer requests were answered than were due.
    """

    videos_per_s: float
    crops_per_s: float
    latency: Latency
    mean_batch: float | None
    errors: dict[str, int]
    falls_behind: bool

    def holds(self, p99_ms: float) -> bool:
        """Return whether the bound was kept."""
        waited_ms = self.latency.p99_ms
        return not self.errors and not self.falls_behind and waited_ms is not None and waited_ms <= p99_ms


class TunedTriton(EmbeddedTriton):
    """Serves one setting, with the configuration that an export would write for it."""

    def __init__(self, repository: Path, name: str, manifest: Manifest, options: ServingOptions) -> None:
        super().__init__(
            repository,
            models=[name],
            instances=options.instances,
            threads=options.threads,
            lay_out=lambda models, target, shares: self._write_setting(target),
        )
        self._version_dir = repository / name / str(manifest.spec.version)
        self._text = triton_config.embedded_config(manifest.spec, options=options, precision=manifest.precision)

    def _write_setting(self, target: Path) -> None:
        directory = target / self._version_dir.parent.name
        directory.mkdir(parents=True)
        (directory / self._version_dir.name).symlink_to(self._version_dir.resolve(), target_is_directory=True)
        (directory / triton_config.CONFIG_NAME).write_text(self._text, encoding="utf-8")


class Running:
    """A setting that is served, with the load on it."""

    def __init__(
        self, triton: EmbeddedTriton, name: str, version: int, load: LoadProcesses, traffic: Traffic
    ) -> None:
        assert triton.pid is not None
        self.grpc_url, self.root = triton.grpc_url, psutil.Process(triton.pid)
        self._name, self._version, self._load, self._traffic = name, version, load, traffic

    def replay(self, videos_per_s: float, *, window_s: float, seed: int = 0) -> Replay:
        """Replay the traffic at a rate; what comes before the window lets the queue fill.

        Args:
            videos_per_s: rate at which videos begin.
            window_s: measured time, longer where few videos begin in it.
            seed: of the arrivals.
        """
        window_s = min(max(window_s, MIN_VIDEOS / videos_per_s), MAX_LONGER * window_s)
        ramp_s = min(self._traffic.longest_s, MAX_RAMP_S)
        arrivals = self._traffic.arrivals(videos_per_s, ramp_s + window_s, seed=seed)
        before = read_counters(self.grpc_url, self._name, self._version)
        (trace,) = self._load.run(ramp_s=ramp_s, measure_s=window_s, arrivals=arrivals)
        share = share_between(before, read_counters(self.grpc_url, self._name, self._version))
        crops = sum(len(self._traffic.requests[number]) for due_s, number in arrivals if due_s >= ramp_s)
        return Replay(
            round(videos_per_s, 4),
            round(crops / window_s, 2),
            Latency.of((trace.answered_s - trace.due_s)[~trace.failed]),
            None if share.mean_batch is None else round(share.mean_batch, 2),
            dict(trace.errors),
            falls_behind([trace]),
        )

    def full_load(self) -> float:
        """Return requests answered per second while many are in flight without pause."""
        (trace,) = self._load.run(concurrency=FULL_LOAD, ramp_s=0.5, measure_s=FULL_LOAD_S)
        return trace.answered / FULL_LOAD_S
