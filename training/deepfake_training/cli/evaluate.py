"""`deepfake evaluate` and `evaluate-run`: thin shells around what scores, measures and reports.

PyTorch is imported only where a checkpoint is scored: measuring a server works without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from deepfake_client.cli.groups import AggregationOption, SamplingOptions, ServerChoice, ServerOptions
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.journal import Journal
from deepfake_preprocess.cli.console import results_alone, results_console
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.support.extras import require_extra
from deepfake_training.cli.keeping import ResultsOption, kept
from deepfake_training.evaluate.clips import LabeledFile, labeled_files, read_table, split_files
from deepfake_training.evaluate.drift import drift_as_text, drift_of_verdicts, read_verdicts, write_drift
from deepfake_training.evaluate.evaluation import (
    EvaluateOptions,
    Evaluation,
    RobustnessPoint,
    calibrated_spec,
    evaluate_apart,
    evaluate_files,
    robustness_point,
    save_spec,
)
from deepfake_training.evaluate.report import as_markdown, make_directory, write_report
from deepfake_training.evaluate.robustness import DEGRADATIONS, kinds_of, view_of
from deepfake_training.evaluate.scoring import ScoredFile, score_files

EXIT_DRIFTED = 1
"""Clips are no longer like those of the calibration."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """How scores are measured, and where the figures go."""

    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Directory for JSON, Markdown and plots.")
    ] = Path("evaluation")
    rule: Annotated[str, typer.Option(help="How the threshold is chosen: max-f1, max-accuracy or fpr=0.05.")] = (
        "max-accuracy"
    )
    write_spec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the temperature and the threshold found into this spec."),
    ] = None
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap samples; 0 gives no intervals.")] = 1000
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0

    def options(self, aggregation: str = "mean") -> EvaluateOptions:
        """Return how scores are measured that were made by this aggregation."""
        return EvaluateOptions(aggregation=aggregation, rule=self.rule, resamples=self.bootstrap, seed=self.seed)

    def prepare(self) -> None:
        """Make the directory and read the spec: what is wrong with them must not come up after hours of scoring."""
        make_directory(self.output_dir)
        if self.write_spec is not None:
            ModelSpec.from_yaml(self.write_spec)

    def finish(self, evaluation: Evaluation) -> None:
        """Write the report, print the figures, and write the spec, unless they speak against it."""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        written = write_report(evaluation, self.output_dir)
        screen, text = results_console(), as_markdown(evaluation)
        screen.print(Markdown(text) if screen.is_terminal else Text(text))
        console.print(f"written: {', '.join(str(path) for path in written)}")
        if self.write_spec is not None:
            spec = calibrated_spec(ModelSpec.from_yaml(self.write_spec), evaluation, self.rule)
            save_spec(self.write_spec, spec)
            console.print(f"{self.write_spec}: threshold {spec.threshold:g}, temperature {spec.temperature:g}")
            for note in evaluation.notes:
                if "at its bound" in note:
                    console.print(f"[yellow]warning[/]  {note}")


ReportingOptions: TypeAlias = Annotated[Reporting, Group(Reporting, "Figures")]


@dataclass(frozen=True, slots=True)
class Files:
    """Which files are measured, and on which of them the threshold is chosen."""

    real: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Real videos or images: a file or a folder; repeatable."),
    ] = None
    fake: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="Fake videos or images, likewise.")] = None
    clips: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Instead, a table: path, label; where known, source and people (a;b)."),
    ] = None
    split: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Choose the threshold on this share, report the rest; no person or source (folder) is in both.",
        ),
    ] = None

    @property
    def named(self) -> bool:
        """Whether any file is named."""
        return bool(self.real or self.fake or self.clips)

    def parts(self) -> tuple[list[LabeledFile], list[LabeledFile]]:
        """Return the files to choose on, if any, and those to report."""
        if self.clips is not None and (self.real or self.fake):
            raise OptionError("--clips names all files; leave out --real and --fake")
        files = read_table(self.clips) if self.clips is not None else labeled_files(self.real or (), self.fake or ())
        return ([], files) if self.split is None else split_files(files, self.split)


@dataclass(frozen=True, slots=True)
class _Scoring:
    """Scores files through a client, and shows how far it is."""

    client: DeepfakeClient
    analysis: AnalyzeOptions
    console: Console
    journal: Journal | None

    def score(
        self, files: Sequence[LabeledFile], title: str = "", view: Callable[[Media], Media] | None = None
    ) -> list[ScoredFile]:
        """Return the scores of all files; `view` degrades them."""
        with self.console.status(f"scoring {len(files)} files{title}") as status:

            def show(number: int, _: ScoredFile) -> None:
                status.update(f"scored {number} of {len(files)} files{title}")

            # Degraded files are other files.
            journal = self.journal if view is None else None
            return score_files(files, self.client, self.analysis, view=view, on_file=show, journal=journal)

    def curves(self, files: Sequence[LabeledFile], kinds: Sequence[str]) -> dict[str, tuple[RobustnessPoint, ...]]:
        """Return the robustness by kind of degradation, at the model's own threshold."""
        threshold = self.client.model().spec.threshold
        curves: dict[str, tuple[RobustnessPoint, ...]] = {}
        for kind in kinds:
            for level in DEGRADATIONS[kind].levels:
                title = f" at {DEGRADATIONS[kind].title} {level:g}"
                scored = self.score(files, title, view_of(DEGRADATIONS[kind], level))
                curves[kind] = (*curves.get(kind, ()), robustness_point(scored, level, threshold))
        return curves


