"""Writes an evaluation as JSON, as Markdown and as plots. Computes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from deepfake_client.result.times import day_and_time
from deepfake_preprocess.support.files import write_whole, writing
from deepfake_training.evaluate.evaluation import Evaluation, LabeledScores, RobustnessPoint
from deepfake_training.evaluate.metrics import CALIBRATION_BINS, FIGURES, Estimate, calibration_bins
from deepfake_training.evaluate.robustness import DEGRADATIONS


def make_directory(directory: Path) -> None:
    """Make the directory of a report, unless it is there; `OptionError` where it cannot be written."""
    with writing(directory, "name another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass


def write_report(evaluation: Evaluation, directory: str | Path) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.md`` and the plots.

    Returns:
        Paths of what was written.

    Raises:
        OptionError: the directory cannot be written.
    """
    directory = Path(directory)
    data, text = directory / "evaluation.json", directory / "evaluation.md"
    plots = []
    with writing(directory, "name another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(data, json.dumps(evaluation.to_dict(), indent=2) + "\n")
        for name, figure in _plots(evaluation):
            plots.append(directory / f"{name}.png")
            figure.savefig(plots[-1], dpi=110)
        pictures = "".join(f"\n![{path.stem}]({path.name})" for path in plots)
        version, made_at = metadata.version("deepfake-serving"), day_and_time(datetime.now(UTC))
        made = f"Made by deepfake-serving {version} on {made_at}."
        write_whole(text, f"{as_markdown(evaluation)}{pictures}\n\n{made}\n")
    return [data, text, *plots]


def as_markdown(evaluation: Evaluation) -> str:
    """Return the evaluation as a text for people."""
    about = {**evaluation.model, "through": evaluation.through, **evaluation.settings}
    sections = (_figures, _left_open, _sources, _without_verdict, _robustness)
    lines = [
        f"# Evaluation of {evaluation.model['name']}",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        *(line for section in sections for line in section(evaluation)),
    ]
    if evaluation.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in evaluation.notes)]
    return "\n".join(lines) + "\n"


def _figures(evaluation: Evaluation) -> Iterator[str]:
    per_file, per_frame = evaluation.per_file, evaluation.per_frame
    counts = per_file.confusion
    yield ""
    yield (
        "Figures with 95% intervals of the bootstrap (files are drawn, with all their frames); that per file of "
        "the reals called fake is exact."
    )
    yield from _table(
        ("", "per file", "per frame"),
        ("real / fake", *(f"{item.num_real} / {item.num_fake}" for item in (per_file, per_frame))),
        *((title, getattr(per_file, name), getattr(per_frame, name)) for name, title in FIGURES.items()),
    )
    yield from ("", f"Decisions at threshold {per_file.threshold:.4f}.")
    yield from _table(
        ("per file", "called real", "called fake"),
        ("real", counts.true_negatives, counts.false_positives),
        ("fake", counts.false_negatives, counts.true_positives),
    )
    yield ""
    yield from (f"- {name}: {'-' if value is None else f'{value:.4f}'}" for name, value in evaluation.found.items())


def _left_open(evaluation: Evaluation) -> Iterator[str]:
    if (found := evaluation.abstaining) is None:
        return
    yield from ("", "## With verdicts left open", "", "The figures above decide always; users get these.")
    yield from _table(
        ("per file", "share"),
        ("left open", found.undecided),
        ("real called fake", found.real_called_fake),
        ("fake found", found.fake_found),
        ("fake called real", found.fake_called_real),
    )
    yield ""
    yield f"Left open: {found.near_threshold} near_threshold, {found.out_of_distribution} out_of_distribution."


