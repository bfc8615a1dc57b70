"""`deepfake bench`: the group of benchmark commands, one module each."""

from __future__ import annotations

import typer

from deepfake_bench.compare.compare import compare
from deepfake_bench.compare.served import served
from deepfake_bench.gpu.gpu import gpu
from deepfake_bench.pipeline.decode import decode
from deepfake_bench.pipeline.detector import detector
from deepfake_bench.pipeline.explain import explain
from deepfake_bench.pipeline.pipeline import pipeline
from deepfake_bench.report.plots import plots
from deepfake_bench.report.readme import readme
from deepfake_bench.server.levels import server
from deepfake_bench.tune.tune import tune

app = typer.Typer(
    help="Measure speed: of a server under load, of whole analyses and their parts, and of what else could be used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
COMMANDS = (
    *(server, served, pipeline, tune, compare, gpu),
    *(decode, detector, explain),
    *(plots, readme),
)
for command in COMMANDS:
    app.command()(command)
