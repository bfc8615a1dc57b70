"""`deepfake bench`: the group of benchmark commands, one module each."""

from __future__ import annotations

import signal
import sys

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

app = typer.Typer(
    help="Measure speed: of a server under load, of whole analyses and their parts, of the gateway, of scans, and "
    "of what else could be used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.callback()
def bench(context: typer.Context) -> None:
    """Let contexts end on SIGTERM, too: else what was started would outlive its benchmark."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    context.call_on_close(lambda: signal.signal(signal.SIGTERM, before))


for command in (server, pipeline, gateway, scan, compare, gpu, decode, detector, explain, plots, readme):
    app.command()(command)
