"""`deepfake bench server`: how much a server takes, and how long its callers wait.

Each level of load is measured in windows until the confidence interval of the throughput is tight or the windows run
out; before the first one, the answers are compared with the model file's own. See `deepfake_bench.load` for the two
kinds of load, and for why latency counts from when a request was due.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.environment import environment, write_results
from deepfake_bench.load import PROTOCOLS, Crops, Target, Trace
from deepfake_bench.load_process import LoadProcesses
from deepfake_bench.reference import OnnxReference, random_crops, verify_served
from deepfake_bench.server_counters import ServerShare, read_counters, share_between
from deepfake_bench.statistics import Latency, half_width, relative_half_width
from deepfake_preprocess.errors import OptionError

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "protobuf")
RAMP_S = 0.5
"""Time before each window, in which queues fill and the first batches form."""
MIN_WINDOWS = 4
BUSY_GENERATOR = 0.9
"""Share of a core from which on a load process, which runs one event loop, is taken for the bottleneck."""
LATE_SHARE = 0.1
"""Open loop: requests sent later than this share of the median latency were held up by the generator."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load: `concurrency` requests in flight, or `requests_per_s` at random times."""

    concurrency: int | None = None
    requests_per_s: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} in flight" if self.concurrency is not None else f"{self.requests_per_s:g} req/s"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one level of load gave.

    Attributes:
        mode: ``closed`` or ``open``.
        concurrency: requests in flight (closed loop).
        requests_per_s: rate of arrivals (open loop).
        windows: measured windows.
        crops_per_s: mean throughput of answered crops.
        crops_per_s_half_width: half width of its 95% confidence interval, from the windows' means.
        latency: from when a request was due to its answer.
        errors: failed requests by their status.
        server: what the server counted.
        client_and_network_ms: mean latency less the server's queue and compute time.
        load_cores: cores the load processes used.
        server_cores: cores the server's processes used; None for a server elsewhere.
        server_rss_mb: their memory; None for a server elsewhere.
        generator_limited: why the generator, not the server, may have been the bottleneck; empty when it was not.
    """

    mode: str
    concurrency: int | None
    requests_per_s: float | None
    windows: int
    crops_per_s: float
    crops_per_s_half_width: float
    latency: Latency
    errors: dict[str, int]
    server: ServerShare
    client_and_network_ms: float | None
    load_cores: float
    server_cores: float | None
    server_rss_mb: float | None
    generator_limited: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a level has been measured enough: the interval's half width is at most `tolerance` of the mean."""

    window_s: float = 2.0
    tolerance: float = 0.02
    max_windows: int = 10


def measure_level(
    load: LoadProcesses,
    level: Level,
    *,
    crops_per_request: int,
    counters: Callable[[], Any],
    server: psutil.Process | None,
    stopping: Stopping,
) -> Measurement:
    """Measure one level of load.

    Args:
        load: started processes.
        level: what to load the server with.
        crops_per_request: crops in one request.
        counters: reads the server's totals.
        server: root of the server's processes on this machine.
        stopping: how long.
    """
    rates: list[float] = []
    traces: list[Trace] = []
    cpu_before = _cpu_seconds(server)
    before = counters()
    while len(rates) < stopping.max_windows and not (
        len(rates) >= MIN_WINDOWS and relative_half_width(rates) <= stopping.tolerance
    ):
        window = load.run(
            concurrency=level.concurrency,
            requests_per_s=level.requests_per_s,
            ramp_s=RAMP_S,
            measure_s=stopping.window_s,
            seed=100 * len(rates),
        )
        answered = sum(int((~trace.failed).sum()) for trace in window)
        rates.append(answered * crops_per_request / stopping.window_s)
        traces.extend(window)
    share = share_between(before, counters())
    due, sent, answered_at = (
        np.concatenate([getattr(trace, name)[~trace.failed] for trace in traces])
        for name in ("due_s", "sent_s", "answered_s")
    )
    latency = Latency.of(answered_at - due)
    errors: dict[str, int] = {}
    for trace in traces:
        for status, count in trace.errors.items():
            errors[status] = errors.get(status, 0) + count
    measured_s = len(rates) * stopping.window_s
    cpu_after = _cpu_seconds(server)
    per_process = [trace.cpu_s / stopping.window_s for trace in traces]
    return Measurement(
        mode="closed" if level.concurrency is not None else "open",
        concurrency=level.concurrency,
        requests_per_s=level.requests_per_s,
        windows=len(rates),
        crops_per_s=round(fmean(rates), 2),
        crops_per_s_half_width=round(half_width(rates), 2),
        latency=latency,
        errors=errors,
        server=share,
        client_and_network_ms=(
            round(float((answered_at - sent).mean()) * 1_000 - share.queue_ms - share.compute_ms, 3)
            if len(sent)
            else None
        ),
        load_cores=round(sum(trace.cpu_s for trace in traces) / measured_s, 3),
        server_cores=(
            None
            if cpu_before is None or cpu_after is None
            else round((cpu_after - cpu_before) / (len(rates) * (stopping.window_s + RAMP_S)), 3)
        ),
        server_rss_mb=_rss_mb(server),
        generator_limited=_generator_limit(max(per_process), sent - due, latency),
    )


