"""`deepfake build-engines`: TensorRT plans for the models of a repository, on the machine that serves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_export.tensorrt.options import EngineOptions
from deepfake_export.tensorrt.plans import build_engines as build
from deepfake_preprocess.cli.console import shown
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, JsonOption, RepositoryOption


def build_engines(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models to build for. Default: all.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    typical_batch: Annotated[
        int | None, typer.Option("--typical-batch", help="Batch that kernels are picked for. Default: 8.", min=1)
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="File that keeps kernel timings for the next build.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans that later TensorRT minor versions load, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even where the plan fits this machine.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build TensorRT plans from the ONNX files of a repository, and let Triton serve them.

    Needs TensorRT and the kind of GPU that will serve the plans. A plan that was
    built by this TensorRT for this GPU is kept, so this can run before every start
    of Triton, as docker-compose.yml does. `deepfake repository verify` checks plans
    without building any.

    [bold]Exit codes[/]  0 every model has a plan that fits · 1 no plan could be
    built · 2 the repository or an option is wrong
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def show(step: str) -> None:
        console.print(f"[dim]{shown(step)}[/dim]")

    options = EngineOptions(typical_batch, timing_cache, version_compatible)
    results = build(repository, models or (), options=options, force=force, on_step=show)
    if as_json:
        data = [
            {"version_dir": str(item.version_dir), "created": item.created, "engine": item.engine.to_dict()}
            for item in results
        ]
        typer.echo(json.dumps(data, indent=2))
        return
    for item in results:
        engine = item.engine
        what = f"built in {engine.build_seconds:.1f} s" if item.created else "fits, kept"
        typer.echo(
            f"{item.version_dir}: {engine.precision} plan of {engine.size_bytes / 1e6:.1f} MB for batches of 1 to "
            f"{engine.max_batch_size}, TensorRT {engine.tensorrt_version}, compute capability "
            f"{engine.compute_capability}: {what}"
        )
