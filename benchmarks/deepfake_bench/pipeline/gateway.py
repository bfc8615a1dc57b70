"""What a verdict by the gateway costs, against one by the client, both from the same Triton.

Four ways in turn: the library and the command, each by the gateway and by Triton itself. Verdicts are compared first.
CPU time is that of all processes: this one, Triton, the gateway with its worker and sandboxes, and commands.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deepfake_bench.machine.processes import end_process, own_cpu_seconds, start_process, tail
from deepfake_bench.machine.stopwatch import median_ratio
from deepfake_client import AnalyzeOptions, DeepfakeClient, GatewayClient
from deepfake_preprocess.errors import DeepfakeError, ServerStartError

START_S: Final = 120.0
TINY_PX: Final = 1e-3
"""Times the number of the run, faces below are left out: no verdict changes, and no earlier result answers."""
SAME_SCORE: Final = 1e-5
"""The server's sums are ordered otherwise in another batch."""
PAIRS: Final = {"library": ("library by gateway", "library"), "command": ("command by gateway", "command")}

Way = Callable[[AnalyzeOptions], list[dict[str, Any]]]


def measure_clips(
    clips: list[Path],
    triton_url: str,
    options: AnalyzeOptions,
    *,
    concurrency: int,
    rounds: int,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Return wall and CPU time of clips that are given at once, by each way, and the gateway's ratios.

    `concurrency` is how many are under way at once, in the gateway's worker as in the client.

    Raises:
        DeepfakeError: the gateway gives another verdict than the client; nothing is reported.
        ServerStartError: the gateway did not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="deepfake-bench-") as folder,
        running_gateway(Path(folder), triton_url, concurrency) as address,
        GatewayClient(address) as gateway,
        DeepfakeClient(triton_url) as client,
    ):
        paths = [str(path) for path in clips]
        at_once = len(paths)
        ways: dict[str, Way] = {
            "library by gateway": lambda given: _each(gateway, paths, given, at_once),
            "library": lambda given: _each(client, paths, given, concurrency),
            "command by gateway": lambda given: _command(paths, given, at_once, "--gateway", address),
            "command": lambda given: _command(paths, given, concurrency, "--url", triton_url),
        }
        announce("comparing the verdicts")
        _compare({name: way(replace(options, min_face_px=TINY_PX)) for name, way in ways.items()})
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(rounds):
            for position, (name, way) in enumerate(ways.items()):
                announce(f"round {number + 1} of {rounds}, {name}")
                run = 2 + number * len(ways) + position
                busy, started = own_cpu_seconds(), time.perf_counter()
                way(replace(options, min_face_px=run * TINY_PX))
                taken[name].append((time.perf_counter() - started, own_cpu_seconds() - busy))
    return {
        "at_once": at_once,
        "ways": {name: _spread(pairs) for name, pairs in taken.items()},
        "ratios": {name: _ratios(taken[by_gateway], taken[own]) for name, (by_gateway, own) in PAIRS.items()},
    }


@contextmanager
def running_gateway(folder: Path, triton_url: str, concurrency: int) -> Iterator[str]:
    """Start a gateway whose data lie in `folder`, and yield its address once it takes work."""
    log = folder / "gateway.log"
    command = [sys.executable, "-m", "deepfake_client.cli.main", "gateway", "--url", triton_url, "--port", "0"]
    command += ["--data-dir", str(folder / "data"), "--concurrency", str(concurrency)]
    process = start_process(command, log=log, env={}, cwd=folder)
    try:
        until = time.monotonic() + START_S
        while (found := re.search(r"http://[\d.:]+", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise ServerStartError(f"the gateway did not start: {tail(log)}")
            time.sleep(0.1)
        yield found[0]
    finally:
        end_process(process)


def _each(
    client: GatewayClient | DeepfakeClient, paths: list[str], options: AnalyzeOptions, concurrency: int
) -> list[dict[str, Any]]:
    outcomes = client.analyze_many(paths, options=options, concurrency=concurrency, ordered=True)
    return [outcome.to_dict() for outcome in outcomes]


def _command(paths: list[str], options: AnalyzeOptions, concurrency: int, *server: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "deepfake_client.cli.main", "analyze", *paths, *server, "--json"]
    command += ["--min-face-px", str(options.min_face_px), "--num-frames", str(options.sampling.num_frames)]
    done = subprocess.run([*command, "--concurrency", str(concurrency)], capture_output=True, text=True, check=False)
    if not done.stdout:
        raise DeepfakeError(f"the command failed: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def _compare(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse to measure where one way gives another verdict."""
    first, *others = found
    for other in others:
        for ours, theirs in zip(found[first], found[other], strict=True):
            for data in (ours, theirs):
                if "error" in data:
                    raise DeepfakeError(f"{data['source']}: {data['error']['message']}")
            if not _agree(ours, theirs):
                raise DeepfakeError(f"{ours['source']}: {first} and {other} give different verdicts; report this")


def _agree(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    mine, other = ours["fake_probability"], theirs["fake_probability"]
    if mine is None or other is None:
        return bool(ours["label"] == theirs["label"] and mine == other)
    return bool(ours["label"] == theirs["label"] and abs(mine - other) <= SAME_SCORE)


def _spread(pairs: list[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*pairs, strict=True)
    return {"wall_s": round(statistics.median(walls), 3), "cpu_s": round(statistics.median(cpus), 3)}


def _ratios(ours: list[tuple[float, float]], other: list[tuple[float, float]]) -> dict[str, float]:
    return {
        name: round(median_ratio([pair[index] for pair in ours], [pair[index] for pair in other]), 3)
        for index, name in enumerate(("wall", "cpu"))
    }
