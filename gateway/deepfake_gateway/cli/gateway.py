"""`deepfake gateway`: starts Triton where asked to, a worker and the web server, and ends them together."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_client.transport.connect import connect
from deepfake_gateway.app import build_app
from deepfake_gateway.cli.keys import keys
from deepfake_gateway.cli.webhooks import webhooks
from deepfake_gateway.intake.connections import server_of
from deepfake_gateway.intake.submission import ask_models
from deepfake_gateway.jobs.queue import DurableQueue
from deepfake_gateway.logs import set_up_logs
from deepfake_gateway.sandbox.limits import limits_of
from deepfake_gateway.sandbox.process import SandboxPool
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.records import Store
from deepfake_gateway.tracing import set_up_traces
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.cli.signals import terminated_as_interrupted
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import check_extra, require_extra
from deepfake_preprocess.support.limits import started_here
from deepfake_preprocess.support.sockets import listening

STOP_S: Final = 5.0
RESTART_WAIT_S: Final = 1.0
"""Before a process that died is started again."""
LOOKING: Final = 2
"""Reports and faces that are cut out at once; each takes a process for a second or two."""


app = typer.Typer(invoke_without_command=True)
app.add_typer(keys, name="keys")
app.add_typer(webhooks, name="webhooks")


@app.callback()
def gateway(
    context: typer.Context,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a private Triton on this machine's CPU, and stop it at the end.")
    ] = False,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Triton that runs already: HOST:PORT or URL.", show_default="localhost:8001"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to use; needed only when the server offers several.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.", show_default="8080")
    ] = None,
    allow_open: Annotated[
        bool | None,
        typer.Option("--allow-open", help="Serve other machines, although there are no keys.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Media and, by default, the database.", show_default="gateway-data"),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="postgresql+psycopg://... for several gateways.", show_default="SQLite in DIR"
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option(metavar="URL", help="s3://bucket/prefix for media, instead of a folder.", show_default="in DIR"),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            metavar="all|web|worker", help="What this command runs on a shared database.", show_default="all"
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Analyses that a worker has under way at once.", show_default="2")
    ] = None,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", metavar="FILE", help="TOML file with any of the settings.")
    ] = None,
) -> None:
    """Run the verdict service: a web page, a REST interface and durable jobs, until Ctrl-C.

    Open the printed address in a browser and drop a video on it, or send one
    with curl. What was queued or running when the service was stopped or
    killed goes on with the next start.

    Every setting can also be given in the environment, as DEEPFAKE_GATEWAY_
    and its name in capitals, or in a TOML file. Options win over the
    environment, and that over the file. docs/gateway.md lists all settings:
    limits of uploads, of memory and of time have no option of their own.

    Addresses other than this machine's own need keys, or --allow-open. Once
    there is a key, nobody is served without one.

    [bold]Examples[/]

      deepfake gateway --embedded --repository models
      deepfake gateway --url triton:8001 --data-dir /var/lib/gateway
      DEEPFAKE_GATEWAY_PORT=9090 deepfake gateway --url localhost:8001
      deepfake gateway keys create --name press --expires 90d
      curl -F file=@clip.mp4 -H 'Prefer: wait=60' http://127.0.0.1:8080/v1/analyses

    [bold]Exit codes[/]  0 stopped on request · 2 an option or the repository is
    wrong · 4 Triton could not start
    """
    if context.invoked_subcommand is not None:
        return
    given = {
        "url": url, "model": model, "host": host, "port": port, "allow_open": allow_open, "data_dir": data_dir,
        "database": database, "blobs": blobs, "role": role, "concurrency": concurrency,
    }  # fmt: skip
    settings = Settings.of(settings_file, **given)
    set_up_logs(settings.log_format, settings.log_level)
    _run(settings, repository if embedded else None, Console(stderr=True, highlight=False, soft_wrap=True))


def _run(settings: Settings, repository: Path | None, screen: Console) -> None:
    """Serve until a signal; with a repository, a private Triton of it."""
    with terminated_as_interrupted(), ExitStack() as stack:
        try:
            if repository is not None:
                settings = settings.model_copy(update={"url": _start_triton(stack, screen, repository)})
                settings = _start_explaining(stack, screen, settings)
            settings.make_data_dir()
            if settings.role == "worker":
                _run_worker(settings, screen)
            else:
                _serve(settings, screen)
        except KeyboardInterrupt:
            pass
        finally:
            # From here on nothing may interrupt the clean-up; it is bounded in time.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            screen.print("Stopping ...")
    screen.print("Stopped.")


def _start_triton(stack: ExitStack, screen: Console, repository: Path) -> str:
    serve = require_extra("deepfake_serve", extra="serve")
    with screen.status("starting Triton"):
        url: str = stack.enter_context(serve.EmbeddedTriton(repository)).grpc_url
    return url


def _serve(settings: Settings, screen: Console) -> None:
    """Run the web server, and a worker beside it unless another command does that."""
    store = Store(settings.database_url)
    has_keys = Keys(store.engine).are_required()
    settings.check_open(has_keys=has_keys)
    set_up_traces("web")
    with listening(settings.host, settings.port) as listener, ExitStack() as stack:
        queue = DurableQueue(settings.database_url)
        if settings.role == "all":
            stack.enter_context(_worker(settings))
        sandboxes = SandboxPool(LOOKING, limits_of(settings), connect(settings.connection), settings.model)
        app = build_app(settings, store, queue, partial(ask_models, settings), sandboxes)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        screen.print(f"The verdict service is at [bold]{address}[/], data in {escape(str(settings.data_dir))}")
        if not settings.is_local and not has_keys:
            screen.print("everybody who reaches this address may use it: there are no keys", style="yellow")
        server_of(app).run(sockets=[listener])


class _Kept:
    """A process that is started again when it dies."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        self._name, self._arguments, self._environment = name, arguments, environment
        self._stopping = False
        self._process = self._start()
        # The kernel ends a process with the thread that started it, and this one lives as long as ours.
        threading.Thread(target=self._keep, name=f"keep-{name}", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        _end(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        # In a session of its own, so that Ctrl-C reaches this process alone, which ends the others in order.
        environment = {**os.environ, **(self._environment or {}), **started_here()}
        return subprocess.Popen([sys.executable, *self._arguments], env=environment, start_new_session=True)

    def _keep(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping:
                return
            logging.getLogger(__name__).warning("the %s ended (%s) and is started again", self._name, code)
            time.sleep(RESTART_WAIT_S)
            self._process = self._start()


@contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    """Run a worker; it takes up again what it was doing when it died.

    Raises OptionError where another one has its name: each would take up what the other is doing.
    """
    path = settings.data_dir / f"{quote(settings.worker_name, safe='')}.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"the worker {settings.worker_name!r} is running on {settings.data_dir} already; stop it, or give "
                "this one a `worker_name` of its own"
            ) from None
        with _Kept("worker", ["-m", "deepfake_gateway.worker"], settings.as_environment()):
            yield


def _start_explaining(stack: ExitStack, screen: Console, settings: Settings) -> Settings:
    """Start an explain service of the served checkpoint beside Triton, if one is named; returns where it is."""
    if settings.checkpoint is None or settings.explain_url is not None:
        return settings
    check_extra("pytorch_grad_cam", extra="explain")
    with listening("127.0.0.1", 0) as probe:
        port = str(probe.getsockname()[1])
    screen.print(f"Heatmaps come from {escape(str(settings.checkpoint))}")
    arguments = [str(settings.checkpoint), "--port", port, "--url", settings.url or ""]
    if settings.model is not None:
        arguments += ["--model", settings.model]
    stack.enter_context(_Kept("explain service", ["-m", "deepfake_gateway.cli.explaining", *arguments]))
    return settings.model_copy(update={"explain_url": f"http://127.0.0.1:{port}"})


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run_worker(settings: Settings, screen: Console) -> None:
    """Run a worker only, until it is stopped; a database that cannot be used is refused before, as by `_serve`."""
    Store(settings.database_url).close()
    with _worker(settings):
        screen.print(f"The worker {escape(settings.worker_name)} takes analyses; stop with Ctrl-C")
        threading.Event().wait()
