"""`deepfake bench scan`: the rate of bulk scans against the library's, and what other callers notice of them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from deepfake_bench.cli.options import ClipsArgument, OutputOption, find_clips, print_table, read_names
from deepfake_bench.machine.results import write_results
from deepfake_bench.pipeline.scan import measure_scans
from deepfake_bench.server.serving import embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.machine import usable_cores
from deepfake_scan.engines import ENGINES

COLUMNS = (
    ("way", "{way}"),
    ("clips/s", "{clips_per_s:.2f}"),
    ("of analyze_many's", "{rate_ratio:.2f} x"),
    ("a caller's p50", "{caller_p50_ms:.0f} ms"),
    ("p99", "{caller_p99_ms:.0f} ms"),
    ("of it alone", "{caller_p99_ratio:.1f} x"),
)


def scan(
    clips: ClipsArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    engines: Annotated[str, typer.Option(metavar="LIST", help="Engines to measure: local, ray.")] = "local,ray",
    copies: Annotated[int, typer.Option(help="How often each clip is analyzed.", min=2)] = 24,
    num_frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each way, in turn.", min=1)] = 3,
    output: OutputOption = None,
) -> None:
    """Measure how many clips a second a bulk scan does, against analyze_many on the same clips and private Triton.

    The rate is that between the first and the last clips: starting costs seconds, and a scan of millions pays them
    once. In each round, a caller also asks the server for the score of a crop ten times a second, alone and beside
    each way, its start included: the last line is how long it waits alone.

    [bold]Examples[/]

      deepfake bench scan clip.mp4
      deepfake bench scan clips/*.mp4 --engines local --copies 20
    """
    require_extra("pyarrow", extra="scan")
    wanted = read_names("--engines", engines, ENGINES)
    found = find_clips(clips)
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    with embedded_server(repository) as server:
        screen.print(f"{server.model.name}, {server.form}", style="dim")
        measured = measure_scans(
            found,
            str(server.connections["grpc"].address),
            engines=wanted,
            copies=copies,
            num_frames=num_frames,
            concurrency=usable_cores(),
            rounds=rounds,
            announce=lambda text: screen.print(text, style="dim"),
        )
    alone = {f"caller_{name}": value for name, value in measured["caller_alone"].items()} | {"caller_p99_ratio": 1.0}
    rows = [{"way": way, **figures} for way, figures in measured["ways"].items()]
    print_table([*rows, {"way": "nobody", **alone}], COLUMNS)
    served = {"model": server.model.name, "precision": server.model.precision, "engine": server.engine}
    served |= server.arrangement
    results = {
        **served,
        "clips": [path.name for path in found],
        "copies": copies,
        "num_frames": num_frames,
        "rounds": rounds,
    }
    typer.echo(f"written to {write_results('scan', {**results, **measured}, output)}")
