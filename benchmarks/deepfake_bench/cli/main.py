"""`deepfake bench`: the group of benchmark commands, one module each."""

from __future__ import annotations

import typer

from deepfake_bench.cli.compare import compare
from deepfake_bench.cli.decode import decode
from deepfake_bench.cli.detector import detector
from deepfake_bench.cli.explain import explain
from deepfake_bench.cli.gateway import gateway
from deepfake_bench.cli.gpu import gpu
from deepfake_bench.cli.pipeline import pipeline
from deepfake_bench.cli.report import plots, readme
from deepfake_bench.cli.scan import scan
from deepfake_bench.cli.server import server
from deepfake_bench.machine.processes import exiting_on_sigterm

app = typer.Typer(
    help="Measure speed: of a server under load, of whole analyses and their parts, of the gateway, of scans, and "
    "of what else could be used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.callback()
def bench(context: typer.Context) -> None:
    """Prepare what all of them need."""
    context.with_resource(exiting_on_sigterm())


for command in (server, pipeline, gateway, scan, compare, gpu, decode, detector, explain, plots, readme):
    app.command()(command)
