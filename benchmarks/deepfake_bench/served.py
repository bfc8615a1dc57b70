"""What serving costs: crops per second through the embedded Triton, against the same ONNX file in-process.

::

    deepfake bench served --repository model_repository

One run alternates between three arrangements on the same cores, and every ratio is taken within a round, so
that a machine that is busy elsewhere slows both sides alike:

- `served`: 32 requests of one crop each in flight over gRPC, from a process of their own;
- `same sessions in-process`: as many ONNX Runtime sessions and threads as the server has, fed full batches in
  a loop. The server cannot be faster than this; what is missing is what serving costs;
- `one session in-process`: one session with all threads, as an application without a server would do it.

Outputs are compared before anything is timed. Batching is read from the server's own counters. CPU time per
crop is recorded beside the rates: it says what serving costs even where other programs take the cores.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from deepfake_bench.environment import environment, write_results
from deepfake_bench.load_process import LoadProcesses
from deepfake_bench.reference import OnnxReference, verify_served
from deepfake_bench.senders import Crops
from deepfake_bench.serving import embedded_server
from deepfake_preprocess.errors import DeepfakeError
from deepfake_serve.cores import CROPS_PER_THREAD

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio")
RAMP_S = 0.5
"""Time before each measurement of the server, in which its queue fills; some batches long."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: throughputs in crops per second, and CPU time (all cores) in milliseconds per crop."""

    served: float
    same_sessions: float
    one_session: float
    server_cpu_ms: float
    load_cpu_ms: float
    same_sessions_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the comparison.

    Attributes:
        ratio_to_same_sessions: median over rounds of served / same sessions in-process.
        ratio_to_one_session: median over rounds of served / one session in-process.
        server_cpu_ms_per_crop: median CPU time of Triton with all its processes.
        load_cpu_ms_per_crop: median CPU time of the process that sends the requests, on the same cores.
        same_sessions_cpu_ms_per_crop: median CPU time of the in-process sessions.
        mean_batch: crops per execution, from the server's counters.
    """

    model: str
    precision: str
    input_size_wh: list[int]
    concurrency: int
    max_batch_size: int
    instances: int
    threads_per_instance: int
    seconds_per_measurement: float
    served_crops_per_s: float
    same_sessions_crops_per_s: float
    one_session_crops_per_s: float
    ratio_to_same_sessions: float
    ratio_to_one_session: float
    server_cpu_ms_per_crop: float
    load_cpu_ms_per_crop: float
    same_sessions_cpu_ms_per_crop: float
    mean_batch: float
    largest_probability_difference: float
    rounds: list[Round]


def run(
    repository: Path,
    *,
    model: str | None = None,
    concurrency: int = 32,
    rounds: int = 5,
    seconds: float = 5.0,
    instances: int | None = None,
    threads: int | None = None,
) -> Result:
    """Start the server on `repository` and compare.

    Args:
        repository: model repository.
        model: model to measure; the first one where None.
        concurrency: requests in flight, of one crop each.
        rounds: how often the arrangements alternate.
        seconds: length of one measurement.
        instances: as in `deepfake serve`.
        threads: as in `deepfake serve`.

    Raises:
        DeepfakeError: the server does not start, or its scores are not those of the file.
    """
    with embedded_server(repository, model=model, instances=instances, threads=threads) as server:
        share, max_batch = server.arrangement, server.max_batch_size
        assert server.reference is not None
        sessions = [OnnxReference(server.reference, threads=share["threads"]) for _ in range(share["instances"])]
        whole = [OnnxReference(server.reference, threads=share["instances"] * share["threads"])]
        target, crops = server.target("grpc"), server.crops
        difference = verify_served(target, crops, sessions[0])
        # As many at once as the server computes; larger batches are slower.
        batch = np.resize(crops, (CROPS_PER_THREAD * share["threads"], *crops.shape[1:]))
        whole_batch = np.resize(crops, (len(batch) * share["instances"], *crops.shape[1:]))
        with LoadProcesses(target, crops) as load:
            load.run(concurrency=concurrency, ramp_s=0.0, measure_s=1.0)  # connections, allocations and caches
            measured: list[Round] = []
            (load_pid,) = load.pids
            crops_run = executions = 0
            for _ in range(rounds):
                before, cpu_before = server.counters(), _cpu_seconds(load_pid)
                (trace,) = load.run(concurrency=concurrency, ramp_s=RAMP_S, measure_s=seconds)
                after, cpu_after = server.counters(), _cpu_seconds(load_pid)
                if trace.errors:
                    raise DeepfakeError(f"the server failed requests: {trace.errors}; nothing was written")
                served_rate = trace.answered / seconds
                crops_here = after.crops - before.crops
                crops_run += crops_here
                executions += after.executions - before.executions
                same_rate, same_cpu_ms = _in_process_rate(sessions, batch, seconds)
                measured.append(
                    Round(
                        served=served_rate,
                        same_sessions=same_rate,
                        one_session=_in_process_rate(whole, whole_batch, seconds)[0],
                        server_cpu_ms=1_000 * (cpu_after[0] - cpu_before[0]) / crops_here,
                        load_cpu_ms=1_000 * (cpu_after[1] - cpu_before[1]) / crops_here,
                        same_sessions_cpu_ms=same_cpu_ms,
                    )
                )
    return Result(
        model=server.model,
        precision=server.identity["precision"],
        input_size_wh=server.identity["input_size_wh"],
        concurrency=concurrency,
        max_batch_size=max_batch,
        instances=share["instances"],
        threads_per_instance=share["threads"],
        seconds_per_measurement=seconds,
        served_crops_per_s=_median(measured, lambda item: item.served),
        same_sessions_crops_per_s=_median(measured, lambda item: item.same_sessions),
        one_session_crops_per_s=_median(measured, lambda item: item.one_session),
        ratio_to_same_sessions=_median(measured, lambda item: item.served / item.same_sessions),
        ratio_to_one_session=_median(measured, lambda item: item.served / item.one_session),
        server_cpu_ms_per_crop=_median(measured, lambda item: item.server_cpu_ms),
        load_cpu_ms_per_crop=_median(measured, lambda item: item.load_cpu_ms),
        same_sessions_cpu_ms_per_crop=_median(measured, lambda item: item.same_sessions_cpu_ms),
        mean_batch=round(crops_run / executions, 2),
        largest_probability_difference=difference,
        rounds=measured,
    )


def _in_process_rate(sessions: list[OnnxReference], batch: Crops, seconds: float) -> tuple[float, float]:
    """Run all sessions together, each in a thread of its own.

    Returns:
        Crops per second, and CPU milliseconds per crop.
    """
    for session in sessions:
        session(batch)
    gate = threading.Barrier(len(sessions))

    def loop(session: OnnxReference) -> tuple[float, int]:
        gate.wait()
        start, crops, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < seconds:
            session(batch)
            crops += len(batch)
            elapsed = time.perf_counter() - start
        return crops / elapsed, crops

    cpu_start = time.process_time()
    with ThreadPoolExecutor(len(sessions)) as pool:
        rates, crops = zip(*pool.map(loop, sessions), strict=True)
    return sum(rates), 1_000 * (time.process_time() - cpu_start) / sum(crops)


def _cpu_seconds(load_pid: int) -> tuple[float, float]:
    """Return the CPU seconds that the server's processes and the load process have used so far."""
    server = load = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        if process.pid == load_pid:
            load += times.user + times.system
        else:
            server += times.user + times.system
    return server, load


