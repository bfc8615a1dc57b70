"""`deepfake bench`: the group of benchmark commands, one module each."""

from __future__ import annotations

import typer

from deepfake_bench.compare import compare
from deepfake_bench.gpu import gpu
from deepfake_bench.perf_analyzer import perf_analyzer
from deepfake_bench.plots import plots
from deepfake_bench.readme import readme
from deepfake_bench.served import served
from deepfake_bench.server import server

app = typer.Typer(
    help="Measure speed: of a server under load, of what serving costs, and of what else could have been used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
for command in (server, served, compare, perf_analyzer, gpu, plots, readme):
    app.command()(command)
