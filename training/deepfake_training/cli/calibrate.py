"""`deepfake calibrate`: a thin shell around what scores clips, finds a threshold, and adds it to the repository."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepfake_client.cli.groups import SamplingOptions, ServerOptions
from deepfake_client.cli.option_names import with_options
from deepfake_client.cli.terminal import json_text
from deepfake_client.options import AnalyzeOptions
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.cli.grouping import with_groups
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.text import visible
from deepfake_training.cli.keeping import ResultsOption, kept
from deepfake_training.evaluate.clips import labeled_files
from deepfake_training.evaluate.evaluation import save_spec
from deepfake_training.evaluate.metrics import Estimate
from deepfake_training.evaluate.recalibrating import CalibrationResult, calibrate_model
from deepfake_training.evaluate.scoring import ScoredFile, score_files


@with_groups
def calibrate(
    server: ServerOptions,
    sampling: SamplingOptions,
    clips: Annotated[
        list[Path], typer.Argument(metavar="REAL...", help="Real videos or images: files, or folders of them.")
    ],
    fake: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Fake ones, where there are any; repeatable.")
    ] = None,
    false_alarms: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of real clips that may be called FAKE.")
    ] = 0.05,
    write_spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the result into this spec, too, for the next export of its checkpoint."
        ),
    ] = None,
    results: ResultsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the served model to your own clips: how suspicious is too suspicious, and when is "don't know" better?

    The result is a new version in the model repository, which `deepfake serve` takes after SIGHUP or with --watch;
    `deepfake repository rollback` goes back. Clips must be like those that will be judged, and their labels sure.

    [bold]Examples[/]

      deepfake calibrate our/archive --embedded --dry-run
      deepfake calibrate our/archive --fake our/fakes --false-alarms 0.02 --embedded
      deepfake calibrate our/archive --url gpu-host:8001 --repository models --json
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    repository = require_extra("deepfake_export.repository.recalibration", extra="evaluate")
    spec_file = None if write_spec is None else ModelSpec.from_yaml(write_spec)
    files = labeled_files(clips, fake or ())
    with console.status(f"scoring {len(files)} clips") as status, server.client(console.status) as client:

        def show(number: int, _: ScoredFile) -> None:
            status.update(f"scored {number} of {len(files)} clips")

        served = client.model().spec
        if spec_file is not None and spec_file.name != served.name:
            raise OptionError(f"{write_spec} is the spec of {spec_file.name!r}, but {served.name!r} is served")
        if not dry_run:
            # Before minutes of work.
            repository.check_served(server.repository, served)
        options = AnalyzeOptions(sampling=sampling, abstain=False)
        with kept(results, asdict(options), console) as journal:
            scored = score_files(files, client, options, on_file=show, journal=journal)
    result = calibrate_model(scored, served, false_alarms=false_alarms)
    written = None
    if not dry_run:
        written = repository.recalibrate(
            server.repository,
            served,
            threshold=result.point.threshold,
            temperature=result.temperature,
            calibration=result.calibration,
        )
        if write_spec is not None and spec_file is not None:
            save_spec(write_spec, result.apply_to(spec_file))
    if as_json:
        print(json_text({**result.to_dict(), "written": None if written is None else written.version}, indent=2))
        return
    _print(result, written, server.repository)


def _print(result: CalibrationResult, written: Any, repository: Path) -> None:
    screen, point = results_console(), result.point
    table = Table.grid(padding=(0, 2))
    rows = [
        ("clips", f"{result.num_real} real, {result.num_fake} fake"),
        ("threshold", f"{point.threshold:g} (was {result.threshold_before:g}); FAKE from there on"),
        ("left open", f"from {point.undecided_from:g} up to the threshold: INCONCLUSIVE, near_threshold"),
        ("temperature", f"{result.temperature:g} (was {result.temperature_before:g})"),
        (
            "real clips",
            f"{_share(point.real_called_fake)} called FAKE, {_share(point.real_undecided)} left open; of further "
            f"ones {point.expected_rate:.0%} on average",
        ),
    ]
    if result.num_fake:
        rows.append(
            (
                "fake clips",
                f"{_share(point.fake_found)} found, {_share(point.fake_undecided)} left open, "
                f"{_share(point.fake_called_real)} called REAL",
            )
        )
    rows.append(
        (
            "clips needed",
            f"{point.clips_needed} real ones for this share, {point.clips_to_be_sure} to be 95% sure of it",
        )
    )
    for name, value in rows:
        table.add_row(name, Text(visible(value)))
    screen.print(table)
    for item in result.left_out:
        screen.print(Text(visible(with_options(f"left out: {item.source} ({item.label}): {item.reason}"))))
    for note in (*result.notes, *(written.notes if written is not None else ())):
        screen.print(Text(visible(with_options(f"note: {note}")), style="yellow"))
    if written is None:
        screen.print("nothing was written; leave out --dry-run to add this as a new version")
        return
    screen.print(
        Text(
            f"version {written.version} of {written.model} was added to {visible(str(repository))}, made of version "
            f"{written.before}; a running server takes it after SIGHUP, with --watch or a restart"
        )
    )


def _share(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    ends = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.0%} to {estimate.high:.0%})"
    return f"{estimate.value:.0%}{ends}"
