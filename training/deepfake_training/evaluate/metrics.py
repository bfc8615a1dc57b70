"""How good scores are: ranking, decisions and calibration, each with an interval.

Scores are probabilities of "fake", labels 1 for fake. A figure that needs both classes is None where one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import average_precision_score, roc_curve

from deepfake_preprocess.support.json_data import JsonData
from deepfake_preprocess.support.ranking import roc_auc

Float = NDArray[np.float64]
Int = NDArray[np.int64]

CALIBRATION_BINS = 15
"""As in Guo et al. (2017)."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap: a 95% interval."""


@dataclass(frozen=True, slots=True)
class Estimate(JsonData):
    """A figure and its 95% interval, which holds it.

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


@dataclass(frozen=True, slots=True)
class Confusion(JsonData):
    """How many decisions were right and wrong, where a fake is the positive class."""

    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int


@dataclass(frozen=True, slots=True)
class DetectionMetrics(JsonData):
    """Figures over one set of scores.

    Attributes:
        num_real: scores of real items.
        num_fake: scores of fake items.
        threshold: what the decisions were made with.
        confusion: the decisions.
        roc_auc: area under the ROC curve.
        pr_auc: area under the precision-recall curve (average precision).
        eer: error rate at the threshold where as many fakes are missed as reals are accused.
        accuracy: share of right decisions.
        precision: share of fakes among what is called fake.
        recall: share of the fakes that is called fake.
        f1: harmonic mean of precision and recall.
        false_positive_rate: share of the reals that is called fake; its interval is exact, see `exact_interval`, and
            of the bootstrap only where several scores are of one video.
        recall_at_5: largest share of the fakes that a threshold finds which accuses 5% of the reals at most.
        recall_at_10: likewise for 10%.
        ece: expected calibration error, see `calibration_error`.
    """

    num_real: int
    num_fake: int
    threshold: float
    confusion: Confusion
    roc_auc: Estimate
    pr_auc: Estimate
    eer: Estimate
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    false_positive_rate: Estimate
    recall_at_5: Estimate
    recall_at_10: Estimate
    ece: Estimate


FIGURES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "eer": "EER",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_positive_rate": "reals called fake",
    "recall_at_5": "fakes found at 5% false alarms",
    "recall_at_10": "fakes found at 10% false alarms",
    "ece": "ECE",
}
"""The figures of `DetectionMetrics`, as people call them."""


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
    labels = np.asarray(labels, dtype=np.int64)
    scores = np.asarray(scores, dtype=np.float64)
    values = _figures(labels, scores, threshold)
    samples = [
        _figures(labels[drawn], scores[drawn], threshold) for drawn in _resample(labels, units, resamples, seed)
    ]
    estimates = {name: _estimate(name, values, samples) for name in FIGURES}
    fakes = int(labels.sum())
    confusion = _confusion(labels, scores, threshold)
    if units is None and resamples and len(labels) > fakes:
        low, high = exact_interval(confusion.false_positives, len(labels) - fakes)
        estimates["false_positive_rate"] = Estimate(values["false_positive_rate"], low, high)
    return DetectionMetrics(len(labels) - fakes, fakes, threshold, confusion, **estimates)


def equal_error_rate(labels: Int, scores: Float) -> float:
    """Return the error rate where as many fakes are missed as reals are accused; both classes must occur."""
    false_positive, true_positive, _ = roc_curve(labels, scores)
    # The curve is piecewise linear, and the difference of the two rates rises all along it.
    return float(np.interp(0.0, false_positive - (1 - true_positive), false_positive))


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of a share that was seen `count` times of `total` (Clopper and Pearson, 1934).

    Unlike a bootstrap's it is right for few files, too: no false alarm among 28 reals says "12% at most", not "none".
    """
    low = float(beta.ppf(INTERVAL[0] / 100, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(INTERVAL[1] / 100, count + 1, total - count)) if count < total else 1.0
    return low, high


def share_of(flags: NDArray[np.bool_]) -> Estimate:
    """Return the share of true values with its exact 95% interval; without any value where there are none."""
    if not len(flags):
        return Estimate(None)
    count = int(flags.sum())
    return Estimate(count / len(flags), *exact_interval(count, len(flags)))


def recall_at(labels: Int, scores: Float, false_positive_rate: float) -> float:
    """Return the largest share of the fakes that a threshold finds which accuses at most this share of the reals.

    Args:
        labels: ``[N]``, 1 for fake; both classes must occur.
        scores: ``[N]``.
        false_positive_rate: in [0, 1].
    """
    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(true_positive[false_positive <= false_positive_rate + 1e-12].max())


def calibration_error(labels: Int, scores: Float) -> float:
    """Return the expected calibration error over `CALIBRATION_BINS` bins of equal width; N must not be 0."""
    gaps = np.bincount(calibration_bins(scores), weights=labels - scores)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(scores: Float) -> Int:
    """Return the bin of each score, from 0; a score of 1 is in the last one."""
    return np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _confusion(labels: Int, scores: Float, threshold: float) -> Confusion:
    decided = scores >= threshold
    return Confusion(*(int((decided[labels == label] == said).sum()) for label in (0, 1) for said in (False, True)))


def _figures(labels: Int, scores: Float, threshold: float) -> dict[str, float]:
    """Return by name what can be computed."""
    counts = _confusion(labels, scores, threshold)
    hits, wrong = counts.true_positives, counts.false_positives + counts.false_negatives
    fakes = hits + counts.false_negatives
    found: dict[str, float] = {}
    if len(labels):
        found |= {"accuracy": (len(labels) - wrong) / len(labels), "ece": calibration_error(labels, scores)}
    if hits + counts.false_positives:
        found["precision"] = hits / (hits + counts.false_positives)
    if fakes < len(labels):
        found["false_positive_rate"] = counts.false_positives / (len(labels) - fakes)
    if fakes:
        found |= {"recall": hits / fakes, "f1": 2 * hits / (2 * hits + wrong)}
    if 0 < fakes < len(labels):
        found |= {
            "roc_auc": roc_auc(scores, labels),
            "pr_auc": float(average_precision_score(labels, scores)),
            "eer": equal_error_rate(labels, scores),
            "recall_at_5": recall_at(labels, scores, 0.05),
            "recall_at_10": recall_at(labels, scores, 0.1),
        }
    return found


def _resample(labels: Int, units: Sequence[str] | None, resamples: int, seed: int) -> Iterator[Int]:
    """Draw units with replacement, as many of each class as there are: no sample lacks a class."""
    rng = np.random.default_rng(seed)
    names = np.array(units if units is not None else [str(place) for place in range(len(labels))])
    members: dict[int, list[Int]] = {0: [], 1: []}
    for name in np.unique(names):
        places = np.flatnonzero(names == name)
        members[int(labels[places[0]])].append(places)
    for _ in range(resamples if len(labels) else 0):
        yield np.concatenate(
            [
                group[choice]
                for group in members.values()
                if group
                for choice in rng.integers(0, len(group), len(group))
            ]
        )


def _estimate(name: str, values: dict[str, float], samples: Sequence[dict[str, float]]) -> Estimate:
    drawn = [sample[name] for sample in samples if name in sample]
    if name not in values or not drawn:
        return Estimate(values.get(name))
    low, median, high = np.percentile(drawn, (INTERVAL[0], 50, INTERVAL[1]))
    # Scores that are drawn repeatedly make bins emptier and calibration look worse than it is: the samples of an ECE
    # can all lie above it. What they lie off by is taken off; every figure here is a share, in [0, 1].
    bias = median - values[name]
    low, high = np.clip((low - bias, high - bias), 0, 1)
    return Estimate(values[name], float(low), float(high))
