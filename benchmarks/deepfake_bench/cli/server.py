"""`deepfake bench server`: how much a server takes, and how long its callers wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepfake_bench.cli.options import ModelOption, OutputOption, print_table, read_counts, read_numbers
from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import Measurement, Stopping, measure_level
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.machine.results import write_results
from deepfake_bench.server.serving import Server, embedded_server, running_server
from deepfake_client.cli.groups import ConnectionOptions
from deepfake_preprocess.cli.grouping import with_groups
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError

DEFAULT_CONCURRENCY = "1,8,32"
WARM_UP = Load(concurrency=8, measure_s=1.0)
COLUMNS = (
    ("load", "{load}"),
    ("crops/s", "{crops_per_s:.1f}"),
    ("±", "{crops_per_s_half_width:.1f}"),
    ("p50", "{latency[p50_ms]:.1f}"),
    ("p90", "{latency[p90_ms]:.1f}"),
    ("p99 ms", "{latency[p99_ms]:.1f}"),
    ("queue", "{server[queue_ms]:.1f}"),
    ("compute", "{server[compute_ms]:.1f}"),
    ("batch", "{server[mean_batch]:.1f}"),
    ("errors", "{num_errors}"),
)


@with_groups
def server(
    connection: ConnectionOptions,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: ModelOption = None,
    reference: Annotated[
        Path | None, typer.Option(help="ONNX file whose answers a running server must give.")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: requests in flight, comma-separated.",
            show_default=f"{DEFAULT_CONCURRENCY}; none with --rate",
        ),
    ] = None,
    rate: Annotated[str, typer.Option(help="Open loop: requests per second at random times, comma-separated.")] = "",
    num_crops: Annotated[int, typer.Option(help="Crops in each request.", min=1)] = 1,
    window: Annotated[
        float, typer.Option(help="Seconds of one window; lengthened to hold several requests.", min=0.1)
    ] = 2.0,
    max_windows: Annotated[
        int, typer.Option(help="Stop after this many, or once the 95% interval is within 2%.", min=1)
    ] = 10,
    processes: Annotated[int, typer.Option(help="Load processes.", min=1)] = 1,
    instances: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="As in `deepfake serve`.", min=1)] = None,
    output: OutputOption = None,
) -> None:
    """Measure throughput and latency of a served model under load.

    A private Triton serves the repository, unless --url names a running server. Closed loop: a fixed number of
    requests is kept in flight. Open loop: requests are due at random times at a mean rate, and latency counts from
    when a request was due: no waiting is hidden. Answers are compared with the model file's before anything
    is timed.

    [bold]Examples[/]

      deepfake bench server
      deepfake bench server --rate 40,80,120 --protocol http
      deepfake bench server --url gpu-host:8001 --reference model.onnx --concurrency 64,256 --num-crops 8
    """
    levels = _levels(concurrency, rate)
    screen = Console(stderr=True)
    with ExitStack() as stack:
        if connection.url is None:
            served = stack.enter_context(
                embedded_server(repository, model=model, instances=instances, threads=threads)
            )
        else:
            served = running_server(connection, model=model, reference=reference)
        if num_crops > served.model.max_batch_size:
            raise OptionError(
                f"--num-crops is {num_crops}; {served.model.name} takes at most {served.model.max_batch_size}"
            )
        target = served.target(connection.address.protocol, num_crops)
        difference = served.verify(target)
        if difference is None:
            screen.print("[yellow]the answers were not compared with a reference; give --reference FILE.onnx[/]")
        measured: list[dict[str, Any]] = []
        data = {
            "model": served.identity,
            **served.arrangement,
            "crops_per_request": num_crops,
            "processes": processes,
            "largest_probability_difference": {target.protocol: difference},
            "protocols": {target.protocol: measured},
        }
        load = stack.enter_context(LoadProcesses(target, served.crops, processes=processes))
        stopping = Stopping(window, max_windows=max_windows)
        try:
            measured.extend(asdict(found) for found in _measure(load, levels, served, stopping, screen))
        finally:  # what was measured is kept, whatever ended the rest
            if measured:
                screen.print(f"written to {write_results('server', data, output)}")
    _print(measured, levels, screen)


def _levels(concurrency: str | None, rate: str) -> list[Load]:
    if concurrency is None:
        concurrency = "" if rate else DEFAULT_CONCURRENCY
    levels = [
        *(Load(concurrency=item) for item in read_counts("--concurrency", concurrency)),
        *(Load(requests_per_s=item) for item in read_numbers("--rate", rate)),
    ]
    if not levels:
        raise OptionError("there is no load to measure; give --concurrency or --rate")
    return levels


def _measure(
    load: LoadProcesses, levels: list[Load], served: Server, stopping: Stopping, screen: Console
) -> Iterator[Measurement]:
    load.run(WARM_UP)
    for level in levels:
        with screen.status(str(level)):
            yield measure_level(load, level, counters=served.counters, server=served.root, stopping=stopping)


def _print(measured: list[dict[str, Any]], levels: list[Load], screen: Console) -> None:
    items = [
        {**item, "load": str(level), "num_errors": sum(item["errors"].values())}
        for item, level in zip(measured, levels, strict=True)
    ]
    print_table(items, COLUMNS)
    for item in items:
        if item["generator_limited"]:
            screen.print(f"[yellow]{item['load']}: {item['generator_limited']}[/]")
        if item["falls_behind"]:
            screen.print(
                f"[yellow]{item['load']}: the server answers {item['crops_per_s']:g} crops/s and falls behind; its "
                "latencies only say how long was measured[/]"
            )
