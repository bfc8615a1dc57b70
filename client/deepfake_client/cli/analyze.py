"""`deepfake analyze`: from paths on the command line to verdicts on the screen, in files and in reports."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_client.async_client import DEFAULT_CONCURRENCY
from deepfake_client.cli.groups import (
    ANALYSIS_PANEL,
    AggregationOption,
    ExplainerChoice,
    ExplainerOptions,
    SamplingOptions,
    ServerOptions,
    ThresholdOption,
    with_groups,
)
from deepfake_client.cli.journal import Journal
from deepfake_client.cli.output import OutputChoice, Report
from deepfake_client.cli.progress import RunProgress
from deepfake_client.cli.run import Run
from deepfake_client.options import AnalyzeOptions
from deepfake_client.sources.inputs import expand
from deepfake_preprocess.errors import OptionError

_OUTPUT, _MANY = "Output", "Many inputs"

UntilSureOption = Annotated[
    bool,
    typer.Option(
        "--until-sure", help="Stop as soon as the frames looked at suffice.", rich_help_panel=ANALYSIS_PANEL
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON: one object for one input, an array for several.", rich_help_panel=_OUTPUT
    ),
]
JsonlOption = Annotated[
    bool,
    typer.Option("--jsonl", help="Print one line of JSON per input, as it finishes.", rich_help_panel=_OUTPUT),
]
CsvOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|-", help="Write one row of CSV per input; - prints it.", rich_help_panel=_OUTPUT),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write an HTML page, plots and JSON per input, and an index. Needs the extra 'report'.",
        file_okay=False,
        rich_help_panel=_OUTPUT,
    ),
]
ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Heatmaps in the report: where the model saw the fake. With --resume also on earlier pages without.",
        rich_help_panel=_OUTPUT,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no tables; errors only.", rich_help_panel=_OUTPUT),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keep every result in FILE as well (JSON lines), as it finishes.",
        dir_okay=False,
        rich_help_panel=_MANY,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Do not analyze again what --output FILE or --report DIR of an earlier run holds already; pages "
        "that are missing, or lack the heatmaps of --explain, are made from it.",
        rich_help_panel=_MANY,
    ),
]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Inputs to work on at once.", rich_help_panel=_MANY)]


@with_groups
def analyze(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Videos, images, directories or globs.")],
    server: ServerOptions,
    sampling: SamplingOptions,
    explainer: ExplainerOptions,
    aggregation: AggregationOption = "mean",
    until_sure: UntilSureOption = False,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
    as_jsonl: JsonlOption = False,
    csv: CsvOption = None,
    report: ReportOption = None,
    explain: ExplainOption = False,
    quiet: QuietOption = False,
    output: OutputOption = None,
    resume: ResumeOption = False,
    concurrency: ConcurrencyOption = DEFAULT_CONCURRENCY,
) -> None:
    """Say whether videos or images show a manipulated face.

    Frames are decoded, faces found, cropped and followed, and every crop is scored by the server. Each face gets a
    score of its own; the video's score is that of its most suspicious face.

    [bold]Examples[/]

      deepfake analyze clip.mp4
      deepfake analyze clip.mp4 --embedded --json
      deepfake analyze videos/ --report report --csv results.csv
      deepfake analyze videos/ --report report --resume
      deepfake analyze videos/ --report report --resume --explain --checkpoint detector.safetensors
      deepfake analyze 'videos/*.mp4' --fps 2 --url gpu-host:8001 --jsonl

    [bold]Exit codes[/]

      0    every input has a verdict
      2    wrong option, or an input that cannot be opened
      3    an input is inconclusive
      4    server unreachable or failed
      5    some of several inputs cannot be opened; the others have verdicts
      130  interrupted; what was done is printed and written
    """
    options = AnalyzeOptions(sampling=sampling, aggregation=aggregation, threshold=threshold, until_sure=until_sure)
    outputs = OutputChoice(
        as_json=as_json, as_jsonl=as_jsonl, csv=csv, report=report, file=output, resume=resume, quiet=quiet
    )
    if report is None and explain:
        raise OptionError("--explain puts heatmaps into a report; name its directory with --report DIR")
    if not explain and explainer.named:
        raise OptionError(f"--{explainer.named[0]} is for the heatmaps of a report; add --explain and --report DIR")
    sources = list(dict.fromkeys(expand(paths)))
    # A file name that is not UTF-8 is printed with escapes, which JSON reads back as the same name.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    progress = RunProgress(screen, len(sources), visible=outputs.shows_progress(screen))
    run = Run(sources, server, options, progress, concurrency=concurrency, resume=resume)
    try:
        _run(run, outputs, explainer if explain else None)
    except KeyboardInterrupt:
        run.interrupted = True
    run.print_failures(screen)
    raise typer.Exit(run.exit_code())


def _run(run: Run, outputs: OutputChoice, explainer: ExplainerChoice | None) -> None:
    """Open the outputs, drive the run, and close everything in the reverse order."""
    pages: Report | None = None
    with ExitStack() as stack:
        # The report's index is made of the journal, which is closed last.
        if outputs.journal_path is not None:
            settings = dataclasses.asdict(run.options)
            run.journal = stack.enter_context(Journal(outputs.journal_path, settings))
        for item in outputs.printed(run.sources):
            run.outputs.append(stack.enter_context(closing(item)))
        explain = None
        if explainer is not None:
            explain = partial(run.explain, explainer=stack.enter_context(closing(explainer.open())))
        if outputs.report is not None and run.journal is not None:
            pages = stack.enter_context(closing(Report(outputs.report, run.journal, run.options, explain)))
            run.outputs.append(pages)
            run.on_verdict = pages.collect
        stack.enter_context(run.progress)
        stack.enter_context(run)
        run.drive()
        if pages is not None:
            with run.progress.waiting_for("writing the report"):
                pages.wait()