@with_groups
def evaluate_command(
    server: ServerOptions,
    sampling: SamplingOptions,
    reporting: ReportingOptions,
    named: Annotated[Files, Group(Files, "Files")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Evaluate these weights with PyTorch, without a server."),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Spec of --checkpoint.", show_default="the .yaml of the same name"),
    ] = None,
    aggregation: AggregationOption = "mean",
    results: ResultsOption = None,
    robustness: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"Sweep {', '.join(DEGRADATIONS)}, or all; repeatable."),
    ] = None,
    drift: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULTS",
            help="Instead, compare these results of analyze (JSON, JSON lines) with the calibration; repeatable.",
        ),
    ] = None,
) -> None:
    """Measure a detector on labeled videos and images, through the served model or a checkpoint.

    With --drift no labels are needed: are the clips of a week still like those that the model was calibrated on?

    [bold]Examples[/]

      deepfake evaluate --real test/real --fake test/fake --url gpu-host:8001
      deepfake evaluate --real test/real --fake test/fake --embedded --robustness all
      deepfake evaluate --real val/real --fake val/fake --checkpoint net.safetensors --write-spec net.yaml
      deepfake evaluate --clips clips.csv --split 0.5 --rule fpr=0.1 --url gpu-host:8001
      deepfake evaluate --drift week.jsonl --url gpu-host:8001

    [bold]Exit codes[/]  0 done · 1 with --drift: the clips have changed · 2 input or usage error · 4 no server
    """
    if drift:
        if named.named or checkpoint or robustness or reporting.write_spec:
            raise OptionError(
                "--drift compares results that are there; leave out files, checkpoint, sweeps and specs"
            )
        _compare(drift, server, reporting.output_dir)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    kinds = kinds_of(robustness or ())
    if checkpoint is not None and server.embedded:
        raise OptionError("--checkpoint is evaluated without a server; leave out --embedded")
    if named.split is not None and kinds:
        raise OptionError("--robustness sweeps all files at the model's own threshold; leave out --split")
    options = reporting.options(aggregation)
    reporting.prepare()
    choosing, files = named.parts()
    with results_alone(), _opened(checkpoint, spec, server, console) as client:
        analysis = AnalyzeOptions(sampling=sampling, aggregation=aggregation, abstain=False)
        through = "server" if checkpoint is None else "checkpoint"
        settings = dataclasses.asdict(analysis) | ({} if checkpoint is None else {"through": through})
        with kept(results, settings, console) as journal:
            scoring = _Scoring(client, analysis, console, journal)
            measure = (
                partial(evaluate_apart, scoring.score(choosing, " to choose on")) if choosing else evaluate_files
            )
            evaluation = measure(
                scoring.score(files),
                client.model().spec,
                options,
                through=through,
                settings={"frames per video": sampling.num_frames or f"{sampling.fps:g} per second"},
            )
            curves = scoring.curves(files, kinds)
    reporting.finish(dataclasses.replace(evaluation, robustness=curves))


def _opened(
    checkpoint: Path | None, spec: Path | None, server: ServerChoice, console: Console
) -> AbstractContextManager[DeepfakeClient]:
    """Return a client of the server, or of a checkpoint in this process."""
    if checkpoint is None:
        return server.client(console.status)
    module = require_extra("deepfake_training.evaluate.checkpoint", extra="train")
    return DeepfakeClient(module.CheckpointTransport(checkpoint, spec))


def _compare(results: Sequence[Path], server: ServerChoice, output_dir: Path) -> None:
    """Report whether results have drifted away from the served model's calibration; exit code 1 if so."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    verdicts = read_verdicts(results)  # a wrong path is said whether or not a server runs
    with server.client(console.status) as client:
        spec = client.model().spec
    found = drift_of_verdicts(verdicts, spec)
    written = write_drift(found, output_dir)
    for line in drift_as_text(found):
        print(line)
    console.print(f"written: {written}")
    if found.drifted:
        raise typer.Exit(EXIT_DRIFTED)


@with_groups
def evaluate_run(
    reporting: ReportingOptions,
    run: Annotated[Path, typer.Argument(help="Directory of a training run.")],
    pack: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Packed faces.", show_default="what the run was trained on"),
    ] = None,
    num_crops: Annotated[
        int | None,
        typer.Option(min=2, help="Crops to score, at most.", show_default="as many as the run used"),
    ] = None,
) -> None:
    """Measure the best weights of a training run on the faces that it held out.

    [bold]Example[/]

      deepfake evaluate-run runs/first --num-crops 2000 --write-spec runs/first/best.yaml
    """
    reporting.prepare()
    held_out = require_extra("deepfake_training.evaluate.held_out", extra="train")
    packed_faces = require_extra("deepfake_training.data.packed_faces", extra="train")
    faces = packed_faces.PackedFaces.load(pack) if pack is not None else None
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with results_alone(), screen.status("scoring the faces that were held out"):
        spec, scored = held_out.score_held_out(run, faces, num_crops=num_crops)
    reporting.finish(evaluate_files(scored, spec, reporting.options(), through="checkpoint"))
