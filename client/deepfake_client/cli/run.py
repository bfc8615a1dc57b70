"""One run of `deepfake analyze`: its client, the hand-over of results, and what is said when something went wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

from rich.console import Console
from rich.markup import escape

from deepfake_client.cli.batch import Batch, Result
from deepfake_client.cli.groups import ServerChoice
from deepfake_client.cli.main import print_error
from deepfake_client.cli.output import Kept, Output
from deepfake_client.cli.progress import RunProgress
from deepfake_client.client import DeepfakeClient
from deepfake_client.explain.evidence import MAX_SHOWN, SHOWN_PER_TRACK
from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.types import Explainer
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Label, Verdict
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError

EXIT_INCONCLUSIVE = 3
EXIT_SERVER = 4
EXIT_SOME_INPUTS_FAILED = 5
EXIT_INTERRUPTED = 130
_SHOWN_SOURCES = 10


class Session(AbstractContextManager["Session"]):
    """The client of one run, and with --embedded its server, both made when the first input has been opened."""

    def __init__(
        self,
        server: ServerChoice,
        progress: RunProgress,
        explainer: Explainer | None,
    ) -> None:
        self._client: DeepfakeClient | None = None
        self._server, self._progress, self._explainer = server, progress, explainer
        self._stack = ExitStack()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def client(self) -> DeepfakeClient:
        """Make the client, and start the private server; called once.

        Raises:
            DeepfakeError: the server does not start, or offers no usable model.
        """
        client = self._stack.enter_context(self._server.client(self._progress.waiting_for))
        self._client = client
        return client

    def spec_of(self, outcome: Outcome) -> ModelSpec | None:
        """Return the contract of the model that gave a verdict, also when the server has another one since."""
        if outcome.verdict is None or self._client is None:
            return None
        return self._client.model_of(outcome.verdict).spec

    def explain(self, verdict: Verdict) -> tuple[ExplainedFace, ...]:
        """Explain the faces that a page shows, by the explainer of this run; on the thread that writes pages."""
        assert self._client is not None, "there are verdicts only when a server was asked"
        return self._client.explain(verdict, top=SHOWN_PER_TRACK, at_most=MAX_SHOWN, explainer=self._explainer)


class Run:
    """Hands results on to the outputs, and says at the end what went wrong.

    Attributes:
        outputs: where results go, in this order.
        interrupted: whether Ctrl-C ended the run.
    """

    def __init__(self, sources: Sequence[str], screen: Console) -> None:
        self.outputs: list[Output] = []
        self._sources = sources
        self._screen = screen
        self._outcomes: list[Outcome] = []
        self.interrupted = False

    def drive(self, batch: Batch, session: Session, progress: RunProgress) -> None:
        """Take everything that a batch yields; Ctrl-C ends it, and keeps what is done."""
        try:
            with closing(batch.results()) as results:
                for result in results:
                    self._take(result, session)
                    progress.input_done(result.outcome)
        except KeyboardInterrupt:
            self.interrupted = True
            for outcome in batch.unsettled:
                self._take(Result(outcome), session)

    def _take(self, result: Result, session: Session) -> None:
        spec = session.spec_of(result.outcome)
        # One result is in all outputs or in none of them.
        with _ctrl_c_deferred():
            self._outcomes.append(result.outcome)
            for output in self.outputs:
                output.add(result, spec)

    def print_failures(self) -> None:
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
                self._note(f"  so it was with {len(sources)} inputs: {_listed(sources)}")
        cut_short = [outcome.source for outcome in self._outcomes if outcome.verdict and outcome.server_failed]
        if cut_short and len(self._sources) > 1:
            self._note(f"the server failed during {len(cut_short)} inputs: {_listed(cut_short)}")
        if self.interrupted:
            self._note(f"interrupted: {len(self._outcomes)} of {len(self._sources)} inputs were analyzed")
        if len(self._sources) > 1 and (self.interrupted or any(item.server_failed for item in self._outcomes)):
            kept = any(isinstance(output, Kept) for output in self.outputs)
            self._note(
                "to go on where this run stopped, run the same command with --resume"
                if kept
                else "with --output FILE or --report DIR, a run can go on where it stopped (--resume)"
            )

    def _note(self, text: str) -> None:
        self._screen.print(f"[yellow]{escape(text)}[/]")

    def exit_code(self) -> int:
        """Return the exit code of the process."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if any(outcome.server_failed for outcome in self._outcomes):
            return EXIT_SERVER
        errors = [outcome.error for outcome in self._outcomes if outcome.error is not None]
        if errors:
            return errors[0].exit_code if len(errors) == len(self._outcomes) else EXIT_SOME_INPUTS_FAILED
        verdicts = [outcome.verdict for outcome in self._outcomes if outcome.verdict is not None]
        return EXIT_INCONCLUSIVE if any(verdict.label is Label.INCONCLUSIVE for verdict in verdicts) else 0


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
