"""Whether cost grows linearly: copies of the clips, analyzed in one run, with time per clip and memory.

Each number of copies has a process of its own, since peak memory can only be seen from one that did nothing else.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from deepfake_bench.machine.processes import cpu_seconds, own_peak_mb, rss_mb
from deepfake_bench.server.serving import Server
from deepfake_client import AnalyzeOptions, Connection, DeepfakeClient, Sampling

MAX_REPEATS = 5
"""Most repeats of a small number of clips, whose time is known less precisely than that of many."""


def measure_scaling(
    server: Server, clips: Sequence[Path], counts: Sequence[int], *, num_frames: int, announce: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return what each number of clips costs as plain JSON data, also against the smallest number.

    ``s_per_clip`` is wall clock, ``cpu_s_per_clip`` CPU time of client and server; both are medians over ``repeats``.
    Memory is that of the first time, in MiB: ``peak_mb`` and ``growth_mb`` (after the last clip less after the first)
    of the client, ``server_mb`` of the server's processes afterwards. ``late_growth_mb`` is the growth in the second
    half of the clips: what a leak would go on with, while what threads and allocators set aside once is mostly in the
    first.

    The clips are taken in turn; `counts` ascend.
    """
    assert server.root is not None
    costs = []
    for count in counts:
        announce(f"{count} clip{'s' * (count > 1)} in one run")
        repeats = max(1, min(MAX_REPEATS, counts[-1] // count))
        with (
            tempfile.TemporaryDirectory(prefix="deepfake-bench-") as folder,
            multiprocessing.get_context("spawn").Pool(1) as pool,
        ):
            for number in range(count):
                clip = clips[number % len(clips)].absolute()
                (Path(folder) / f"{number:05d}{clip.suffix}").symlink_to(clip)
            served = (server.connection, server.model.name, server.root.pid)
            costs.append(pool.apply(_cost, (*served, folder, repeats, num_frames)))
    one = costs[0]
    return [
        {
            **cost,
            "time_ratio": round(cost["s_per_clip"] / one["s_per_clip"], 3),
            "cpu_ratio": round(cost["cpu_s_per_clip"] / one["cpu_s_per_clip"], 3),
            "peak_growth_mb": round(cost["peak_mb"] - one["peak_mb"], 1),
        }
        for cost in costs
    ]


def _cost(
    connection: Connection, model: str, server_pid: int, folder: str, repeats: int, num_frames: int
) -> dict[str, float]:
    """Analyze a folder in this process, which has done nothing else but one clip before."""
    server = psutil.Process(server_pid)
    options = AnalyzeOptions(sampling=Sampling(num_frames=num_frames))
    count = len(list(Path(folder).iterdir()))
    seconds, cpu, resident = [], [], []
    peak_mb = 0.0
    with DeepfakeClient(connection, model=model) as client:
        client.analyze(min(Path(folder).iterdir()), options=options)
        for repeat in range(repeats):
            started, busy = time.perf_counter(), time.process_time() + cpu_seconds(server)
            for outcome in client.analyze_many(folder, options=options):
                if outcome.error is not None:
                    raise outcome.error
                if repeat == 0:
                    resident.append(psutil.Process().memory_info().rss / 2**20)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() + cpu_seconds(server) - busy)
            peak_mb = peak_mb or own_peak_mb()
    return {
        "clips": count,
        "repeats": repeats,
        "s_per_clip": round(statistics.median(seconds) / count, 4),
        "cpu_s_per_clip": round(statistics.median(cpu) / count, 4),
        "peak_mb": peak_mb,
        "growth_mb": round(resident[-1] - resident[0], 1),
        "late_growth_mb": round(resident[-1] - resident[len(resident) // 2], 1),
        "server_mb": rss_mb(server),
    }
