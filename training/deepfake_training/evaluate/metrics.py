"""How good scores are: ranking, decisions and calibration, each with a bootstrap interval.

Scores are probabilities of "fake", labels 1 for fake. A figure that needs both classes is None where one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_curve

from deepfake_preprocess.support.ranking import roc_auc

Float = NDArray[np.float64]
Int = NDArray[np.int64]

CALIBRATION_BINS = 15
"""As in Guo et al. (2017)."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap: a 95% interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95% bootstrap interval.

    Attributes:
        value: None where it cannot be computed.
        low: lower end; None without interval.
        high: upper end; None without interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")

    def to_dict(self) -> dict[str, float | None]:
        """Return plain JSON data."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class DetectionMetrics:
    """Figures over one set of scores.

    Attributes:
        num_real: scores of real items.
        num_fake: scores of fake items.
        threshold: what the decisions were made with.
        confusion: counts of true negatives, false positives, false negatives and true positives.
        figures: by name: ``roc_auc``, ``pr_auc``, ``eer``, ``accuracy``, ``precision``, ``recall``, ``f1``, ``ece``.
    """

    num_real: int
    num_fake: int
    threshold: float
    confusion: tuple[int, int, int, int]
    figures: dict[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON data."""
        names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
        return {
            "num_real": self.num_real,
            "num_fake": self.num_fake,
            "threshold": self.threshold,
            "confusion": dict(zip(names, self.confusion, strict=True)),
            **{name: estimate.to_dict() for name, estimate in self.figures.items()},
        }


def measure(
    labels: Sequence[int] | Int,
    scores: Sequence[float] | Float,
    threshold: float,
    *,
    units: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DetectionMetrics:
    """Compute all figures with their intervals.

    Args:
        labels: ``[N]``, 1 for fake; N may be 0.
        scores: ``[N]`` in [0, 1].
        threshold: fake at or above it.
        units: ``[N]``, what is drawn together in the bootstrap: the video of each frame, since frames of one
            video are not independent. None draws every score for itself.
        resamples: bootstrap samples; 0 gives no intervals.
        seed: of the bootstrap.
    """
    labels_array = np.asarray(labels, dtype=np.int64)
    scores_array = np.asarray(scores, dtype=np.float64)
    decided = scores_array >= threshold
    confusion = tuple(
        int((decided[labels_array == label] == decision).sum()) for label in (0, 1) for decision in (False, True)
    )
    values = {name: figure(labels_array, scores_array, threshold) for name, figure in FIGURES.items()}
    drawn: dict[str, list[float]] = {name: [] for name in FIGURES}
    for sample in _resample(labels_array, units, resamples, seed):
        for name, figure in FIGURES.items():
            value = figure(labels_array[sample], scores_array[sample], threshold)
            if value is not None:
                drawn[name].append(value)
    figures = {name: _estimate(values[name], drawn[name]) for name in FIGURES}
    fakes = int(labels_array.sum())
    return DetectionMetrics(len(labels_array) - fakes, fakes, threshold, confusion, figures)  # type: ignore[arg-type]


def equal_error_rate(labels: Int, scores: Float) -> float | None:
    """Return the error rate at the threshold where as many fakes are missed as reals are accused."""
    if not _has_both(labels):
        return None
    false_positive, true_positive, _ = roc_curve(labels, scores)
    false_negative = 1 - true_positive
    # The curve is piecewise linear: the crossing lies on the segment where the difference changes its sign.
    difference = false_positive - false_negative
    after = int(np.argmax(difference >= 0))
    if after == 0 or difference[after] == 0:
        return float(false_positive[after])
    share = -difference[after - 1] / (difference[after] - difference[after - 1])
    return float(false_positive[after - 1] + share * (false_positive[after] - false_positive[after - 1]))


def calibration_error(labels: Int, scores: Float) -> float | None:
    """Return the expected calibration error over `CALIBRATION_BINS` bins of equal width."""
    if not len(labels):
        return None
    gaps = np.bincount(calibration_bins(scores), weights=labels - scores)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(scores: Float) -> Int:
    """Return the bin of each score, from 0; a score of 1 is in the last one."""
    return np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _has_both(labels: Int) -> bool:
    return 0 < int(labels.sum()) < len(labels)


def _roc_auc(labels: Int, scores: Float, _: float) -> float | None:
    return roc_auc(scores, labels) if _has_both(labels) else None


def _pr_auc(labels: Int, scores: Float, _: float) -> float | None:
    return float(average_precision_score(labels, scores)) if _has_both(labels) else None


def _accuracy(labels: Int, scores: Float, threshold: float) -> float | None:
    return float(((scores >= threshold) == labels).mean()) if len(labels) else None


def _precision(labels: Int, scores: Float, threshold: float) -> float | None:
    decided = scores >= threshold
    return float(labels[decided].mean()) if decided.any() else None


def _recall(labels: Int, scores: Float, threshold: float) -> float | None:
    return float((scores[labels == 1] >= threshold).mean()) if labels.any() else None


def _f1(labels: Int, scores: Float, threshold: float) -> float | None:
    if not labels.any():
        return None
    decided = scores >= threshold
    return float(2 * (decided & (labels == 1)).sum() / (decided.sum() + labels.sum()))


FIGURES: dict[str, Callable[[Int, Float, float], float | None]] = {
    "roc_auc": _roc_auc,
    "pr_auc": _pr_auc,
    "eer": lambda labels, scores, _: equal_error_rate(labels, scores),
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "ece": lambda labels, scores, _: calibration_error(labels, scores),
}


def _resample(labels: Int, units: Sequence[str] | None, resamples: int, seed: int) -> list[Int]:
    """Draw units with replacement, as many of each class as there are, so that no sample lacks a class."""
    rng = np.random.default_rng(seed)
    names = np.array(units if units is not None else [str(place) for place in range(len(labels))])
    members: dict[int, list[Int]] = {0: [], 1: []}
    for name in np.unique(names):
        places = np.flatnonzero(names == name)
        members[int(labels[places[0]])].append(places)
    samples = []
    for _ in range(resamples if len(labels) else 0):
        drawn = [
            group[choice] for group in members.values() if group for choice in rng.integers(0, len(group), len(group))
        ]
        samples.append(np.concatenate(drawn))
    return samples


def _estimate(value: float | None, drawn: list[float]) -> Estimate:
    if value is None or not drawn:
        return Estimate(value)
    low, high = np.percentile(drawn, INTERVAL)
    return Estimate(value, float(low), float(high))
