"""`deepfake analyze`: from paths on the command line to verdicts on the screen, in files and in reports."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from deepfake_client.async_client import DEFAULT_CONCURRENCY
from deepfake_client.cli.groups import (
    AnalysisOptions,
    ExplainerChoice,
    ExplainerOptions,
    Group,
    ServerOptions,
    with_groups,
)
from deepfake_client.cli.journal import Journal
from deepfake_client.cli.output import MANY_PANEL, OutputChoice, Report
from deepfake_client.cli.progress import RunProgress
from deepfake_client.cli.run import Run
from deepfake_client.sources.inputs import expand
from deepfake_preprocess.errors import OptionError


@with_groups
def analyze(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Videos, images, directories or globs.")],
    options: AnalysisOptions,
    outputs: Annotated[OutputChoice, Group(OutputChoice, "Output")],
    explainer: ExplainerOptions,
    server: ServerOptions,
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
    if explainer.named and not outputs.explain:
        raise OptionError(f"--{explainer.named[0]} is for the heatmaps of a report; add --explain and --report DIR")
    sources = list(dict.fromkeys(expand(paths)))
    # A file name that is not UTF-8 is printed with escapes, which JSON reads back as the same name.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    progress = RunProgress(screen, len(sources), visible=outputs.shows_progress(screen))
    run = Run(sources, server, options, progress, concurrency=concurrency, resume=outputs.resume)
    try:
        _run(run, outputs, explainer)
    except KeyboardInterrupt:
        run.interrupted = True
    run.print_failures(screen)
    raise typer.Exit(run.exit_code())


def _run(run: Run, outputs: OutputChoice, explainer: ExplainerChoice) -> None:
    """Open the outputs, drive the run, and close everything in the reverse order."""
    pages: Report | None = None
    with ExitStack() as stack:
        # The report's index is made of the journal, which is closed last.
        if outputs.journal_path is not None:
            run.journal = stack.enter_context(Journal(outputs.journal_path, dataclasses.asdict(run.options)))
        for item in outputs.printed(run.sources):
            run.outputs.append(stack.enter_context(closing(item)))
        if outputs.report is not None and run.journal is not None:
            explain = None
            if outputs.explain:
                explain = partial(run.explain, explainer=stack.enter_context(closing(explainer.open())))
            pages = stack.enter_context(closing(Report(outputs.report, run.journal, run.options, explain)))
            run.outputs.append(pages)
            run.on_verdict = pages.collect
        stack.enter_context(run.progress)
        stack.enter_context(run)
        run.drive()
        if pages is not None:
            with run.progress.waiting_for("writing the report"):
                pages.wait()
