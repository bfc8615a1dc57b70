"""What serving costs: crops per second through the embedded Triton, against the same ONNX file in-process.

::

    deepfake bench served --repository model_repository

One run alternates between these arrangements on the same cores, and every ratio is taken within a round, so
that a machine that is busy elsewhere slows both sides alike:

- `served`: 32 requests of one crop each in flight, from a process of their own; over gRPC, over HTTP, and over gRPC
  with the crops in shared memory;
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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from rich.table import Table

from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import PROTOCOLS, Crops, protocols_named
from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.server.reference import OnnxReference, verify_served
from deepfake_bench.server.serving import Server, embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import DeepfakeError
from deepfake_serve._cores import CROPS_PER_THREAD

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio")
RAMP_S = 0.5
"""Time before each measurement of the server, in which its queue fills; some batches long."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one protocol: throughputs in crops per second, and CPU time (all cores) in milliseconds per crop.

    The rounds of all protocols have the in-process measurements in common.
    """

    served: float
    same_sessions: float
    one_session: float
    server_cpu_ms: float
    load_cpu_ms: float
    same_sessions_cpu_ms: float


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """What serving over one protocol costs; medians over the rounds.

    Attributes:
        ratio_to_same_sessions: served / same sessions in-process, within a round.
        ratio_to_one_session: served / one session in-process, within a round.
        server_cpu_ms_per_crop: CPU time of Triton with all its processes.
        load_cpu_ms_per_crop: CPU time of the process that sends the requests, on the same cores.
        mean_batch: crops per execution, from the server's counters.
    """

    crops_per_s: float
    ratio_to_same_sessions: float
    ratio_to_one_session: float
    server_cpu_ms_per_crop: float
    load_cpu_ms_per_crop: float
    mean_batch: float
    largest_probability_difference: float
    rounds: list[Round]


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the comparison; rates and CPU times are medians over the rounds."""

    model: str
    precision: str
    input_size_wh: list[int]
    concurrency: int
    max_batch_size: int
    instances: int
    threads_per_instance: int
    seconds_per_measurement: float
    same_sessions_crops_per_s: float
    one_session_crops_per_s: float
    same_sessions_cpu_ms_per_crop: float
    protocols: dict[str, ProtocolResult]