def _sources(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.by_source:
        return
    names = ("roc_auc", "false_positive_rate", "recall", "recall_at_5", "recall_at_10")
    yield from ("", "## Sources, per file", "", "Fakes of a source without reals are measured against all reals.")
    yield from _table(
        ("source", "real / fake", *(FIGURES[name] for name in names)),
        *(
            (source, f"{row.num_real} / {row.num_fake}", *(getattr(row, name) for name in names))
            for source, row in evaluation.by_source.items()
        ),
    )


def _without_verdict(evaluation: Evaluation) -> Iterator[str]:
    if not (without := evaluation.inconclusive):
        return
    yield from ("", f"## Without a verdict ({len(without)})", "")
    yield from (f"- {item.source} ({item.label}): {item.reason}" for item in without)


def _robustness(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.robustness:
        return
    yield from ("", "## Robustness")
    yield from _table(
        ("degradation", "level", "ROC-AUC per file", "accuracy", "without a verdict"),
        *(
            (kind, f"{point.level:g}", Estimate(point.roc_auc), Estimate(point.accuracy), point.inconclusive)
            for kind, points in evaluation.robustness.items()
            for point in points
        ),
    )


def _table(heads: Sequence[str], *rows: Sequence[object]) -> Iterator[str]:
    yield ""
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(map(str, row))} |"


def _plots(evaluation: Evaluation) -> Iterator[tuple[str, Figure]]:
    """Draw what there are scores for; figures are made without a window system."""
    scores = evaluation.file_scores
    if 0 < scores.labels.sum() < len(scores.labels):
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        _draw_roc(figure.subplots(), evaluation)
        yield "roc", figure
    if len(evaluation.frame_scores.labels):
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        _draw_reliability(figure.subplots(), evaluation.frame_scores)
        yield "reliability", figure
    if evaluation.robustness:
        figure = Figure(figsize=(max(4.5, 3.2 * len(evaluation.robustness)), 3.4), layout="constrained")
        grid = figure.subplots(1, len(evaluation.robustness), squeeze=False, sharey=True)
        for axes, (kind, points) in zip(grid[0], evaluation.robustness.items(), strict=True):
            _draw_robustness(axes, kind, points, evaluation.per_file.roc_auc.value)
        grid[0][0].set_ylabel("ROC-AUC per file")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
        yield "robustness", figure


def _draw_roc(axes: Axes, evaluation: Evaluation) -> None:
    scores, figures = evaluation.file_scores, evaluation.per_file
    counts = figures.confusion
    false_positive, true_positive, _ = roc_curve(scores.labels, scores.probabilities)
    axes.plot(false_positive, true_positive, drawstyle="steps-post", label=f"AUC {figures.roc_auc}")
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":", label="chance")
    axes.plot(
        counts.false_positives / (counts.false_positives + counts.true_negatives),
        counts.true_positives / (counts.true_positives + counts.false_negatives),
        "o",
        label=f"threshold {figures.threshold:.4g}",
    )
    axes.set(
        xlabel="share of reals called fake",
        ylabel="share of fakes called fake",
        title=f"ROC, {figures.num_real} real and {figures.num_fake} fake files",
    )
    axes.legend(loc="lower right", fontsize=8)


def _draw_reliability(axes: Axes, scores: LabeledScores) -> None:
    bins = calibration_bins(scores.probabilities)
    filled, counts = np.unique(bins, return_counts=True)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle=":", label="calibrated")
    bars = axes.bar(
        (filled + 0.5) / CALIBRATION_BINS,
        [scores.labels[bins == number].mean() for number in filled],
        width=0.9 / CALIBRATION_BINS,
        label="measured, with the number of frames",
    )
    axes.bar_label(bars, [str(count) for count in counts], fontsize=7)
    axes.set(xlabel="fake probability", ylabel="share of fakes", title="Reliability, per frame", xlim=(0, 1))
    axes.set_ylim(0, 1.08)
    axes.legend(loc="upper left", fontsize=8)


def _draw_robustness(axes: Axes, kind: str, points: Sequence[RobustnessPoint], baseline: float | None) -> None:
    values = [float("nan") if point.roc_auc is None else point.roc_auc for point in points]
    axes.plot(range(len(points)), values, marker="o", label="degraded")
    if baseline is not None:
        axes.axhline(baseline, color="gray", linestyle="--", linewidth=0.8, label="as they are")
    axes.axhline(0.5, color="gray", linestyle=":", linewidth=0.8, label="chance")
    axes.set_xticks(range(len(points)), [f"{point.level:g}" for point in points])
    axes.set(title=kind, xlabel=DEGRADATIONS[kind].title, ylim=(0, 1.02))
