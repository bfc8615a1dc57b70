"""`deepfake analyze`: from paths on the command line to verdicts on the screen or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from deepfake_client.aggregation import DEFAULT_STRATEGY, STRATEGIES, check_threshold, strategy_named
from deepfake_client.cli import print_error
from deepfake_client.cli_connection import Connection, with_connection
from deepfake_client.client import DeepfakeClient
from deepfake_client.inputs import expand
from deepfake_client.outcome import Outcome
from deepfake_client.pipeline import Progress
from deepfake_client.render import print_summary, print_verdict
from deepfake_client.verdict import Label
from deepfake_preprocess.errors import DeepfakeError, OptionError
from deepfake_preprocess.extras import require_extra
from deepfake_preprocess.video import Sampling, open_media

DEFAULT_FRAMES = 32
DEFAULT_REPOSITORY = Path("model_repository")
EXIT_INCONCLUSIVE = 3
EXIT_SERVER = 4
EXIT_SOME_INPUTS_FAILED = 5
EXIT_INTERRUPTED = 130


@with_connection
def analyze(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Videos, images, directories or globs.")],
    connection: Connection,
    model: Annotated[
        str | None, typer.Option(help="Model to use; needed only when the server offers several.")
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a private Triton for this run and stop it at the end.")
    ] = False,
    repository: Annotated[Path, typer.Option(help="Model repository that --embedded serves.")] = DEFAULT_REPOSITORY,
    frames: Annotated[
        int | None, typer.Option(min=1, help=f"Frames to take, evenly spaced in time. [default: {DEFAULT_FRAMES}]")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Take this many frames per second instead.")] = None,
    aggregation: Annotated[
        str, typer.Option(help=f"How a face's frames become its score: {', '.join(STRATEGIES)}.")
    ] = DEFAULT_STRATEGY,
    threshold: Annotated[
        float | None, typer.Option(help="FAKE at or above this probability. [default: the model's own]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object for one input, an array for several.")
    ] = False,
) -> None:
    """Say whether videos or images show a manipulated face.

    Frames are decoded, faces found, cropped and followed, and every crop is scored by the server. Each face gets a
    score of its own; the video's score is that of its most suspicious face.

    [bold]Examples[/]

      deepfake analyze clip.mp4
      deepfake analyze clip.mp4 --embedded --json
      deepfake analyze videos/ --fps 2 --url gpu-host:8001

    [bold]Exit codes[/]  0 verdict reached · 3 inconclusive · 2 input or usage error · 4 server unreachable or
    failed · 5 some of several inputs could not be opened
    """
    if embedded and connection.tls:
        raise OptionError("--embedded starts a server of its own, without TLS; leave out the options of TLS")
    if frames is not None and fps is not None:
        raise OptionError("--frames and --fps exclude each other; give one of them")
    sampling = (
        Sampling(num_frames=None, fps=fps) if fps is not None else Sampling(num_frames=frames or DEFAULT_FRAMES)
    )
    strategy_named(aggregation)
    check_threshold(threshold)
    sources = list(expand(paths))
    screen = Console(stderr=True)
    outcomes: list[Outcome] = []
    interrupted = False
    with _Session(connection, model, repository if embedded else None, screen) as session:
        try:
            for source in sources:
                # One by one, so that Ctrl-C keeps what is done.
                outcomes.append(_analyze_one(source, session, sampling, aggregation, threshold))  # noqa: PERF401
        except KeyboardInterrupt:
            interrupted = True
        training_data = session.training_data
    _report(outcomes, as_json=as_json, several=len(sources) > 1, training_data=training_data)
    if interrupted:
        screen.print(f"interrupted: {len(outcomes)} of {len(sources)} inputs were analyzed", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(_exit_code(outcomes))


class _Session(AbstractContextManager["_Session"]):
    """The client of one run, and with --embedded its server, both made when the first input has been opened."""

    def __init__(self, connection: Connection, model: str | None, repository: Path | None, screen: Console) -> None:
        self.screen = screen
        self.training_data = ""
        self._connection, self._model, self._repository = connection, model, repository
        self._stack = ExitStack()
        self._client: DeepfakeClient | None = None

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def client(self) -> DeepfakeClient:
        if self._client is None:
            url = self._connection.url
            if self._repository is not None:
                # By name: the client must work where the server's part is not installed.
                server = require_extra("deepfake_serve.server", extra="serve")
                models = [self._model] if self._model else []
                with self.screen.status("starting a private Triton"):
                    triton = self._stack.enter_context(server.EmbeddedTriton(self._repository, models=models))
                url = triton.http_url if self._connection.is_http else triton.grpc_url
            self._client = self._stack.enter_context(
                DeepfakeClient(url, model=self._model, **self._connection.options())
            )
        return self._client


def _analyze_one(
    source: str, session: _Session, sampling: Sampling, aggregation: str, threshold: float | None
) -> Outcome:
    try:
        # Opened before any server is asked: a bad input is reported whether or not one is running.
        with open_media(source, name=source) as media:
            client = session.client()
            session.training_data = client.model().spec.training_data
            with _progress_bar(session.screen, Path(source).name) as on_progress:
                verdict = client.analyze(
                    media, sampling=sampling, aggregation=aggregation, threshold=threshold, on_progress=on_progress
                )
        return Outcome(source, verdict=verdict)
    except OptionError:
        raise
    except DeepfakeError as exc:
        return Outcome(source, error=exc)


class _progress_bar(AbstractContextManager[Any]):  # noqa: N801 - used like a function
    """A bar on the terminal that shows one analysis; nothing where standard error is no terminal."""

    def __init__(self, screen: Console, name: str) -> None:
        self._bar = ProgressBar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames · {task.fields[faces]} faces"),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self._task = self._bar.add_task(name, total=None, faces=0)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._show

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def _show(self, progress: Progress) -> None:
        self._bar.update(
            self._task,
            completed=progress.frames_done,
            total=progress.frames_expected,
            faces=progress.faces_scored,
        )


def _report(outcomes: Sequence[Outcome], *, as_json: bool, several: bool, training_data: str) -> None:
    if as_json:
        data = [outcome.to_dict() for outcome in outcomes]
        if several:
            print(json.dumps(data, indent=2, ensure_ascii=False))
        elif data and outcomes[0].verdict is not None:
            print(json.dumps(data[0], indent=2, ensure_ascii=False))
    else:
        console = Console()
        verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
        if several and verdicts:
            print_summary(console, verdicts, training_data=training_data)
        elif verdicts:
            print_verdict(console, verdicts[0], training_data=training_data)
    sys.stdout.flush()
    for outcome in outcomes:
        if outcome.error is not None:
            print_error(outcome.error)


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    if any(outcome.server_failed for outcome in outcomes):
        return EXIT_SERVER
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        return errors[0].exit_code if len(errors) == len(outcomes) else EXIT_SOME_INPUTS_FAILED
    if any(outcome.verdict is not None and outcome.verdict.label is Label.INCONCLUSIVE for outcome in outcomes):
        return EXIT_INCONCLUSIVE
    return 0
