"""`deepfake evaluate`: a thin shell around `scoring`, `evaluate`, `robustness` and `report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.extras import require_extra
from deepfake_training.data.held_out import score_held_out
from deepfake_training.evaluate.calibration import check_rule
from deepfake_training.evaluate.evaluation import calibrated_spec, evaluate, robustness_row, write_spec
from deepfake_training.evaluate.metrics import Estimate
from deepfake_training.evaluate.report import TITLES, Evaluation, write_report
from deepfake_training.evaluate.robustness import DEGRADATIONS, check_kinds, view_of
from deepfake_training.evaluate.scoring import CheckpointTransport, ScoredFile, labelled_files, score_files


def evaluate_command(
    real: Annotated[
        list[Path] | None,
        typer.Option("--real", help="Real videos or images: a file or a folder; may be given often."),
    ] = None,
    fake: Annotated[list[Path] | None, typer.Option("--fake", help="Fake videos or images, likewise.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Directory of a training run: evaluates its best weights on the faces it held out."
        ),
    ] = None,
    pack: Annotated[
        Path | None, typer.Option("--pack", help="With --run: the packed faces it was trained on.")
    ] = None,
    crops: Annotated[
        int | None, typer.Option("--crops", help="With --run: how many crops; as many as the run used by default.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address of the server. Default: localhost.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the served model.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a private Triton on --repository for this evaluation.")
    ] = False,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Evaluate these weights with PyTorch, without a server.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Spec of --checkpoint. Default: the .yaml beside it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory for JSON, Markdown and plots.")] = Path("evaluation"),
    frames: Annotated[int, typer.Option("--frames", help="Frames to sample from each video.")] = 32,
    aggregation: Annotated[str, typer.Option("--aggregation")] = "mean",
    rule: Annotated[
        str, typer.Option("--rule", help="How the threshold is chosen: max-f1, max-accuracy or fpr=0.05.")
    ] = "max-accuracy",
    write: Annotated[
        Path | None, typer.Option("--write", help="Spec file to write the temperature and threshold found into.")
    ] = None,
    robustness: Annotated[
        list[str] | None,
        typer.Option("--robustness", help=f"Sweep {', '.join(DEGRADATIONS)}, or all; may be given often."),
    ] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Bootstrap samples; 0 gives no intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Measure a detector on labelled videos and images, through the served model or a checkpoint."""
    check_rule(rule)
    analysis = AnalyzeOptions(sampling=Sampling(num_frames=frames), aggregation=aggregation)
    kinds = list(DEGRADATIONS) if robustness and "all" in robustness else robustness or []
    check_kinds(kinds)
    if bootstrap < 0:
        raise OptionError(f"--bootstrap must be at least 0, got {bootstrap}")
    console = Console(stderr=True)
    settings: dict[str, Any] = {
        "frames per video": frames,
        "aggregation": aggregation,
        "bootstrap samples": bootstrap,
    }
    options: dict[str, Any] = {
        "aggregation": aggregation, "rule": rule, "resamples": bootstrap, "seed": seed,
    }  # fmt: skip
    if run is not None:
        if pack is None or real or fake:
            raise OptionError(
                "--run goes with --pack, the faces the run was trained on, and without --real and --fake"
            )
        with console.status("scoring the faces that were held out"):
            model_spec, scored = score_held_out(run, pack, crops=crops)
        evaluation = evaluate(scored, model_spec, through="checkpoint", settings=settings, **options)
    else:
        files = labelled_files(real or (), fake or ())
        with ExitStack() as stack:
            client, model_spec, through = _client(stack, console, url, model, embedded, repository, checkpoint, spec)
            scored = _score(console, files, client, analysis, "")
            evaluation = evaluate(scored, model_spec, through=through, settings=settings, **options)
            curves: dict[str, list[dict[str, Any]]] = {}
            for kind in kinds:
                rows = []
                for level in DEGRADATIONS[kind].levels:
                    title = f" at {DEGRADATIONS[kind].title} {level:g}"
                    degraded = _score(console, files, client, analysis, title, view_of(DEGRADATIONS[kind], level))
                    rows.append(robustness_row(degraded, level, model_spec.threshold))
                curves[kind] = rows
            evaluation = dataclasses.replace(evaluation, robustness=curves)
    written = write_report(evaluation, out)
    if write is not None:
        target = ModelSpec.from_yaml(write)
        found = calibrated_spec(target, evaluation, rule)
        write_spec(write, found)
        console.print(f"{write}: threshold {found.threshold:g}, temperature {found.temperature:g}", highlight=False)
    _print(evaluation)
    console.print(f"written: {', '.join(str(path) for path in written)}", highlight=False, soft_wrap=True)


def _client(
    stack: ExitStack,
    console: Console,
    url: str | None,
    model: str | None,
    embedded: bool,
    repository: Path,
    checkpoint: Path | None,
    spec: Path | None,
) -> tuple[DeepfakeClient, ModelSpec, str]:
    if checkpoint is not None:
        model_spec = ModelSpec.from_yaml(spec or checkpoint.with_suffix(".yaml"))
        transport = CheckpointTransport(checkpoint, model_spec)
        client = stack.enter_context(DeepfakeClient(transport))
        return client, client.model().spec, "checkpoint"
    if embedded:
        server = require_extra("deepfake_serve.server", extra="serve")
        with console.status("starting a private Triton"):
            models = [model] if model else []
            url = stack.enter_context(server.EmbeddedTriton(repository, models=models)).grpc_url
    client = stack.enter_context(DeepfakeClient(url, model=model))
    return client, client.model().spec, "server"


def _score(
    console: Console,
    files: Sequence[tuple[Path, int]],
    client: DeepfakeClient,
    options: AnalyzeOptions,
    title: str,
    view: Callable[[Media], Media] | None = None,
) -> list[ScoredFile]:
    with console.status(f"scoring {len(files)} files{title}") as status:
        return score_files(
            files,
            client,
            options=options,
            view=view,
            on_file=lambda number, _: status.update(f"scored {number} of {len(files)} files{title}"),
        )


def _print(evaluation: Evaluation) -> None:
    console = Console()
    table = Table(title=f"{evaluation.model['name']} through the {evaluation.through}")
    for heading in ("", "per file", "per frame"):
        table.add_column(heading)
    pair = (evaluation.per_file, evaluation.per_frame)
    table.add_row("real / fake", *(f"{metrics.num_real} / {metrics.num_fake}" for metrics in pair))
    empty = Estimate(None)
    for name, title in TITLES.items():
        table.add_row(title, *(str(metrics.figures.get(name, empty)) for metrics in pair))
    console.print(table)
    for kind, row in evaluation.by_kind.items():
        console.print(f"{kind}: ROC-AUC {row['roc_auc']}, recall {row['recall']}", highlight=False, markup=False)
    for name, value in evaluation.found.items():
        console.print(f"{name}: {'-' if value is None else f'{value:.4f}'}", highlight=False)
    for item in evaluation.inconclusive:
        console.print(f"no verdict: {item['source']} ({item['label']}): {item['reason']}", highlight=False)
    for note in evaluation.notes:
        console.print(f"note: {note}", highlight=False)