def run(
    repository: Path,
    *,
    model: str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
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
        protocols: how the crops get to the server, each measured in every round; of `senders.PROTOCOLS`.
        concurrency: requests in flight, of one crop each.
        rounds: how often the arrangements alternate.
        seconds: length of one measurement.
        instances: as in `deepfake serve`.
        threads: as in `deepfake serve`.

    Raises:
        DeepfakeError: the server does not start, or its scores are not those of the file.
    """
    with (
        embedded_server(repository, model=model, instances=instances, threads=threads) as server,
        ExitStack() as stack,
    ):
        share, max_batch = server.arrangement, server.max_batch_size
        assert server.reference is not None
        sessions = [OnnxReference(server.reference, threads=share["threads"]) for _ in range(share["instances"])]
        whole = [OnnxReference(server.reference, threads=share["instances"] * share["threads"])]
        targets = {protocol: server.target(protocol) for protocol in protocols}
        differences = {name: verify_served(target, server.crops, sessions[0]) for name, target in targets.items()}
        # As many at once as the server computes; larger batches are slower.
        batch = np.resize(server.crops, (CROPS_PER_THREAD * share["threads"], *server.crops.shape[1:]))
        whole_batch = np.resize(server.crops, (len(batch) * share["instances"], *server.crops.shape[1:]))
        loads = {name: stack.enter_context(LoadProcesses(target, server.crops)) for name, target in targets.items()}
        for load in loads.values():
            load.run(concurrency=concurrency, ramp_s=0.0, measure_s=1.0)  # connections, allocations and caches
        measured: dict[str, list[Round]] = {name: [] for name in loads}
        batches: dict[str, list[float]] = {name: [] for name in loads}
        for _ in range(rounds):
            under_load = {name: _served(server, load, concurrency, seconds) for name, load in loads.items()}
            same_rate, same_cpu_ms = _in_process_rate(sessions, batch, seconds)
            one_rate, _ = _in_process_rate(whole, whole_batch, seconds)
            for name, (rate, server_cpu_ms, load_cpu_ms, mean_batch) in under_load.items():
                measured[name].append(Round(rate, same_rate, one_rate, server_cpu_ms, load_cpu_ms, same_cpu_ms))
                batches[name].append(mean_batch)
    (any_rounds, *_) = measured.values()
    return Result(
        model=server.model,
        precision=server.identity["precision"],
        input_size_wh=server.identity["input_size_wh"],
        concurrency=concurrency,
        max_batch_size=max_batch,
        instances=share["instances"],
        threads_per_instance=share["threads"],
        seconds_per_measurement=seconds,
        same_sessions_crops_per_s=_median(item.same_sessions for item in any_rounds),
        one_session_crops_per_s=_median(item.one_session for item in any_rounds),
        same_sessions_cpu_ms_per_crop=_median(item.same_sessions_cpu_ms for item in any_rounds),
        protocols={
            name: ProtocolResult(
                crops_per_s=_median(item.served for item in items),
                ratio_to_same_sessions=_median(item.served / item.same_sessions for item in items),
                ratio_to_one_session=_median(item.served / item.one_session for item in items),
                server_cpu_ms_per_crop=_median(item.server_cpu_ms for item in items),
                load_cpu_ms_per_crop=_median(item.load_cpu_ms for item in items),
                mean_batch=_median(batches[name]),
                largest_probability_difference=differences[name],
                rounds=items,
            )
            for name, items in measured.items()
        },
    )


def _served(
    server: Server, load: LoadProcesses, concurrency: int, seconds: float
) -> tuple[float, float, float, float]:
    """Load the server; return crops per second, CPU milliseconds per crop of server and load, and the mean batch."""
    before, cpu_before = server.counters(), _cpu_seconds(load)
    (trace,) = load.run(concurrency=concurrency, ramp_s=RAMP_S, measure_s=seconds)
    after, cpu_after = server.counters(), _cpu_seconds(load)
    if trace.errors:
        raise DeepfakeError(f"the server failed requests: {trace.errors}; nothing was written")
    crops = after.crops - before.crops
    server_ms, load_ms = (1_000 * (end - start) / crops for start, end in zip(cpu_before, cpu_after, strict=True))
    return trace.answered / seconds, server_ms, load_ms, crops / (after.executions - before.executions)


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


def _cpu_seconds(load: LoadProcesses) -> tuple[float, float]:
    """Return the CPU seconds that the server's processes (with idle loads) and the load have used so far."""
    server = loading = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        if process.pid in load.pids:
            loading += times.user + times.system
        else:
            server += times.user + times.system
    return server, loading


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def served(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    protocol: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PROTOCOLS),
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
        protocols=protocols_named(protocol),
        concurrency=concurrency,
        rounds=rounds,
        seconds=seconds,
        instances=instances,
        threads=threads,
    )
    path = write_results("served", {"environment": environment(PACKAGES), **asdict(result)}, path=output)
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for column in ("crops/s", "of same sessions", "of one session", "CPU ms per crop", "load's CPU ms", "batch"):
        table.add_column(column, justify="right")
    for name, item in result.protocols.items():
        table.add_row(
            f"served, {name}, {concurrency} in flight",
            f"{item.crops_per_s:.1f}",
            f"{item.ratio_to_same_sessions:.2f}",
            f"{item.ratio_to_one_session:.2f}",
            f"{item.server_cpu_ms_per_crop:.2f}",
            f"{item.load_cpu_ms_per_crop:.2f}",
            f"{item.mean_batch:.1f}",
        )
    same_cpu = f"{result.same_sessions_cpu_ms_per_crop:.2f}"
    table.add_row("in-process, same sessions", f"{result.same_sessions_crops_per_s:.1f}", "", "", same_cpu)
    table.add_row("in-process, one session", f"{result.one_session_crops_per_s:.1f}")
    table_console().print(table)
    typer.echo(f"written to {path}")
