"""The contenders of a comparison: servers under the same load, and engines in a process of their own.

All but the one that is measured are paused: waiting servers also poll, and would take the cores from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from deepfake_bench.compare.environments import PeerUnavailableError, peer_python
from deepfake_bench.compare.peer_list import PEERS_DIR, Peer
from deepfake_bench.load.counters import Counters, share_between
from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import RAMP_S
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Crops, LoadTarget, RequestFailedError, connected
from deepfake_bench.machine import processes
from deepfake_bench.machine.processes import HOST, MarkedProcess, end_process, free_port, start_process, tail
from deepfake_client import Connection

START_TIMEOUT_S = 90.0
POLL_INTERVAL_S = 0.1
MAX_FAILURES_OF_ITS_OWN = 30
"""So many answers in a row that the peer's code failed (HTTP 500), and it will not get better."""
REQUEST_TIMEOUT_S = 10.0

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One measurement of a contender.

    Attributes:
        latencies_s: float64 ``[N]``, of single requests; None where an engine runs many crops at a time.
        errors: failed requests by status.
        cpu_ms_per_crop: CPU time of the contender's processes.
        load_cpu_ms_per_crop: CPU time of the process that sends the requests, on the same cores; None for an engine.
        mean_batch: crops per execution, by the server's counters; None where nothing counts them.
    """

    crops_per_s: float
    latencies_s: npt.NDArray[np.float64] | None
    errors: Mapping[str, int]
    cpu_ms_per_crop: float
    load_cpu_ms_per_crop: float | None = None
    mean_batch: float | None = None

    def quantile_s(self, share: float) -> float | None:
        """Return a quantile of the latencies in seconds; None where there are none."""
        if self.latencies_s is None or not len(self.latencies_s):
            return None
        return float(np.quantile(self.latencies_s, share))


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """Something that scores crops; its processes, below `root`, are paused while it is not measured.

    `difference` is the largest one of its probabilities from the reference's; `run` keeps a number of crops
    in flight for a number of seconds.
    """

    name: str
    setting: str
    difference: float
    root: psutil.Process
    run: Callable[[int, float], Sample]
    close: Callable[[], None]

    def measure(self, concurrency: int, seconds: float) -> Sample:
        """Measure it with so many crops in flight."""
        with processes.running(self.root):
            return self.run(concurrency, seconds)


def server_contender(
    name: str,
    setting: str,
    difference: float,
    *,
    target: LoadTarget,
    crops: Crops,
    root: psutil.Process,
    counters: Callable[[], Counters] | None = None,
    stop: Callable[[], None] | None = None,
) -> Contender:
    """Return a running server, under the load of `deepfake_bench.load.process`.

    `counters` reads what the server has counted, where it counts; `stop` ends it, where that is ours to do.
    """
    load = LoadProcesses(target, crops)
    with processes.running(root):  # it may be paused as another contender, and memory is shared with it
        load.__enter__()

    def run(concurrency: int, seconds: float) -> Sample:
        before, cpu_before = counters and counters(), processes.cpu_seconds(root)
        (trace,) = load.run(Load(concurrency=concurrency, ramp_s=RAMP_S, measure_s=seconds))
        cpu_s, after = processes.cpu_seconds(root) - cpu_before, counters and counters()
        return Sample(
            trace.answered / seconds,
            (trace.answered_s - trace.due_s)[~trace.failed],
            trace.errors,
            1_000 * cpu_s / max(1, trace.succeeded),  # with the ramp's, which cost CPU time too
            1_000 * trace.cpu_s / max(1, trace.answered),
            None if before is None or after is None else share_between(before, after).mean_batch,
        )

    def close() -> None:
        processes.resume(root)
        load.close()
        if stop is not None:
            stop()

    return Contender(name, setting, difference, root, run, close)


def start_peer(
    peer: Peer, *, crops: Crops, expected: Probabilities, scratch: Path, announce: Callable[[str], None]
) -> Contender:
    """Install a peer if need be, start it, and check its probabilities of `crops` to be the `expected` ones.

    Logs and crops are written below `scratch`; `announce` is called with one line before something slow. Whatever
    fails is a `PeerUnavailableError`.
    """
    python, env = Path(sys.executable), dict(peer.env)
    if peer.requirements:
        python = peer_python(peer.name.split()[0].lower(), peer.requirements, announce=announce)
        env["PYTHONPATH"] = ""  # this project's modules must not reach it
    announce(f"starting {peer.name}: {peer.setting}")
    port = free_port()
    env["PEER_OPTIONS"] = json.dumps({**peer.options, "port": port})
    command = [str(python), *(part.replace("{port}", str(port)) for part in peer.command)]
    log = Path(tempfile.mkdtemp(dir=scratch)) / "log"
    process = start_process(command, log=log, env=env, cwd=PEERS_DIR, pipes=peer.http is None)
    with contextlib.ExitStack() as stack:
        stack.callback(stop := partial(end_process, process))
        if peer.http is None:
            contender = _engine_contender(peer, process, log, crops, expected)
        else:
            target = LoadTarget(Connection(url=f"http://{HOST}:{port}", headers={}), http=peer.http)
            _wait_until_answers(peer.name, process, target, crops, log)
            try:
                difference = _difference(peer, asyncio.run(_ask(target, crops)), expected)
            except RequestFailedError as exc:
                raise PeerUnavailableError(f"{peer.name} failed a request: {exc}") from exc
            root = psutil.Process(process.pid)
            contender = server_contender(
                peer.name, peer.setting, difference, target=target, crops=crops, root=root, stop=stop
            )
        stack.pop_all()
    return contender


def _engine_contender(
    peer: Peer, process: MarkedProcess, log: Path, crops: Crops, expected: Probabilities
) -> Contender:
    """Return an in-process engine, whose process obeys orders (see ``peers/engine.py``)."""
    reader, writer = process.stdout, process.stdin
    assert reader is not None
    assert writer is not None

    def order(**fields: object) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # why it ended is found out next
            writer.write(json.dumps(fields) + "\n")
            writer.flush()
        line = reader.readline()
        if not line:
            raise PeerUnavailableError(f"{peer.name} ended: {tail(log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    root = psutil.Process(process.pid)

    def run(concurrency: int, seconds: float) -> Sample:
        cpu_before, started = processes.cpu_seconds(root), time.perf_counter()
        answer = order(concurrency=concurrency, seconds=seconds)
        elapsed_s, cpu_s = time.perf_counter() - started, processes.cpu_seconds(root) - cpu_before
        latencies = np.asarray(answer["latencies_s"], np.float64) if "latencies_s" in answer else None
        rate = float(answer["crops_per_s"]) if latencies is None else len(latencies) / float(latencies.sum())
        return Sample(rate, latencies, {}, 1_000 * cpu_s / (rate * elapsed_s))

    crops_file = log.with_name("crops.npy")
    np.save(crops_file, crops)
    answers = np.asarray(order(crops=str(crops_file))["probabilities"], np.float32)
    difference = _difference(peer, answers, expected)
    processes.pause(root)
    return Contender(peer.name, peer.setting, difference, root, run, partial(end_process, process))


def _wait_until_answers(name: str, process: MarkedProcess, target: LoadTarget, crops: Crops, log: Path) -> None:
    """Return when a server answers its first request; a `PeerUnavailableError` where it ends or does not in time."""
    deadline, failures = time.monotonic() + START_TIMEOUT_S, 0
    while True:
        try:
            asyncio.run(_ask(target, crops[:1]))
            return
        except RequestFailedError as exc:
            failure = str(exc)
            failures = failures + 1 if failure == "HTTP 500" else 0
        if failures >= MAX_FAILURES_OF_ITS_OWN:
            raise PeerUnavailableError(f"{name} fails every request ({failure}): {tail(log)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_INTERVAL_S)
        if process.returncode is not None:
            raise PeerUnavailableError(f"{name} ended as it started: {tail(log)}")
        if time.monotonic() > deadline:
            raise PeerUnavailableError(f"{name} did not answer within {START_TIMEOUT_S:g} s ({failure}): {tail(log)}")


async def _ask(target: LoadTarget, crops: Crops) -> Probabilities:
    """Return float32 ``[N]`` probabilities of crops, sent one by one to a server that answers with a JSON list."""
    async with connected(target, crops) as send:
        answers = [await send(number, REQUEST_TIMEOUT_S) for number in range(len(crops))]
    return np.asarray([np.ravel(json.loads(answer)) for answer in answers], np.float32)[:, 0]


def _difference(peer: Peer, answers: Probabilities, expected: Probabilities) -> float:
    """Return the largest difference; a `PeerUnavailableError` where that is above the tolerance, or not a number."""
    largest = float(np.abs(answers - expected).max())
    if not largest <= peer.tolerance:
        raise PeerUnavailableError(f"{peer.name} gives other probabilities, by up to {largest:g}")
    return largest
