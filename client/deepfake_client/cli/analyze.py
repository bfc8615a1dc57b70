"""`deepfake analyze`: from paths on the command line to verdicts on the screen, in files and in reports."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_client.async_client import DEFAULT_CONCURRENCY
from deepfake_client.cli.batch import Batch
from deepfake_client.cli.explain import CheckpointOption, ServiceOption
from deepfake_client.cli.groups import (
    AggregationOption,
    SamplingOptions,
    ServerOptions,
    ThresholdOption,
    with_groups,
)
from deepfake_client.cli.journal import Journal
from deepfake_client.cli.output import Csv, JsonLines, Kept, Output, Report, Screen
from deepfake_client.cli.progress import RunProgress
from deepfake_client.cli.run import Run, Session
from deepfake_client.explain.findings import open_explainer
from deepfake_client.options import AnalyzeOptions
from deepfake_client.sources.inputs import expand
from deepfake_preprocess.errors import OptionError

REPORT_JOURNAL = "results.jsonl"
"""File in the directory of a report that keeps its results."""

_ANALYSIS, _OUTPUT, _MANY = "Analysis", "Output", "Many inputs"


@with_groups
def analyze(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Videos, images, directories or globs.")],
    server: ServerOptions,
    sampling: SamplingOptions,
    aggregation: AggregationOption = "mean",
    until_sure: Annotated[
        bool,
        typer.Option("--until-sure", help="Stop as soon as the frames looked at suffice.", rich_help_panel=_ANALYSIS),
    ] = False,
    threshold: ThresholdOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: one object for one input, an array for several.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    as_jsonl: Annotated[
        bool,
        typer.Option("--jsonl", help="Print one line of JSON per input, as it finishes.", rich_help_panel=_OUTPUT),
    ] = False,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Write one row of CSV per input; - prints it.", rich_help_panel=_OUTPUT),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write an HTML page, plots and JSON per input, and an index. Needs the extra 'report'.",
            file_okay=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Heatmaps in the report: where the model saw the fake. With --resume also on earlier pages without.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    service: ServiceOption = None,
    checkpoint: CheckpointOption = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No progress and no tables; errors only.", rich_help_panel=_OUTPUT),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep every result in FILE as well (JSON lines), as it finishes.",
            dir_okay=False,
            rich_help_panel=_MANY,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Do not analyze again what --output FILE or --report DIR of an earlier run holds already; pages "
            "that are missing, or lack the heatmaps of --explain, are made from it.",
            rich_help_panel=_MANY,
        ),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, help="Inputs to work on at once.", show_default=str(DEFAULT_CONCURRENCY), rich_help_panel=_MANY
        ),
    ] = None,
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
    _check_printed(as_json=as_json, as_jsonl=as_jsonl, csv=csv)
    if report is None and explain:
        raise OptionError("--explain puts heatmaps into a report; name its directory with --report DIR")
    if not explain:
        _check_no_explainer(context)
    sources = list(dict.fromkeys(expand(paths)))
    # A file name that is not UTF-8 is printed with escapes, which JSON reads back as the same name.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    run = Run(sources, screen)
    try:
        with ExitStack() as stack:
            # Closed in reverse order: the report's index is made of the journal, which is closed last.
            journal = _journal(output, report, options, resume=resume)
            if journal is not None:
                run.outputs.append(stack.enter_context(closing(Kept(journal))))
            for item in _printed(sources, as_json=as_json, as_jsonl=as_jsonl, csv=csv, quiet=quiet):
                run.outputs.append(stack.enter_context(closing(item)))
            explainer = None
            if explain:
                explainer = stack.enter_context(closing(open_explainer(service=service, checkpoint=checkpoint)))
            streams = as_jsonl or csv == "-"
            visible = screen.is_terminal and not quiet and not (streams and sys.stdout.isatty())
            progress = RunProgress(screen, len(sources), visible=visible)
            session = Session(server, progress, explainer)
            pages = None
            if report is not None and journal is not None:
                heatmaps = session.explain if explain else None
                pages = stack.enter_context(closing(Report(report, journal, options, heatmaps)))
                run.outputs.append(pages)
            stack.enter_context(progress)
            stack.enter_context(session)
            batch = Batch(
                sources,
                session.client,
                options,
                concurrency=concurrency or DEFAULT_CONCURRENCY,
                journal=journal,
                resume=resume,
                on_progress=progress.frame_done,
            )
            run.drive(batch, session, progress)
            if pages is not None:
                with progress.waiting_for("writing the report"):
                    pages.wait()
    except KeyboardInterrupt:
        run.interrupted = True
    run.print_failures()
    raise typer.Exit(run.exit_code())


def _journal(output: Path | None, report: Path | None, options: AnalyzeOptions, *, resume: bool) -> Journal | None:
    path = output or (None if report is None else report / REPORT_JOURNAL)
    if path is None:
        if resume:
            raise OptionError(
                "--resume needs the results of the earlier run: name them with --output FILE or --report DIR, and "
                "give the same option to the first run"
            )
        return None
    return Journal(path, dataclasses.asdict(options))


def _check_printed(*, as_json: bool, as_jsonl: bool, csv: str | None) -> None:
    names = [name for name, given in (("--json", as_json), ("--jsonl", as_jsonl), ("--csv -", csv == "-")) if given]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} would be mixed on standard output; give one of them")


def _check_no_explainer(context: typer.Context) -> None:
    for name in ("service", "checkpoint"):
        given = context.get_parameter_source(name)
        # The address of a service may stand in the environment for other commands.
        if given is not None and given.name == "COMMANDLINE":
            raise OptionError(f"--{name} is for the heatmaps of a report; add --explain and --report DIR")


def _printed(sources: Sequence[str], *, as_json: bool, as_jsonl: bool, csv: str | None, quiet: bool) -> list[Output]:
    outputs: list[Output] = []
    if as_jsonl:
        outputs.append(JsonLines())
    if as_json or not (as_jsonl or csv == "-" or quiet):
        outputs.append(Screen(sources, as_json=as_json))
    if csv is not None:
        outputs.append(Csv(csv))
    return outputs