def _generator_limit(busiest: float, lateness_s: Any, latency: Latency) -> str:
    if busiest >= BUSY_GENERATOR:
        return f"a load process used {busiest:.2f} of a core; add --processes"
    late = float(np.quantile(lateness_s, 0.99)) * 1_000 if len(lateness_s) else 0.0
    if latency.p50_ms is not None and late > max(1.0, LATE_SHARE * latency.p50_ms):
        return f"1% of the requests were sent more than {late:.1f} ms late; add --processes or free cores"
    return ""


def _processes(server: psutil.Process | None) -> list[psutil.Process]:
    return [] if server is None else [server, *server.children(recursive=True)]


def _cpu_seconds(server: psutil.Process | None) -> float | None:
    if server is None:
        return None
    return float(sum(sum(process.cpu_times()[:2]) for process in _processes(server)))


def _rss_mb(server: psutil.Process | None) -> float | None:
    if server is None:
        return None
    return round(sum(process.memory_info().rss for process in _processes(server)) / 2**20, 1)


def parse_levels(concurrency: str, rate: str) -> list[Level]:
    """Return the levels of two comma-separated lists.

    Raises:
        OptionError: an entry is no positive number, or both lists are empty.
    """
    levels: list[Level] = []
    try:
        levels += [Level(concurrency=int(item)) for item in concurrency.split(",") if item.strip()]
        levels += [Level(requests_per_s=float(item)) for item in rate.split(",") if item.strip()]
    except ValueError as exc:
        raise OptionError(f"--concurrency takes whole numbers and --rate numbers, comma-separated: {exc}") from exc
    if not levels or any((level.concurrency or level.requests_per_s or 0) <= 0 for level in levels):
        raise OptionError("give --concurrency or --rate, comma-separated, all above 0")
    return levels


def _targets(protocols: Sequence[str], grpc_url: str, http_url: str, model: str, crops: int) -> list[Target]:
    return [
        Target(protocol, http_url if protocol == "http" else grpc_url, model, crops_per_request=crops)
        for protocol in protocols
    ]


