"""`deepfake bench server`: how much a server takes, and how long its callers wait.

Each level of load is measured in windows until the confidence interval of the throughput is tight or the windows run
out; before the first one, the answers are compared with the model file's own. See `load.generator` for the two
kinds of load, and for why latency counts from when a request was due.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.load.measure import Measurement, Stopping, measure_level, parse_levels
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import PROTOCOLS, protocols_named
from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.server.serving import Server, embedded_server, running_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "protobuf")
WARM_UP_S = 1.0
WARM_UP_CONCURRENCY = 8


def server(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
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
    max_windows: Annotated[int, typer.Option(help="Stop after so many windows at the latest.", min=1)] = 10,
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
    levels = parse_levels(concurrency, rate)
    protocols = protocols_named(protocol)
    stopping = Stopping(window, tolerance, max_windows)
    screen = Console(stderr=True)
    with ExitStack() as stack:
        if url is None:
            served = stack.enter_context(
                embedded_server(repository, model=model, instances=instances, threads=threads)
            )
        else:
            served = running_server(url, http_url, model=model, reference=reference)
        targets = [served.target(item, crops) for item in protocols]
        differences = {target.protocol: served.verify(target) for target in targets}
        if served.reference is None:
            screen.print("[yellow]the answers were not compared with a reference; give --reference FILE.onnx[/]")
        if crops > served.max_batch_size:
            raise OptionError(
                f"--crops is {crops}; {served.model} takes at most {served.max_batch_size} in a request"
            )
        results: dict[str, list[Measurement]] = {}
        try:
            for target in targets:
                with LoadProcesses(target, served.crops, processes=processes) as load:
                    load.run(concurrency=WARM_UP_CONCURRENCY, ramp_s=0.0, measure_s=WARM_UP_S)
                    for level in levels:
                        with screen.status(f"{target.protocol}: {level}"):
                            measured = measure_level(
                                load,
                                level,
                                crops_per_request=crops,
                                counters=served.counters,
                                server=served.root,
                                stopping=stopping,
                            )
                        results.setdefault(target.protocol, []).append(measured)
        finally:  # what was measured is kept, whatever ended the rest
            if results:
                path = write_results("server", _data(served, results, crops, processes, differences), path=output)
                screen.print(f"written to {path}")
    table_console().print(_table(results))
    for protocol_name, items in results.items():
        for item in items:
            if item.generator_limited:
                screen.print(f"[yellow]{protocol_name}, {item.level}: {item.generator_limited}[/]")
            if item.falls_behind:
                screen.print(
                    f"[yellow]{protocol_name}, {item.level}: the server answers {item.crops_per_s:g} crops/s and "
                    "falls behind; its latencies only say how long was measured[/]"
                )


def _data(
    served: Server,
    results: dict[str, list[Measurement]],
    crops: int,
    processes: int,
    differences: dict[str, float | None],
) -> dict[str, object]:
    return {
        "benchmark": "server",
        "environment": environment(PACKAGES),
        "model": served.identity,
        **served.arrangement,
        "crops_per_request": crops,
        "processes": processes,
        "largest_probability_difference": differences,
        "protocols": {name: [asdict(item) for item in items] for name, items in results.items()},
    }


def _table(results: dict[str, list[Measurement]]) -> Table:
    table = Table(box=None, header_style="bold")
    columns = ("protocol", "load", "crops/s", "±", "p50", "p90", "p99 ms", "queue", "compute", "batch", "errors")
    for column in columns:
        table.add_column(column, justify="left" if column in ("protocol", "load") else "right", no_wrap=True)
    for protocol, items in results.items():
        for item in items:
            percentiles = (item.latency.p50_ms, item.latency.p90_ms, item.latency.p99_ms)
            table.add_row(
                protocol,
                str(item.level),
                f"{item.crops_per_s:.1f}",
                "-" if item.crops_per_s_half_width is None else f"{item.crops_per_s_half_width:.1f}",
                *("-" if value is None else f"{value:.1f}" for value in percentiles),
                f"{item.server.queue_ms:.1f}",
                f"{item.server.compute_ms:.1f}",
                "-" if item.server.mean_batch is None else f"{item.server.mean_batch:.1f}",
                str(sum(item.errors.values())),
            )
    return table
