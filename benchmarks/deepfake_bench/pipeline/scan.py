"""What `deepfake scan` costs against `DeepfakeClient.analyze_many`, and what other callers notice of it.

Each way analyzes the same files in turn, in a process of its own, from the same Triton. Starting costs seconds, on
Ray many, and now more and now less, and a scan of millions pays it once: so the rate is that from one clip's end to
another's, with all that may be under way at once left out before and after.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepfake_bench.load.statistics import Latency
from deepfake_bench.machine.stopwatch import median_ratio
from deepfake_client import DeepfakeClient
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.machine import usable_cores
from deepfake_scan.results.parts import part_names, read_part
from deepfake_scan.storage import open_storage
from deepfake_scan.work.entry import NICE

ANALYZE_MANY: Final = "analyze_many"
ALONE: Final = "alone"
AT_ONCE: Final = 2
"""Clips for each core that a way may have under way."""
ASK_EVERY_S: Final = 0.1
"""The other caller sends a crop so often, whether or not the one before was answered in time."""
WORKER_NICENESS: Final = "RAY_worker_niceness"
"""Variable of a cluster whose nodes serve, too (docs/scale.md)."""
ASKED_ALONE_S: Final = 15.0
"""In each round, about as long as beside a scan of some clips."""

_PROGRAM: Final = """
import sys, time
from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
url, folder, frames, concurrency = sys.argv[1:]
options = AnalyzeOptions(sampling=Sampling(num_frames=int(frames)))
with DeepfakeClient(url) as client:
    for outcome in client.analyze_many(folder, options=options, concurrency=int(concurrency), ordered=False):
        outcome.verdict or sys.exit(f"{outcome.source}: {outcome.error}")
        print(time.time(), flush=True)
"""


def measure_scans(
    clips: Sequence[Path],
    url: str,
    *,
    engines: Sequence[str],
    copies: int,
    num_frames: int,
    concurrency: int,
    rounds: int,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Return clips a second of each way, ratios to `analyze_many`, and the latency of another caller.

    Raises:
        DeepfakeError: a way failed.
    """
    with tempfile.TemporaryDirectory(prefix="deepfake-bench-") as scratch, _ray(engines):
        folder = _copies(clips, Path(scratch) / "clips", copies)
        count = len(clips) * copies
        edge = min(AT_ONCE * concurrency, (count - 2) // 2)

        def run(way: str) -> list[float]:
            """Return when each clip was finished, in seconds."""
            if way == ANALYZE_MANY:
                program = [sys.executable, "-c", _PROGRAM, url, str(folder), str(num_frames), str(concurrency)]
                return sorted(map(float, _output(program).split()))
            output = tempfile.mkdtemp(dir=scratch)
            given = ["scan", str(folder), "--output", output, "--engine", way.removeprefix("scan "), "--url", url]
            _output([sys.executable, "-m", "deepfake_client.cli.main", *given, "--num-frames", str(num_frames)])
            return finished_at(output)

        ways = [ANALYZE_MANY, *(f"scan {engine}" for engine in engines)]
        taken: dict[str, list[float]] = {way: [] for way in ways}
        waited: dict[str, list[float]] = {way: [] for way in (ALONE, *ways)}
        with _Caller(url) as caller:
            for number in range(rounds):
                for way in ways:
                    announce(f"round {number + 1} of {rounds}, {way}")
                    ends = run(way)
                    taken[way].append(ends[count - 1 - edge] - ends[edge])
                # In each round, too: what else the machine does meets all of them.
                announce(f"round {number + 1} of {rounds}, a caller alone")
                waited[ALONE] += caller.waits_during(lambda: time.sleep(ASKED_ALONE_S))
                for way in ways:
                    announce(f"round {number + 1} of {rounds}, a caller beside {way}")
                    waited[way] += caller.waits_during(lambda: run(way))  # noqa: B023
    latency = {way: Latency.of(np.array(seconds)) for way, seconds in waited.items()}
    alone = latency[ALONE]
    timed = count - 1 - 2 * edge
    return {
        "clips_timed": timed,
        "ways": {
            way: {
                "clips_per_s": round(timed / statistics.median(walls), 3),
                "rate_ratio": round(median_ratio(taken[ANALYZE_MANY], walls), 3),
                "caller_p50_ms": latency[way].p50_ms,
                "caller_p99_ms": latency[way].p99_ms,
                "caller_p99_ratio": _ratio(latency[way].p99_ms, alone.p99_ms),
                "caller_answers": len(waited[way]),
            }
            for way, walls in taken.items()
        },
        "caller_alone": {"p50_ms": alone.p50_ms, "p99_ms": alone.p99_ms, "answers": len(waited[ALONE])},
    }


def _ratio(ours: float | None, other: float | None) -> float | None:
    return round(ours / other, 2) if ours and other else None


@contextmanager
def _ray(engines: Sequence[str]) -> Iterator[None]:
    """Run a cluster of this machine, where it is asked for: its start is no part of a scan."""
    if "ray" not in engines:
        yield
        return
    cores = usable_cores()  # it would have one
    os.environ[WORKER_NICENESS] = str(NICE)
    cluster = require_extra("ray.cluster_utils", extra="ray").Cluster(
        initialize_head=True, head_node_args={"num_cpus": cores}
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"], os.environ[WORKER_NICENESS]
        cluster.shutdown()


def _copies(clips: Sequence[Path], folder: Path, times: int) -> Path:
    folder.mkdir()
    for number in range(times):
        for place, clip in enumerate(clips):
            shutil.copy(clip, folder / f"{number:04}-{place:04}{clip.suffix}")
    return folder


def _output(command: Sequence[str]) -> str:
    """Run a command and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeepfakeError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def finished_at(output: str) -> list[float]:
    """Return when each input of a scan was finished, in seconds since 1970, in order; DeepfakeError: one failed."""
    storage, found = open_storage(output), list[float]()
    for name in part_names(storage):
        for row in read_part(storage, name, ["finished_at", "error_type"]).to_pylist():
            if row["error_type"]:
                raise DeepfakeError(f"a clip has no verdict: {row['error_type']}")
            found.append(row["finished_at"].timestamp())
    return sorted(found)


class _Caller:
    """Somebody else who asks the server for the score of a crop, now and then."""

    def __init__(self, url: str) -> None:
        self._client = DeepfakeClient(url)

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def waits_during(self, work: Callable[[], object]) -> list[float]:
        """Return how long each answer takes while `work` goes on, in seconds from when its request was due."""
        spec = self._client.model().spec
        crop = np.random.default_rng(0).integers(0, 256, (1, spec.input_height_px, spec.input_width_px, 3), np.uint8)
        self._client.score(crop)
        over, waited = threading.Event(), list[float]()

        def ask() -> None:
            due = time.perf_counter()
            while not over.wait(max(0.0, due - time.perf_counter())):
                self._client.score(crop)
                waited.append(time.perf_counter() - due)
                due += ASK_EVERY_S

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            work()
        finally:
            over.set()
            asking.join()
        return waited
