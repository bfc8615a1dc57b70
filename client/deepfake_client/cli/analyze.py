"""`deepfake analyze`: from paths on the command line to verdicts on the screen, in files and in reports.

`AnalyzeRun` sees to it that every input gets one result whatever the server does meanwhile, that every output gets
all results, and that what went wrong is said at the end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_client.analysis.many import DEFAULT_CONCURRENCY
from deepfake_client.cli.exit_codes import EXIT_FAKE, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_SOME_INPUTS_FAILED
from deepfake_client.cli.groups import (
    AnalysisOptions,
    ExplainerChoice,
    ExplainerOptions,
    GatewayChoice,
    VerdictOptions,
    VerdictSource,
)
from deepfake_client.cli.main import print_error
from deepfake_client.cli.output import MANY_PANEL, Output, OutputChoice, Report, Result
from deepfake_client.cli.progress import RunProgress
from deepfake_client.client import DeepfakeClient
from deepfake_client.explain.evidence import Evidence
from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.types import Explainer
from deepfake_client.gateway.client import GatewayClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.journal import Journal
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Label, ModelIdentity, Verdict
from deepfake_client.sources.inputs import expand, open_source
from deepfake_preprocess.cli.console import results_alone
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, InputError, OptionError, ServerError, ServerUnavailableError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.remote import is_url, without_password
from deepfake_preprocess.support.text import visible

Closable = TypeVar("Closable", Journal, Output, Report)

MAX_SERVER_FAILURES = 3
"""Inputs in a row that the server may fail before the rest is given up: each has waited for it already."""
_SHOWN_SOURCES = 10


@with_groups
def analyze(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Videos, images, directories or globs.")],
    options: AnalysisOptions,
    outputs: Annotated[OutputChoice, Group(OutputChoice, "Output")],
    explainer: ExplainerOptions,
    server: VerdictOptions,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Inputs to work on at once.", rich_help_panel=MANY_PANEL)
    ] = DEFAULT_CONCURRENCY,
) -> None:
    """Say whether videos or images show a manipulated face.

    Frames are decoded, faces found, cropped and followed, and every crop is scored by the server. Each face gets a
    score of its own; the video's score is that of its most suspicious face.

    [bold]Examples[/]

      deepfake analyze clip.mp4
      deepfake analyze clip.mp4 --embedded --json
      deepfake analyze videos/ --report report --csv results.csv
      deepfake analyze clip.mp4 --report report --pdf
      deepfake analyze videos/ --report report --resume
      deepfake analyze videos/ --report report --resume --explain --checkpoint detector.safetensors
      deepfake analyze 'videos/*.mp4' --fps 2 --url gpu-host:8001 --jsonl
      deepfake analyze videos/ --gateway http://host:8080 --report report

    [bold]Exit codes[/]

      0    every input has a verdict
      1    with --exit-code: an input is FAKE, and all have verdicts
      2    wrong option, an input that cannot be opened, or an output that cannot be written
      3    an input is inconclusive
      4    server unreachable or failed
      5    some of several inputs cannot be opened; the others have verdicts
      130  interrupted; what was done is printed and written
    """
    if explainer.named and not outputs.explain:
        raise OptionError(f"--{explainer.named[0]} is for the heatmaps of a report; add --explain and --report DIR")
    if outputs.explain and isinstance(server, GatewayChoice):
        raise OptionError("--explain needs Triton's own scores; leave out --gateway, or ask for heatmaps on its page")
    passed_over: list[str] = []
    sources = list(dict.fromkeys(expand(paths, passed_over)))
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    progress = RunProgress(screen, len(sources), visible=outputs.shows_progress(screen))
    run = AnalyzeRun(sources, server, options, progress, concurrency=concurrency, resume=outputs.resume)
    try:
        _run(run, outputs, explainer)
    except KeyboardInterrupt:
        run.interrupted = True
    run.print_failures(screen)
    if passed_over:
        kinds = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in passed_over)  # noqa: PTH122
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        _note(screen, f"{len(passed_over)} files were passed over ({listed}); name one to have it tried")
    if not (outputs.quiet or run.output_errors):
        for line in outputs.written():
            screen.print(escape(line))
    raise typer.Exit(run.exit_code(fake_counts=outputs.exit_code))


def _run(run: AnalyzeRun, outputs: OutputChoice, explainer: ExplainerChoice) -> None:
    """Open the outputs, drive the run, and close everything in the reverse order."""
    pages: Report | None = None
    with ExitStack() as stack:
        # The report's index is made of the journal, which is closed last.
        if outputs.journal_path is not None:
            run.journal = stack.enter_context(run.closing(Journal(outputs.journal_path, asdict(run.options))))
        for item in outputs.printed(run.sources):
            run.outputs.append(stack.enter_context(run.closing(item)))
        stack.enter_context(results_alone())
        if outputs.report is not None and run.journal is not None:
            explain = None
            if outputs.explain:
                explain = partial(run.explain, explainer=stack.enter_context(closing(explainer.open())))
            report = Report(outputs.report, run.journal, run.options, explain, pdf=outputs.pdf)
            pages = stack.enter_context(run.closing(report))
            run.outputs.append(pages)
            run.on_verdict = pages.collect
        stack.enter_context(run.progress)
        stack.enter_context(run)
        run.drive()
        if pages is not None:
            with run.progress.waiting_for("writing the report"):
                pages.wait()


@dataclass(eq=False)
class AnalyzeRun(AbstractContextManager["AnalyzeRun"]):
    """One run over many inputs, each named once; a context manager, which ends the client and a private server.

    The server is asked when the first input has been opened, so inputs that cannot be opened are reported whether
    or not a server is running.

    Attributes:
        journal: where results are kept, before any other output gets them; or None.
        on_verdict: looks at an input that has its verdict, while it is still open; called in a thread. Or None.
        client: the client, once the server was asked.
        output_errors: why outputs take no more results. The others go on, and the run ends when none is left.
        unsettled: results of inputs that the server failed, and that will be tried again at the end; what is still
            here when a run is interrupted has not been yielded.
    """

    sources: Sequence[str]
    server: VerdictSource
    options: AnalyzeOptions
    progress: RunProgress
    _: KW_ONLY
    concurrency: int
    resume: bool = False
    journal: Journal | None = field(default=None, init=False)
    outputs: list[Output] = field(default_factory=list, init=False)
    on_verdict: Callable[[Verdict, Media, ModelSpec], None] | None = field(default=None, init=False)
    client: DeepfakeClient | GatewayClient | None = field(default=None, init=False)
    interrupted: bool = field(default=False, init=False)
    output_errors: list[OptionError] = field(default_factory=list, init=False)
    unsettled: list[Outcome] = field(default_factory=list, init=False)
    _outcomes: list[Outcome] = field(default_factory=list, init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def drive(self) -> None:
        """Hand every result on to the outputs; Ctrl-C ends it, and keeps what is done."""
        try:
            with closing(self.results()) as results:
                for result in results:
                    self._take(result)
                    self.progress.input_done(result.outcome)
                    if self.output_errors and not self.outputs and self.journal is None:
                        return
        except KeyboardInterrupt:
            self.interrupted = True
            for outcome in self.unsettled:
                self._take(Result(outcome))

    def _take(self, result: Result) -> None:
        verdict = result.outcome.verdict
        # Of the model that gave the verdict, also when the server has another one since.
        spec = None if verdict is None or self.client is None else self.client.model_of(verdict).spec
        # One result is in all outputs or in none of them.
        with _ctrl_c_deferred():
            self._outcomes.append(result.outcome)
            if self.journal is not None and not result.reused:
                try:
                    self.journal.append(result.outcome)
                except OptionError as exc:
                    self.output_errors.append(exc)
                    self.journal = None
            for output in list(self.outputs):
                try:
                    output.add(result, spec)
                except OptionError as exc:
                    self.output_errors.append(exc)
                    self.outputs.remove(output)

    @contextmanager
    def closing(self, item: Closable) -> Iterator[Closable]:
        """Close a journal or an output in the end; one that cannot be completed keeps no other from it."""
        try:
            yield item
        finally:
            try:
                item.close()
            except OptionError as exc:
                self.output_errors.append(exc)

    def _inspect(self, verdict: Verdict, media: Media) -> None:
        assert self.client is not None, "there are verdicts only when a server was asked"
        if self.on_verdict is not None:
            self.on_verdict(verdict, media, self.client.model_of(verdict).spec)

    def explain(
        self, verdict: Verdict, evidence: Sequence[Evidence], explainer: Explainer
    ) -> tuple[ExplainedFace, ...]:
        """Explain the faces that a page shows."""
        assert isinstance(self.client, DeepfakeClient), "a gateway gives no scores, and was refused"
        return self.client.explain(verdict, evidence=evidence, explainer=explainer)

    def results(self) -> Generator[Result]:
        """Yield one result for each source, as it is finished; those of an earlier run first.

        Closing the generator cancels what is under way. What keeps the server from being asked and is not its failure
        (a wrong option, a model that it does not offer) is raised; whatever else goes wrong is a result.
        """
        pending = list(self.sources)
        first: Media | None = None
        # An address is opened when it is its turn: it would be fetched twice.
        while pending and first is None and not is_url(pending[0]):
            try:
                first = open_source(pending[0], name=pending[0])
            except InputError as exc:
                yield Result(Outcome(pending.pop(0), error=exc))
        if not pending:
            return
        try:
            yield from self._of_server(pending, first)
        finally:
            if first is not None:
                first.close()

    def _of_server(self, pending: Sequence[str], first: Media | None) -> Iterator[Result]:
        try:
            self.client = client = self._stack.enter_context(self.server.client(self.progress.waiting_for))
            model = client.model().identity
        except DeepfakeError as exc:
            if exc.exit_code != ServerError.exit_code:
                raise
            yield from (Result(Outcome(source, error=exc)) for source in pending)
            return
        todo = []
        for source in pending:
            if self.journal is None:
                todo.append(source)
            elif self.resume and (known := self.journal.reusable(source, model)) is not None:
                yield Result(known, reused=True)
            else:
                self.journal.begin(source)
                todo.append(source)
        for outcome in self._analyze(client, todo, model, first):
            yield Result(outcome)

    def _analyze(
        self, client: DeepfakeClient | GatewayClient, todo: Sequence[str], model: ModelIdentity, first: Media | None
    ) -> Iterator[Outcome]:
        # Results know an address without its password.
        left = {without_password(source): source for source in todo}
        failed: list[str] = []
        failures = 0
        opened = first.name if first is not None and self.server.takes_media else None
        for outcome in self._pass(client, [first if source == opened else source for source in todo]):
            source = left.pop(outcome.source)
            if first is not None and source == first.name:
                first.close()
            if outcome.server_failed:
                self.unsettled.append(outcome)
                failed.append(source)
                failures += 1
            else:
                failures = 0
                yield outcome
        if failures == 0 or _replaced(client, model):
            # The server was away and has come back, or has another model: what failed meanwhile gets a second chance.
            for outcome in self._pass(client, failed):
                self.unsettled = [item for item in self.unsettled if item.source != outcome.source]
                yield outcome
        while self.unsettled:
            yield self.unsettled.pop(0)
        gone = ServerUnavailableError(
            f"not analyzed, because the server failed {MAX_SERVER_FAILURES} inputs in a row before; see that it runs "
            "(deepfake health) and run again"
        )
        yield from (Outcome(source, error=gone) for source in left)

    def _pass(self, client: DeepfakeClient | GatewayClient, sources: Sequence[Any]) -> Iterator[Outcome]:
        """Yield outcomes until all are there, or the server has failed too many in a row."""
        failures = 0
        if not sources:
            return
        with closing(
            client.analyze_many(
                sources,
                options=self.options,
                concurrency=self.concurrency,
                on_progress=self.progress.frame_done,
                on_verdict=None if self.on_verdict is None else self._inspect,
            )
        ) as outcomes:
            for outcome in outcomes:
                yield outcome
                failures = failures + 1 if outcome.server_failed else 0
                if failures == MAX_SERVER_FAILURES:
                    return

    def print_failures(self, screen: Console) -> None:
        """Name the inputs without a verdict on standard error, each reason once."""
        sources_by_message: dict[str, list[str]] = {}
        errors: dict[str, DeepfakeError] = {}
        for outcome in self._outcomes:
            if outcome.error is not None:
                sources_by_message.setdefault(str(outcome.error), []).append(outcome.source)
                errors[str(outcome.error)] = outcome.error
        for message, sources in sources_by_message.items():
            print_error(errors[message])
            if len(sources) > 1:
                _note(screen, f"  so it was with {len(sources)} inputs: {_listed(sources)}")
        for reason in dict.fromkeys(map(str, self.output_errors)):
            print_error(OptionError(reason))
        cut_short = [outcome.source for outcome in self._outcomes if outcome.verdict and outcome.server_failed]
        if cut_short and len(self.sources) > 1:
            _note(screen, f"the server failed during {len(cut_short)} inputs: {_listed(cut_short)}")
        if self.interrupted or (self.output_errors and len(self._outcomes) < len(self.sources)):
            why = "interrupted" if self.interrupted else "ended, because nothing takes the results any more"
            _note(screen, f"{why}: {len(self._outcomes)} of {len(self.sources)} inputs were analyzed")
        if len(self.sources) > 1 and (self.interrupted or any(item.server_failed for item in self._outcomes)):
            _note(
                screen,
                "to resume where this run stopped, run the same command with --resume"
                if self.journal is not None
                else "with --output FILE or --report DIR, a run can resume where it stopped (--resume)",
            )

    def exit_code(self, *, fake_counts: bool = False) -> int:
        """Return the exit code of the process; with `fake_counts` it says whether something is FAKE."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if self.output_errors:
            return OptionError.exit_code
        if any(outcome.server_failed for outcome in self._outcomes):
            return ServerError.exit_code
        errors = [outcome.error for outcome in self._outcomes if outcome.error is not None]
        if errors:
            return errors[0].exit_code if len(errors) == len(self._outcomes) else EXIT_SOME_INPUTS_FAILED
        labels = {outcome.verdict.label for outcome in self._outcomes if outcome.verdict is not None}
        if fake_counts and Label.FAKE in labels:
            return EXIT_FAKE
        return EXIT_INCONCLUSIVE if Label.INCONCLUSIVE in labels else 0


@contextmanager
def _ctrl_c_deferred() -> Iterator[None]:
    """Let what is inside finish before Ctrl-C is raised; only the main thread can be interrupted at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _listed(sources: Sequence[str]) -> str:
    shown = ", ".join(sources[:_SHOWN_SOURCES])
    rest = len(sources) - _SHOWN_SOURCES
    return f"{shown} and {rest} more" if rest > 0 else shown


def _note(screen: Console, text: str) -> None:
    screen.print(f"[yellow]{escape(visible(text))}[/]")


def _replaced(client: DeepfakeClient | GatewayClient, model: ModelIdentity) -> bool:
    """Return whether the client has found out that the server offers another model now."""
    try:
        return client.model().identity != model
    except DeepfakeError:
        return False
