"""`deepfake serve`: runs the embedded Triton in the foreground until it is stopped."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer
from rich.console import Console

from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import ServerStartError
from deepfake_preprocess.support.wheels import cache_dir
from deepfake_serve._runtime import TRITON_VERSION
from deepfake_serve.server import EmbeddedTriton


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models to serve. Default: all.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.", min=0, max=65535)] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics; 0: a free one.", min=0, max=65535)] = 8002,
    instances: Annotated[
        int | None, typer.Option(help="Copies of each model that run at once. Default: one per core, up to 8.", min=1)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each copy. Default: cores divided by instances.", min=1)
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Triton's log here instead of keeping it in a file.")
    ] = False,
) -> None:
    """Serve a model repository with a real Triton on this machine's CPU, without Docker.

    Every model is checked against its manifest; then Triton starts with dynamic
    batching and runs until Ctrl-C. Any KServe-v2 client can talk to it. The
    first start fetches Triton (55 MB) into the cache, see DEEPFAKE_CACHE_DIR.

    It listens on this machine only. To serve other machines, or on a GPU, use
    NVIDIA's container: docker compose up.

    [bold]Examples[/]

      deepfake serve
      deepfake serve efficientnet_b0 --repository models
      deepfake serve --grpc-port 9001 --http-port 9000 --metrics-port 9002

    [bold]Exit codes[/]  0 stopped on request · 2 the repository or an option
    is wrong · 4 Triton could not start, or ended by itself
    """
    console = Console(soft_wrap=True, highlight=False)
    triton = EmbeddedTriton(
        repository,
        models=models or (),
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        instances=instances,
        threads=threads,
        log_path=None if verbose else cache_dir() / "logs" / f"serve-{grpc_port or os.getpid()}.log",
        log_to_stderr=verbose,
    )
    # A service manager's SIGTERM stops like Ctrl-C.
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        triton.start()
        _print_ready(console, triton)
        code = triton.wait()
        raise ServerStartError(triton.failure(f"Triton ended by itself (exit code {code})"))
    except KeyboardInterrupt:
        # From here on nothing may interrupt the clean-up; it is bounded in time.
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        console.print("Stopping ...")
        triton.stop()
        console.print("Stopped.")
    finally:
        triton.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_ready(console: Console, triton: EmbeddedTriton) -> None:
    names = ", ".join(f"{item.spec.name} (version {item.spec.version})" for item in triton.models)
    console.print(f"Triton {TRITON_VERSION} is ready on this machine's CPU, serving {names}.")
    console.print(f"  gRPC     {triton.grpc_url}")
    console.print(f"  HTTP     {triton.http_url}")
    console.print(f"  metrics  {triton.metrics_url}")
    divisions = sorted({f"{share.instances} x {share.threads}" for share in triton.shares.values()})
    console.print(f"  cores    {', '.join(divisions)} (instances x threads, for each model)")
    if triton.log_path is not None:
        console.print(f"  log      {triton.log_path}")
    console.print(f"Score a video from another terminal: deepfake analyze VIDEO --url {triton.grpc_url}")
    console.print("Stop with Ctrl-C.")
