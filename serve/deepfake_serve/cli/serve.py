"""`deepfake serve`: runs the embedded Triton in the foreground until it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from deepfake_preprocess.cli.console import shown
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.contract.repository import empty_models
from deepfake_preprocess.contract.triton_config import EMBEDDED_CONFIG_NAME
from deepfake_preprocess.errors import DeepfakeError, ServerStartError
from deepfake_preprocess.support.wheels import cache_dir
from deepfake_serve._ports import Ports
from deepfake_serve._runtime import TRITON_VERSION
from deepfake_serve.server import EmbeddedTriton

LOOK_S = 0.5
"""How often the command looks for a signal to load again, and with --watch at the repository."""


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models to serve. Default: all.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.", min=0, max=65535)] = 8001,
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics; 0: a free one.", min=0, max=65535)] = 8002,
    instances: Annotated[
        int | None, typer.Option(help="Copies of each model that run at once. Default: one per core, 2 to 8.", min=1)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each copy. Default: cores divided by instances.", min=1)
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve new versions and rollbacks as soon as they are in the repository.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show Triton's log here instead of keeping it in a file.")
    ] = False,
) -> None:
    """Serve a model repository with a real Triton on this machine's CPU, without Docker.

    Every model is checked against its manifest; then Triton starts with dynamic
    batching and runs until Ctrl-C. Any KServe-v2 client can talk to it. The
    first start fetches Triton (55 MB) into the cache, see DEEPFAKE_CACHE_DIR.

    A Triton that dies or hangs is started again. SIGHUP, or --watch by itself,
    serves what the repository names now, without losing a request.

    It listens on this machine only. To serve other machines, or on a GPU, use
    NVIDIA's container: docker compose up.

    [bold]Examples[/]

      deepfake serve
      deepfake serve efficientnet_b0 --repository models --watch
      deepfake serve --grpc-port 9001 --http-port 9000 --metrics-port 9002

    [bold]Exit codes[/]  0 stopped on request · 2 the repository or an option
    is wrong · 4 Triton could not start, or could not be kept running
    """
    console = Console(soft_wrap=True, highlight=False)
    triton = EmbeddedTriton(
        repository,
        models=models or (),
        ports=Ports(grpc=grpc_port, http=http_port, metrics=metrics_port),
        instances=instances,
        threads=threads,
        log=sys.stderr if verbose else cache_dir() / "logs" / f"serve-{grpc_port or os.getpid()}.log",
    )
    with _signals() as load_again:
        try:
            triton.start()
            _print_ready(console, triton, repository, models or ())
            code = _until_end(console, triton, repository if watch else None, load_again)
            raise ServerStartError(triton.failure(f"Triton could not be kept running (exit code {code})"))
        except KeyboardInterrupt:
            # From here on nothing may interrupt the clean-up; it is bounded in time.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            console.print("Stopping ...")
            triton.stop()
            console.print("Stopped.")
        finally:
            triton.stop()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Take SIGTERM for Ctrl-C, as service managers send it; the event yielded is set by SIGHUP."""
    load_again = threading.Event()
    terminal = sys.stdin is not None and sys.stdin.isatty()

    def on_hangup(number: int, frame: FrameType | None) -> None:
        # The same signal says that the terminal is gone, and with it whoever could press Ctrl-C.
        if terminal and not sys.stdin.isatty():
            raise KeyboardInterrupt
        load_again.set()

    handlers = {signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: on_hangup}
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *handlers)}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield load_again
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _until_end(
    console: Console, triton: EmbeddedTriton, watched: Path | None, load_again: threading.Event
) -> int | None:
    """Wait until Triton has ended for good, load again when asked to, and return its exit code."""
    seen = _state(watched)
    while (code := triton.wait(LOOK_S)) is None:
        if (now := _state(watched)) != seen:
            seen = now
            load_again.set()
        if load_again.is_set():
            load_again.clear()
            _reload(console, triton)
    return code


def _reload(console: Console, triton: EmbeddedTriton) -> None:
    try:
        changed = triton.reload()
    except DeepfakeError as exc:
        console.print(f"[red]Not loaded:[/] {shown(exc)}; {_names(triton)} served on.")
    else:
        console.print(f"Now serving {_names(triton)}." if changed else "Nothing has changed.")


def _state(repository: Path | None) -> list[tuple[str, int, int]]:
    """Return what changes when another version of a model is to be served: its configuration is replaced."""
    if repository is None:
        return []
    found = []
    for path in sorted(repository.glob(f"*/{EMBEDDED_CONFIG_NAME}")):
        try:
            stat = path.stat()
        except OSError:  # removed just now
            continue
        found.append((str(path), stat.st_ino, stat.st_mtime_ns))
    return found


def _names(triton: EmbeddedTriton) -> str:
    return ", ".join(f"{item.spec.name} (version {item.spec.version})" for item in triton.models)


def _print_ready(console: Console, triton: EmbeddedTriton, repository: Path, models: list[str] | tuple[()]) -> None:
    for name in [] if models else empty_models(repository):
        console.print(
            f"[yellow]{shown(name)} in {shown(repository)} holds no version and is passed over;[/] "
            "NVIDIA's container does not start with it"
        )
    console.print(f"Triton {TRITON_VERSION} is ready on this machine's CPU, serving {_names(triton)}.")
    console.print(f"  gRPC     {triton.grpc_url}")
    console.print(f"  HTTP     {triton.http_url}")
    console.print(f"  metrics  {triton.metrics_url}")
    divisions = sorted({f"{share.instances} x {share.threads}" for share in triton.shares.values()})
    console.print(f"  cores    {', '.join(divisions)} (instances x threads, for each model)")
    if triton.log_path is not None:
        console.print(f"  log      {triton.log_path}")
    console.print(f"Score a video from another terminal: deepfake analyze VIDEO --url {triton.grpc_url}")
    console.print("Stop with Ctrl-C.")
