"""Writes an evaluation as JSON, as Markdown and as plots. Computes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from deepfake_preprocess.errors import OptionError
from deepfake_training.evaluate.calibration import Float, Int
from deepfake_training.evaluate.metrics import CALIBRATION_BINS, DetectionMetrics, Estimate, calibration_bins

TITLES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "eer": "EER",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ece": "ECE",
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores that were measured, kept for the plots."""

    labels: Int
    probabilities: Float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        model: name of the model and hash of its checkpoint.
        through: ``server`` or ``checkpoint``.
        settings: how it was done, as plain data.
        per_file: figures per video or image.
        per_frame: figures per frame.
        found: proposed temperature and thresholds, by name.
        inconclusive: files without a verdict, with label and reason.
        files: every file with label, score and number of scored frames.
        robustness: by kind of degradation, level, ROC-AUC per file, accuracy and files without a verdict.
        by_kind: for each kind of fake, where there are several: number of files, ROC-AUC against all reals, recall.
        notes: what limits these figures, as sentences.
        file_scores: for the plots.
        frame_scores: for the plots.
    """

    model: dict[str, str]
    through: str
    settings: dict[str, Any]
    per_file: DetectionMetrics
    per_frame: DetectionMetrics
    found: dict[str, float | None]
    inconclusive: tuple[dict[str, str], ...]
    files: tuple[dict[str, Any], ...]
    robustness: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    by_kind: dict[str, dict[str, int | Estimate]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file_scores: Scores | None = None
    frame_scores: Scores | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.model,
            "through": self.through,
            "settings": self.settings,
            "per_file": self.per_file.to_dict(),
            "per_frame": self.per_frame.to_dict(),
            "found": self.found,
            "inconclusive": list(self.inconclusive),
            "files": list(self.files),
            "robustness": self.robustness,
            "by_kind": {
                kind: {name: item.to_dict() if isinstance(item, Estimate) else item for name, item in row.items()}
                for kind, row in self.by_kind.items()
            },
            "notes": list(self.notes),
        }


def write_report(evaluation: Evaluation, directory: str | Path) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.md`` and the plots.

    Returns:
        Paths of what was written.

    Raises:
        OptionError: the directory cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = [directory / "evaluation.json", directory / "evaluation.md"]
        written[0].write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n", encoding="utf-8")
        plots = _plots(evaluation, directory)
        written[1].write_text(_markdown(evaluation, plots), encoding="utf-8")
    except OSError as exc:
        raise OptionError(f"{directory} cannot be written ({exc.strerror}); name another directory") from exc
    return written + plots


def _markdown(evaluation: Evaluation, plots: list[Path]) -> str:
    lines = [f"# Evaluation of {evaluation.model['name']}", ""]
    lines += [f"- {name}: {value}" for name, value in {**evaluation.model, "through": evaluation.through}.items()]
    lines += [f"- {name}: {value}" for name, value in evaluation.settings.items()]
    lines += ["", "Figures with 95% bootstrap intervals (files are drawn, with all their frames).", ""]
    lines += ["| | per file | per frame |", "|---|---|---|"]
    per_file, per_frame = evaluation.per_file, evaluation.per_frame
    lines.append(
        f"| real / fake | {per_file.num_real} / {per_file.num_fake} | {per_frame.num_real} / {per_frame.num_fake} |"
    )
    empty = Estimate(None)
    for name, title in TITLES.items():
        lines.append(f"| {title} | {per_file.figures.get(name, empty)} | {per_frame.figures.get(name, empty)} |")
    lines += ["", f"Decisions at threshold {per_file.threshold:.4f}.", ""]
    lines += ["| per file | called real | called fake |", "|---|---|---|"]
    true_negative, false_positive, false_negative, true_positive = per_file.confusion
    lines += [f"| real | {true_negative} | {false_positive} |", f"| fake | {false_negative} | {true_positive} |", ""]
    lines += [f"- {name}: {'-' if value is None else f'{value:.4f}'}" for name, value in evaluation.found.items()]
    if evaluation.by_kind:
        lines += ["", "## Kinds of fakes, each against all reals", "", "| kind | files | ROC-AUC | recall |"]
        lines.append("|---|---|---|---|")
        lines += [
            f"| {kind} | {row['files']} | {row['roc_auc']} | {row['recall']} |"
            for kind, row in evaluation.by_kind.items()
        ]
    if evaluation.inconclusive:
        lines += ["", f"## Without a verdict ({len(evaluation.inconclusive)})", ""]
        lines += [f"- {item['source']} ({item['label']}): {item['reason']}" for item in evaluation.inconclusive]
    if evaluation.robustness:
        lines += [
            "",
            "## Robustness",
            "",
            "| degradation | level | ROC-AUC per file | accuracy | without a verdict |",
        ]
        lines.append("|---|---|---|---|---|")
        lines += [
            f"| {kind} | {row['level']:g} | {_shown(row['roc_auc'])} | {_shown(row['accuracy'])} "
            f"| {row['inconclusive']} |"
            for kind, rows in evaluation.robustness.items()
            for row in rows
        ]
    if evaluation.notes:
        lines += ["", "## Notes", ""] + [f"- {note}" for note in evaluation.notes]
    lines += ["", *(f"![{path.stem}]({path.name})" for path in plots)]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plots(evaluation: Evaluation, directory: Path) -> list[Path]:
    """Draw what there are scores for; figures are made without a window system."""
    from matplotlib.figure import Figure

    written = []
    scores = evaluation.file_scores
    if scores is not None and 0 < scores.labels.sum() < len(scores.labels):
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        axes = figure.subplots()
        false_positive, true_positive, _ = roc_curve(scores.labels, scores.probabilities)
        axes.plot(false_positive, true_positive, drawstyle="steps-post")
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title="ROC, per file")
        written.append(directory / "roc.png")
        figure.savefig(written[-1], dpi=110)
    scores = evaluation.frame_scores
    if scores is not None and len(scores.labels):
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        axes = figure.subplots()
        bins = calibration_bins(scores.probabilities)
        filled = np.unique(bins)
        axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
        axes.bar(
            (filled + 0.5) / CALIBRATION_BINS,
            [scores.labels[bins == number].mean() for number in filled],
            width=0.9 / CALIBRATION_BINS,
        )
        axes.set(xlabel="fake probability", ylabel="share of fakes", title="Reliability, per frame", xlim=(0, 1))
        written.append(directory / "reliability.png")
        figure.savefig(written[-1], dpi=110)
    if evaluation.robustness:
        figure = Figure(figsize=(3.2 * len(evaluation.robustness), 3), layout="constrained")
        grid = figure.subplots(1, len(evaluation.robustness), squeeze=False, sharey=True)
        for axes, (kind, rows) in zip(grid[0], evaluation.robustness.items(), strict=True):
            values = [float("nan") if row["roc_auc"] is None else row["roc_auc"] for row in rows]
            axes.plot(range(len(rows)), values, marker="o")
            axes.set_xticks(range(len(rows)), [f"{row['level']:g}" for row in rows])
            axes.set(title=kind, ylim=(0, 1.02))
        grid[0][0].set_ylabel("ROC-AUC per file")
        written.append(directory / "robustness.png")
        figure.savefig(written[-1], dpi=110)
    return written
