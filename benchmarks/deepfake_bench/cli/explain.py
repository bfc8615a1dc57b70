"""`deepfake bench explain`: what explaining face crops costs on this machine's CPU, for each method."""

from __future__ import annotations

from typing import Annotated

import typer

from deepfake_bench.cli.options import OutputOption, print_table, read_names
from deepfake_bench.machine.results import write_results
from deepfake_bench.pipeline.explain import measure_methods
from deepfake_client.explain.types import METHODS
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.machine import usable_cores

COLUMNS = (
    ("method", "{method}"),
    ("wall", "{wall_s:.2f} s"),
    ("CPU", "{cpu_s:.2f} s"),
    ("per crop", "{crop_ms:.1f} ms"),
    ("furthest from the library", "{max_difference:.1e}"),
)


def explain(
    architecture: Annotated[str, typer.Option(help="Network, as in a spec.")] = "timm:efficientnet_b0",
    num_crops: Annotated[int, typer.Option(help="Crops that are explained together.", min=1)] = 50,
    repeats: Annotated[int, typer.Option(help="Runs of each method.", min=1)] = 3,
    methods: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(METHODS)}.")] = ",".join(METHODS),
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch; all cores by default.", min=1)] = None,
    output: OutputOption = None,
) -> None:
    """Measure what explaining face crops costs on this machine's CPU, for each method.

    Each method's heatmaps are first compared with those of pytorch-grad-cam called by hand on the same layer.

    [bold]Examples[/]

      deepfake bench explain
      deepfake bench explain --architecture timm:resnet50 --methods grad-cam --num-crops 8
    """
    wanted = read_names("--methods", methods, METHODS)
    require_extra("pytorch_grad_cam", extra="explain")  # and with it torch
    results = measure_methods(
        architecture, wanted, num_crops=num_crops, threads=threads or usable_cores(), repeats=repeats
    )
    print_table([{**item, "crop_ms": 1_000 * item["wall_s"] / num_crops} for item in results["methods"]], COLUMNS)
    typer.echo(f"written to {write_results('explain', results, output)}")
