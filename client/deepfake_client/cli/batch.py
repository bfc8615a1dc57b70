"""`Batch`: the bookkeeping of one run over many inputs, so that no result is lost and no input is forgotten.

Knows nothing of options, screens or formats; the command line is built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.async_client import DEFAULT_CONCURRENCY
from deepfake_client.cli.journal import Journal
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import ModelIdentity
from deepfake_preprocess.errors import DeepfakeError, InputError, OptionError, ServerUnavailableError
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.remote import is_url, without_password

MAX_SERVER_FAILURES = 3
"""Inputs in a row that the server may fail before the rest is given up: each has waited for it already."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an input, and whether that is known from an earlier run."""

    outcome: Outcome
    reused: bool = False


class Batch:
    """One run over many inputs.

    Args:
        sources: inputs as named, each once.
        connect: returns the client; called when the first input has been opened, so that inputs that cannot be
            opened are reported whether or not a server is running.
        options: how each input is analyzed.
        concurrency: inputs that are worked on at once.
        journal: where results are kept, or None.
        resume: whether results in the journal are used again.
        on_progress: called with source and progress after each frame, on the client's thread.

    Attributes:
        unsettled: results of inputs that the server failed, and that will be tried again at the end; what is still
            here when a run is interrupted has not been yielded.
    """

    def __init__(
        self,
        sources: Sequence[str],
        connect: Callable[[], DeepfakeClient],
        options: AnalyzeOptions,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        journal: Journal | None = None,
        resume: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
    ) -> None:
        self.unsettled: list[Outcome] = []
        self._sources = list(sources)
        self._connect = connect
        self._options, self._concurrency, self._on_progress = options, concurrency, on_progress
        self._journal = journal
        self._resume = resume

    def results(self) -> Generator[Result]:
        """Yield one result for each source, as it is finished; those of an earlier run first.

        Closing the generator cancels what is under way.

        Raises:
            OptionError: an option is wrong; whatever else goes wrong is a result.
        """
        pending = self._sources
        while pending and (error := _opening_error(pending[0])) is not None:
            yield Result(Outcome(pending[0], error=error))
            pending = pending[1:]
        if not pending:
            return
        try:
            client = self._connect()
            model = client.model()
        except OptionError:
            raise
        except DeepfakeError as exc:
            yield from (Result(Outcome(source, error=exc)) for source in pending)
            return
        todo = []
        for source in pending:
            if self._journal is None:
                todo.append(source)
            elif self._resume and (known := self._journal.reusable(source, model.identity)) is not None:
                yield Result(known, reused=True)
            else:
                self._journal.begin(source)
                todo.append(source)
        for outcome in self._analyze(client, todo, model.identity):
            yield Result(outcome)

    def _analyze(self, client: DeepfakeClient, todo: Sequence[str], model: ModelIdentity) -> Iterator[Outcome]:
        # Results know an address without its password.
        left = {without_password(source): source for source in todo}
        failed: list[str] = []
        failures = 0
        for outcome in self._pass(client, todo):
            source = left.pop(outcome.source)
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

    def _pass(self, client: DeepfakeClient, sources: Sequence[str]) -> Iterator[Outcome]:
        """Yield outcomes until all are there, or the server has failed too many in a row."""
        failures = 0
        if not sources:
            return
        with closing(
            client.analyze_many(
                sources, options=self._options, concurrency=self._concurrency, on_progress=self._on_progress
            )
        ) as outcomes:
            for outcome in outcomes:
                yield outcome
                failures = failures + 1 if outcome.server_failed else 0
                if failures == MAX_SERVER_FAILURES:
                    return


def _replaced(client: DeepfakeClient, model: ModelIdentity) -> bool:
    """Return whether the client has found out that the server offers another model now."""
    try:
        return client.model().identity != model
    except DeepfakeError:
        return False


def _opening_error(source: str) -> InputError | None:
    if is_url(source):
        return None  # not fetched twice
    try:
        open_media(source, name=source).close()
    except InputError as exc:
        return exc
    return None