def server(
    repository: Annotated[Path, typer.Option(help="Model repository to serve on a private Triton.")] = Path(
        "model_repository"
    ),
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Measure this running server (its gRPC port) instead.")
    ] = None,
    http_url: Annotated[str, typer.Option(metavar="HOST:PORT", help="HTTP port of that server.")] = "localhost:8000",
    reference: Annotated[
        Path | None, typer.Option(help="ONNX file whose answers the running server must give.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    protocol: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(PROTOCOLS)}.")] = "grpc",
    concurrency: Annotated[str, typer.Option(help="Closed loop: requests in flight, comma-separated.")] = "1,8,32",
    rate: Annotated[str, typer.Option(help="Open loop: requests per second at random times, comma-separated.")] = "",
    crops: Annotated[int, typer.Option(help="Crops in each request.", min=1)] = 1,
    window: Annotated[float, typer.Option(help="Seconds of one window.", min=0.1)] = 2.0,
    tolerance: Annotated[
        float, typer.Option(help="Stop when the throughput is known this well (95% interval, share).", min=0.001)
    ] = 0.02,
    max_windows: Annotated[int, typer.Option(help="Stop after so many windows at the latest.", min=MIN_WINDOWS)] = 10,
    processes: Annotated[int, typer.Option(help="Load processes.", min=1)] = 1,
    instances: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-server.json.")
    ] = None,
) -> None:
    """Measure throughput and latency of a served model under load.

    Closed loop: a fixed number of requests is kept in flight. Open loop: requests are due at random times at a mean
    rate, and latency counts from when a request was due, so that no waiting is hidden. Answers are compared with the
    model file's before anything is timed.

    [bold]Examples[/]

      deepfake bench server --repository model_repository
      deepfake bench server --rate 40,80,120 --protocol grpc,http,grpc-shm
      deepfake bench server --url gpu-host:8001 --reference model.onnx --concurrency 64,256 --crops 8
    """
    protocols = [item.strip() for item in protocol.split(",") if item.strip()]
    levels = parse_levels(concurrency, rate)
    stopping = Stopping(window, tolerance, max_windows)
    screen = Console(stderr=True)
    with ExitStack() as stack:
        if url is None:
            from deepfake_serve.repository import MODEL_FILE
            from deepfake_serve.server import EmbeddedTriton

            triton = stack.enter_context(
                EmbeddedTriton(repository, models=[model] if model else (), instances=instances, threads=threads)
            )
            name = triton.models[0].spec.name
            reference = reference or triton.models[0].version_dir / MODEL_FILE
            url, http_url = triton.grpc_url, triton.http_url
            root = psutil.Process(triton.pid)
            arrangement: dict[str, Any] = {"server": "embedded", **asdict(triton.share)}
        else:
            name, root, arrangement = model or _only_model(url), None, {"server": url}
        served, pictures = _describe(url, name)
        targets = _targets(protocols, url, http_url, name, crops)
        differences = {
            target.protocol: (
                None if reference is None else verify_served(target, pictures, OnnxReference(reference))
            )
            for target in targets
        }
        if reference is None:
            screen.print("[yellow]the answers were not compared with a reference; give --reference FILE.onnx[/]")
        results: dict[str, list[Measurement]] = {}
        for target in targets:
            with LoadProcesses(target, pictures, processes=processes) as load:
                load.run(concurrency=8, ramp_s=0.0, measure_s=1.0)  # connections, allocations, caches
                for level in levels:
                    with screen.status(f"{target.protocol}: {level}"):
                        results.setdefault(target.protocol, []).append(
                            measure_level(
                                load,
                                level,
                                crops_per_request=crops,
                                counters=lambda: read_counters(url, name),
                                server=root,
                                stopping=stopping,
                            )
                        )
    data = {
        "environment": environment(PACKAGES),
        "model": served,
        **arrangement,
        "crops_per_request": crops,
        "processes": processes,
        "largest_probability_difference": differences,
        "protocols": {key: [asdict(item) for item in items] for key, items in results.items()},
    }
    path = write_results("server", data, path=output)
    Console().print(_table(results))
    for protocol_name, items in results.items():
        for item in items:
            if item.generator_limited:
                screen.print(f"[yellow]{protocol_name}, {_load_name(item)}: {item.generator_limited}[/]")
    screen.print(f"written to {path}")


def _only_model(url: str) -> str:
    from deepfake_client import DeepfakeClient

    with DeepfakeClient(url) as client:
        return client.model().name


def _describe(url: str, model: str) -> tuple[dict[str, Any], Crops]:
    """Return who the model is, and crops of its size."""
    from deepfake_client import DeepfakeClient

    with DeepfakeClient(url, model=model) as client:
        found = client.model()
    spec = found.spec
    identity = {
        "name": found.name,
        "version": found.version,
        "architecture": spec.architecture,
        "input_size_wh": list(spec.input_size_wh),
        "max_batch_size": found.max_batch_size,
        "checkpoint_sha256": spec.checkpoint_sha256,
    }
    return identity, random_crops(16, spec.input_size_wh)


def _load_name(item: Measurement) -> str:
    return f"{item.concurrency} in flight" if item.concurrency is not None else f"{item.requests_per_s:g} req/s"


def _table(results: dict[str, list[Measurement]]) -> Table:
    table = Table(box=None, header_style="bold")
    columns = ("protocol", "load", "crops/s", "±", "p50", "p90", "p99 ms", "queue", "compute", "batch", "errors")
    for column in columns:
        table.add_column(column, justify="left" if column in ("protocol", "load") else "right")
    for protocol, items in results.items():
        for item in items:
            percentiles = (item.latency.p50_ms, item.latency.p90_ms, item.latency.p99_ms)
            table.add_row(
                protocol,
                _load_name(item),
                f"{item.crops_per_s:.1f}",
                f"{item.crops_per_s_half_width:.1f}",
                *("-" if value is None else f"{value:.1f}" for value in percentiles),
                f"{item.server.queue_ms:.1f}",
                f"{item.server.compute_ms:.1f}",
                "-" if item.server.mean_batch is None else f"{item.server.mean_batch:.1f}",
                str(sum(item.errors.values())),
            )
    return table
