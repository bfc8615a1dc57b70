"""Where the results of `deepfake analyze` go: JSON, JSON lines, CSV, tables, a journal, a report.

Each output takes results one by one as they are finished, and is complete for what it has taken at any time that it
is closed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO

import typer
from rich.console import Console

from deepfake_client.cli.render import print_summary, print_verdict
from deepfake_client.cli.terminal import json_text
from deepfake_client.explain.evidence import Evidence
from deepfake_client.explain.findings import ExplainedFace, overlays_png
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.journal import Journal
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.table import COLUMNS, outcome_row
from deepfake_client.result.verdict import ModelIdentity, Verdict
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, OptionError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.remote import without_password
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import writing
from deepfake_preprocess.support.text import table_cell, visible

if TYPE_CHECKING:
    from deepfake_client.report import Heatmaps, Pictures, ReportContext

MANY_PANEL = "Many inputs"
REPORT_JOURNAL = "results.jsonl"
"""File in the directory of a report that keeps its results."""
INDEX_NAME = "index.html"
"""As `deepfake_client.report` has it, which cannot be imported everywhere."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an input, and whether that is known from an earlier run."""

    outcome: Outcome
    reused: bool = False


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """Which outputs a run of `deepfake analyze` has; OptionError where some of them exclude each other."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one object for one input, an array for several.")
    ] = False
    as_jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON per input, as it finishes.")] = (
        False
    )
    csv: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write one row of CSV per input; - prints it.")
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write an HTML page, plots and JSON per input, and an index. Needs the extra 'report'.",
            file_okay=False,
        ),
    ] = None
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Heatmaps in the report: where the model saw the fake. With --resume also on earlier pages without.",
        ),
    ] = False
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Write each page of the report as PDF, too. Needs the extra 'pdf'.")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no tables: one line for each input.")
    ] = False
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 where an input is FAKE, so that scripts need not read.")
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep every result in FILE as well (JSON lines), as it finishes.",
            dir_okay=False,
            rich_help_panel=MANY_PANEL,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Do not analyze again what --output FILE or --report DIR of an earlier run holds already; pages "
            "that are missing, or lack the heatmaps of --explain, are made from it.",
            rich_help_panel=MANY_PANEL,
        ),
    ] = False

    def __post_init__(self) -> None:
        given = (("--json", self.as_json), ("--jsonl", self.as_jsonl), ("--csv -", self.csv == "-"))
        names = [name for name, wanted in given if wanted]
        if len(names) > 1:
            raise OptionError(f"{' and '.join(names)} would be mixed on standard output; give one of them")
        if self.resume and self.journal_path is None:
            raise OptionError(
                "--resume needs the results of the earlier run: name them with --output FILE or --report DIR, and "
                "give the same option to the first run"
            )
        if self.explain and self.report is None:
            raise OptionError("--explain puts heatmaps into a report; name its directory with --report DIR")
        if self.pdf and self.report is None:
            raise OptionError("--pdf writes a PDF beside each page of a report; name its directory with --report DIR")

    @property
    def journal_path(self) -> Path | None:
        """Where results are kept; None for nowhere."""
        return self.output or (None if self.report is None else self.report / REPORT_JOURNAL)

    def printed(self, sources: Sequence[str]) -> Iterator[Output]:
        """Yield what goes to the screen or into a table."""
        if self.as_jsonl:
            yield JsonLines()
        if self.as_json or not (self.as_jsonl or self.csv == "-"):
            yield Lines() if self.quiet and not self.as_json else Screen(sources, as_json=self.as_json)
        if self.csv is not None:
            yield Csv(self.csv)

    def written(self) -> Iterator[str]:
        """Yield what the outputs have written, for people."""
        if self.report is not None:
            yield f"report: {self.report / INDEX_NAME}"
        yield from (f"results: {path}" for path in (self.csv, self.output) if path not in (None, "-"))

    def shows_progress(self, screen: Console) -> bool:
        """Return whether progress can be drawn on `screen` without disturbing what is printed."""
        streams = self.as_jsonl or self.csv == "-"
        return screen.is_terminal and not self.quiet and not (streams and sys.stdout.isatty())


class Output(Protocol):
    """Takes results as they are finished."""

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """Take one result; `spec` is the contract of the model that gave its verdict, None where there is none."""

    def close(self) -> None:
        """Finish what can be finished at the end only."""


class JsonLines:
    """Prints each result as one line."""

    def __init__(self) -> None:
        self._stdout = sys.stdout

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """See `Output.add`."""
        print(json_text(result.outcome.to_dict()), file=self._stdout, flush=True)

    def close(self) -> None:
        """See `Output.close`."""


class Lines:
    """Prints verdict, probability and name of each input, as it is finished."""

    def __init__(self) -> None:
        self._stdout = sys.stdout

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """See `Output.add`."""
        verdict = result.outcome.verdict
        if verdict is not None:
            score = "-" if verdict.fake_probability is None else f"{verdict.fake_probability:.4f}"
            print(f"{verdict.label.value}\t{score}\t{visible(verdict.source)}", file=self._stdout, flush=True)

    def close(self) -> None:
        """See `Output.close`."""


class Csv:
    """Writes one row for each input into a file, or to standard output for ``-``."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._file: TextIO = sys.stdout
        self._rows = csv.DictWriter(self, COLUMNS, lineterminator="\n")
        with self._checked():
            if target != "-":
                self._file = Path(target).open("w", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
            try:
                self._rows.writeheader()
            except OSError:
                with suppress(OptionError):
                    self.close()
                raise

    def write(self, line: str) -> None:
        """Write a line at once, for the writer of rows."""
        self._file.write(line)
        self._file.flush()

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """See `Output.add`."""
        with self._checked():
            self._rows.writerow({name: table_cell(value) for name, value in outcome_row(result.outcome).items()})

    def close(self) -> None:
        """See `Output.close`."""
        if self._file is not sys.stdout:
            with self._checked():
                self._file.close()

    def _checked(self) -> AbstractContextManager[None]:
        return writing(f"--csv {self._target}", "free some space, or name another file")


class Screen:
    """Prints results at the end and in the order of the inputs: as JSON, or as tables for people."""

    def __init__(self, sources: Sequence[str], *, as_json: bool) -> None:
        self._order = {without_password(source): position for position, source in enumerate(sources)}
        self._as_json = as_json
        self._outcomes: list[Outcome] = []
        self._training_data: dict[ModelIdentity, str] = {}

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """See `Output.add`."""
        self._outcomes.append(result.outcome)
        if result.outcome.verdict is not None and spec is not None:
            self._training_data[result.outcome.verdict.model] = spec.training_data

    def close(self) -> None:
        """See `Output.close`."""
        self._outcomes.sort(key=lambda outcome: self._order.get(outcome.source, len(self._order)))
        several = len(self._order) > 1
        verdicts = [outcome.verdict for outcome in self._outcomes if outcome.verdict is not None]
        if self._as_json:
            if several:
                print(json_text([outcome.to_dict() for outcome in self._outcomes], indent=2))
            elif verdicts:
                print(json_text(verdicts[0].to_dict(), indent=2))
        elif several and verdicts:
            print_summary(results_console(), verdicts, training_data=self._training_data)
        elif verdicts:
            print_verdict(results_console(), verdicts[0], training_data=self._training_data)
        sys.stdout.flush()


class Report:
    """Writes a page for each verdict, and an index of all results that the journal, and so the directory, holds.

    Pages are written in a thread: they must not keep finished results from being taken and put on disk. `explain`,
    called there, makes the heatmaps of a page; with None none are wanted. A page without them says why. With `pdf`
    each page is written as PDF, too.
    """

    def __init__(
        self,
        directory: Path,
        journal: Journal,
        options: AnalyzeOptions,
        explain: Callable[[Verdict, Sequence[Evidence]], tuple[ExplainedFace, ...]] | None = None,
        *,
        pdf: bool = False,
    ) -> None:
        # Here and not above: the client must work where the plotting library is not installed.
        require_extra("deepfake_client.report", extra="report")
        if pdf:
            require_extra("deepfake_client.report.pdf", extra="pdf")
        from deepfake_client import report

        self._report = report
        self._directory = directory
        self._journal = journal
        self._options = options
        self._explain, self._pdf = explain, pdf
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="deepfake-report")
        self._pages: list[Future[Path]] = []
        self._pictures: dict[str, Pictures] = {}

    def collect(self, verdict: Verdict, media: Media, spec: ModelSpec) -> None:
        """Take the pictures of a page while its input is open; called on any thread, before `add`."""
        pictures = self._report.take_pictures(verdict, media, spec)
        if pictures.faces or pictures.shots:  # else it is opened once more: some addresses can only be read once
            self._pictures[verdict.source] = pictures

    def add(self, result: Result, spec: ModelSpec | None) -> None:
        """See `Output.add`."""
        verdict = result.outcome.verdict
        if verdict is None or spec is None:
            return
        # A result of an earlier run has a page, unless that was cut off, or was not asked for heatmaps or a PDF.
        if result.reused and self._report.has_page(
            verdict.source, self._directory, heatmaps=self._explain is not None, pdf=self._pdf
        ):
            return
        analyzed_at = None if result.reused else datetime.now(UTC)
        context = self._report.ReportContext(spec, self._options, analyzed_at=analyzed_at)
        pictures = self._pictures.pop(verdict.source, None)
        self._pages.append(self._writer.submit(self._write_page, verdict, context, pictures))

    def wait(self) -> None:
        """Wait for the pages of all results so far."""
        wait(self._pages)

    def close(self) -> None:
        """See `Output.close`; pages that are not written yet are left out."""
        try:
            try:
                for page in self._pages:
                    if page.done():
                        page.result()
            finally:
                self._writer.shutdown(cancel_futures=True)
                self._report.write_index(self._journal.outcomes, self._directory)
        except OSError as exc:
            raise OptionError(
                f"--report {self._directory} cannot be written ({exc.strerror}); free some space, or name another one"
            ) from exc

    def _write_page(self, verdict: Verdict, context: ReportContext, pictures: Pictures | None) -> Path:
        pictures = pictures or self._report.pictures_of_source(verdict, context.spec)
        heatmaps = self._heatmaps(verdict, pictures)
        context = replace(context, file=self._report.file_facts(verdict.source))
        return self._report.write_page(verdict, self._directory, context, heatmaps, pictures=pictures, pdf=self._pdf)

    def _heatmaps(self, verdict: Verdict, pictures: Pictures) -> Heatmaps | None:
        if self._explain is None:
            return None
        try:
            faces = self._explain(verdict, pictures.faces)
        except DeepfakeError as exc:
            return self._report.Heatmaps(problem=str(exc))
        method = f"{faces[0].explanation.method} on {faces[0].explanation.layer}"
        return self._report.Heatmaps(overlays_png(faces), method)
