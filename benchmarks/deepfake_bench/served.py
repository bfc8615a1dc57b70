"""What serving costs: crops per second through the embedded Triton, against the same ONNX file in-process.

::

    python -m deepfake_bench.served --repository model_repository

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

import asyncio
import multiprocessing
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import psutil
import typer

from deepfake_bench.environment import environment, write_results
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.spec import INPUT_NAME, PROBABILITY_NAME
from deepfake_serve.repository import MODEL_FILE, ServedModel
from deepfake_serve.server import EmbeddedTriton

Crops = npt.NDArray[np.uint8]

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio")
VERIFIED_CROPS = 16
RAMP_S = 0.5
"""Time before each measurement of the server, in which its queue fills; some batches long."""
PROBABILITY_TOLERANCE = 1e-4
"""Float32 on the same machine; only the batch size, and so the order of sums, differs."""


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
    input_size_wh: tuple[int, int]
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
    seconds: float = 3.0,
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
    with EmbeddedTriton(repository, models=[model] if model else (), instances=instances, threads=threads) as triton:
        served = triton.models[0]
        share = triton.share
        max_batch = int(served.config.max_batch_size)
        width, height = served.spec.input_size_wh
        crops = np.random.default_rng(0).integers(0, 256, (VERIFIED_CROPS, height, width, 3), dtype=np.uint8)
        onnx_path = served.version_dir / MODEL_FILE
        sessions = [_session(onnx_path, share.threads) for _ in range(share.instances)]
        whole = [_session(onnx_path, share.instances * share.threads)]
        difference = _largest_difference(triton.grpc_url, served, crops, sessions[0])
        batch = np.resize(crops, (max_batch, height, width, 3))
        with LoadProcess(triton.grpc_url, served.spec.name, crops[:1], concurrency) as load:
            load.measure(1.0)  # connections, allocations and caches of the server
            measured: list[Round] = []
            crops_run = executions = 0
            for _ in range(rounds):
                before, cpu_before = _counters(triton.metrics_url, served.spec.name), _cpu_seconds(load.pid)
                served_rate = load.measure(seconds)
                after, cpu_after = _counters(triton.metrics_url, served.spec.name), _cpu_seconds(load.pid)
                crops_here = after[0] - before[0]
                crops_run += crops_here
                executions += after[1] - before[1]
                same_rate, same_cpu_ms = _in_process_rate(sessions, batch, seconds)
                measured.append(
                    Round(
                        served=served_rate,
                        same_sessions=same_rate,
                        one_session=_in_process_rate(whole, batch, seconds)[0],
                        server_cpu_ms=1_000 * (cpu_after[0] - cpu_before[0]) / crops_here,
                        load_cpu_ms=1_000 * (cpu_after[1] - cpu_before[1]) / crops_here,
                        same_sessions_cpu_ms=same_cpu_ms,
                    )
                )
    return Result(
        model=served.spec.name,
        input_size_wh=served.spec.input_size_wh,
        concurrency=concurrency,
        max_batch_size=max_batch,
        instances=share.instances,
        threads_per_instance=share.threads,
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


class LoadProcess:
    """A process that keeps a number of single-crop requests in flight while it is told to."""

    def __init__(self, url: str, model: str, crop: Crops, concurrency: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        arguments = (far_end, url, _request(model, crop), concurrency)
        self._process = context.Process(target=_load_main, args=arguments, daemon=True)

    def __enter__(self) -> LoadProcess:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()

    @property
    def pid(self) -> int:
        """Process id, once it was started."""
        assert self._process.pid is not None
        return self._process.pid

    def measure(self, seconds: float) -> float:
        """Return crops per second over `seconds`, from the first request sent to the last answer."""
        self._pipe.send(seconds)
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise DeepfakeError(f"the load process failed: {answer}")
        return float(answer)


def _load_main(pipe: Connection, url: str, request: bytes, concurrency: int) -> None:
    async def main() -> None:
        # Bytes in, bytes out: the load shares the cores with the server, so it must not spend them on protobuf.
        async with grpc.aio.insecure_channel(url) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while (seconds := await asyncio.to_thread(pipe.recv)) is not None:
                try:
                    pipe.send(await _measure(infer, request, concurrency, seconds))
                except grpc.RpcError as exc:
                    pipe.send(str(exc))

    asyncio.run(main())


async def _measure(infer: Any, request: bytes, concurrency: int, seconds: float) -> float:
    start_at = time.perf_counter() + RAMP_S
    stop_at = start_at + seconds
    answered = 0

    async def keep_one_in_flight() -> None:
        nonlocal answered
        while time.perf_counter() < stop_at:
            await infer(request)
            answered += start_at <= time.perf_counter() < stop_at

    # Only what is answered in the window counts: while the first batches form and the last requests run out, the
    # server is not under the load that is being measured.
    await asyncio.gather(*(keep_one_in_flight() for _ in range(concurrency)))
    return answered / seconds


def _request(model: str, crops: Crops) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=crops.shape)
    request.outputs.add(name=PROBABILITY_NAME)
    request.raw_input_contents.append(crops.tobytes())
    return bytes(request.SerializeToString())


def _largest_difference(url: str, model: ServedModel, crops: Crops, session: Any) -> float:
    """Return the largest difference of probability between server and file, one crop and all crops at a time."""
    import tritonclient.grpc

    (expected,) = session.run([PROBABILITY_NAME], {INPUT_NAME: crops})
    largest = 0.0
    limit = int(model.config.max_batch_size)
    with tritonclient.grpc.InferenceServerClient(url) as client:
        for size in {1, limit}:
            for start in range(0, len(crops), size):
                part = crops[start : start + size]
                tensor = tritonclient.grpc.InferInput(INPUT_NAME, part.shape, "UINT8")
                tensor.set_data_from_numpy(part)
                answer = client.infer(model.spec.name, [tensor]).as_numpy(PROBABILITY_NAME)
                largest = max(largest, float(np.abs(answer - expected[start : start + size]).max()))
    if not largest <= PROBABILITY_TOLERANCE:
        raise DeepfakeError(f"served probabilities differ from the file's by {largest:g}; nothing was measured")
    return largest


def _session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # As in the server; threads that spin would also go on while the other side is measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _in_process_rate(sessions: list[Any], batch: Crops, seconds: float) -> tuple[float, float]:
    """Run all sessions together, each in a thread of its own and with full batches.

    Returns:
        Crops per second, and CPU milliseconds per crop.
    """
    for session in sessions:
        session.run([PROBABILITY_NAME], {INPUT_NAME: batch})
    gate = threading.Barrier(len(sessions))

    def loop(session: Any) -> tuple[float, int]:
        gate.wait()
        start, crops, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < seconds:
            session.run([PROBABILITY_NAME], {INPUT_NAME: batch})
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


def _counters(metrics_url: str, model: str) -> tuple[int, int]:
    """Return crops and executions that the server counted for `model`."""
    with urllib.request.urlopen(metrics_url) as answer:
        text = answer.read().decode()
    counts = []
    for name in ("nv_inference_count", "nv_inference_exec_count"):
        found = re.search(rf'^{name}{{model="{re.escape(model)}",version="\d+"}} (\d+)', text, re.MULTILINE)
        counts.append(int(found.group(1)) if found else 0)
    return counts[0], counts[1]


def _median(rounds: list[Round], of: Callable[[Round], float]) -> float:
    return round(statistics.median(of(item) for item in rounds), 3)


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests of one crop in flight.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often the arrangements alternate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1)] = 3.0,
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


if __name__ == "__main__":
    typer.run(main)