def _median(rounds: list[Round], of: Callable[[Round], float]) -> float:
    return round(statistics.median(of(item) for item in rounds), 3)


def served(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests of one crop in flight.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often the arrangements alternate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1)] = 5.0,
    instances: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-served.json.")
    ] = None,
) -> None:
    """Measure what serving costs: the embedded Triton against the same ONNX file in-process."""
    result = run(
        repository,
        model=model,
        concurrency=concurrency,
        rounds=rounds,
        seconds=seconds,
        instances=instances,
        threads=threads,
    )
    data = {"environment": environment(PACKAGES), **asdict(result)}
    path = write_results("served", data, path=output)
    typer.echo(f"served, {concurrency} x 1 crop         {result.served_crops_per_s:8.1f} crops/s")
    typer.echo(
        f"in-process, same sessions    {result.same_sessions_crops_per_s:8.1f} crops/s, "
        f"ratio {result.ratio_to_same_sessions:.3f}"
    )
    typer.echo(
        f"in-process, one session      {result.one_session_crops_per_s:8.1f} crops/s, "
        f"ratio {result.ratio_to_one_session:.3f}"
    )
    typer.echo(
        f"CPU per crop                 {result.server_cpu_ms_per_crop:8.2f} ms server, "
        f"{result.load_cpu_ms_per_crop:.2f} ms load, {result.same_sessions_cpu_ms_per_crop:.2f} ms in-process"
    )
    typer.echo(f"mean batch, by the server    {result.mean_batch:8.2f}")
    typer.echo(f"written to {path}")
