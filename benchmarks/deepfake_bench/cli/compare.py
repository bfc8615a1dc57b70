"""`deepfake bench compare`: the embedded Triton against what else could have run the same ONNX file."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_bench.cli.options import ModelOption, OutputOption, print_table
from deepfake_bench.compare.comparison import MANY, ONE, PeerComparison, served_over_in_process
from deepfake_bench.compare.peer_list import peers
from deepfake_bench.machine.results import Results, write_results
from deepfake_bench.server.serving import embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.machine import usable_cores

COLUMNS = (
    ("contender", "{name}"),
    ("setting", "{setting}"),
    ("crops/s", "{many[crops_per_s]:.1f}"),
    ("p50", "{many[latency][p50_ms]:.1f}"),
    ("p99 ms", "{many[latency][p99_ms]:.1f}"),
    ("CPU ms per crop", "{many[cpu_ms_per_crop]:.2f}"),
    ("alone: p50 ms", "{one[latency][p50_ms]:.1f}"),
    ("ours: throughput", "{ratio[throughput]:.2f}"),
    ("p99", "{ratio[p99]:.2f}"),
    ("alone", "{ratio[p50_alone]:.2f}"),
    ("of in-process", "{in_process:.2f}"),
)


def compare(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: ModelOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint, with its spec next to it, for the server with eager PyTorch.")
    ] = None,
    peer: Annotated[str, typer.Option(help="Only peers whose names hold one of these words, comma-separated.")] = "",
    rounds: Annotated[int, typer.Option(help="How often the contenders alternate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1)] = 4.0,
    output: OutputOption = None,
) -> None:
    """Compare the embedded Triton with what else could have run the same ONNX file.

    In-process ONNX Runtime and OpenVINO (in each precision that the version has), LitServe, BentoML and Ray Serve in
    the engine and precision that is served, and FastAPI with eager PyTorch (with --checkpoint). Each is installed
    once into an environment of its own in the cache folder, is tried in several settings, and is compared in its best
    one, after its answers were found equal. Ours runs over gRPC, HTTP, and gRPC with shared memory: against the same
    engine in-process, that is what serving costs.

    [bold]Examples[/]

      deepfake bench compare --checkpoint detector.safetensors
      deepfake bench compare --peer onnx
    """
    screen = Console(stderr=True, highlight=False, markup=False)
    words = [word.strip().lower() for word in peer.split(",") if word.strip()]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepfake-bench-")))
        server = stack.enter_context(embedded_server(repository, model=model))
        listed = peers(server, cores=usable_cores(), checkpoint=checkpoint)
        names = list(dict.fromkeys(item.name for item in listed))
        wanted = [name for name in names if not words or any(word in name.lower() for word in words)]
        if not wanted:
            raise OptionError(f"--peer is {peer!r}; known are: {', '.join(names)}")
        comparison = stack.enter_context(PeerComparison(server, scratch=scratch, announce=screen.print))
        for name in wanted:
            comparison.add([item for item in listed if item.name == name])
        if checkpoint is None and not words:
            comparison.leave_out("FastAPI + eager PyTorch", "", "no checkpoint was given")
        try:
            for number in range(rounds):
                screen.print(f"round {number + 1} of {rounds}")
                comparison.measure_round(seconds)
        finally:  # whole rounds are kept, whatever ended the rest
            if results := comparison.results():
                results["seconds_per_measurement"] = seconds
                results["requirements"] = {item.name: item.requirements for item in listed if item.name in wanted}
                path = write_results("compare", results, output)
                screen.print(f"written to {path}")
    _print(results)


def _print(data: Results) -> None:
    in_process = served_over_in_process(data)
    items = [
        {
            **item,
            "many": item["concurrency"][str(MANY)],
            "one": item["concurrency"][str(ONE)],
            "ratio": data["ours_over"].get(item["name"]),
            "in_process": in_process.get(item["name"]),
        }
        for item in data["contenders"]
    ]
    print_table(items, COLUMNS, left=2)
    typer.echo(
        f"'ours' is {data['ours']}, the fastest way to our server: its figure divided by the contender's, so "
        "throughput above 1 and times below 1 are better. 'of in-process' is against "
        f"{data['in_process']}, the engine and precision that is served."
    )
