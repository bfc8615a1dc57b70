"""What is usual: the looks of the calibration's clips, histograms of their figures, and whether later ones drift.

How far two histograms lie apart is their population stability index (N. Siddiqi, "Credit Risk Scorecards", 2006:
above 0.25 the population has changed). Of few clips it is large by chance. Without a change it is distributed like
chi-square with one degree less than bins, times 1/n + 1/m (B. Yurdakul and J. Naranjo, "Statistical properties of
the population stability index", Journal of Risk Model Validation 2020), so a figure drifts where it is above both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf

from deepfake_client.analysis.judging.abstaining import unlikeness
from deepfake_client.result.verdict import Track, Verdict
from deepfake_preprocess.contract.spec import Calibration, Histogram, Looks
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.evaluate.metrics import Float
from deepfake_training.evaluate.operating_point import num_allowed

UNLIKE_RATE = 0.02
"""Share of clips like those of the calibration that may be called unlike them; of fewer than 49, one of n + 1."""
MIN_CLIPS = 15
"""Below that many clips nothing is said of looks: there are twice as many as looks then."""
FARTHEST = 2.0
"""Limit at most, in upper quartiles of the distances: one strange clip must not make everything usual."""
MIN_DEVIATION = 0.02
"""Least standard deviation of a look; clips of one camera may have next to none."""
NUM_BINS = 5
"""Bins of a histogram, each with a fifth of the calibration's clips, as far as equal values allow."""
CHANGED = 0.25
"""Population stability index that means a change, see above."""
CERTAINTY = 0.99
"""Probability that the index of a figure which has not changed is below its limit."""
MIN_LATER = 20
"""Later clips below which nothing is said."""

FIGURES = {
    "score": "fake probability",
    "unlikeness": "unlikeness of the face",
    "size": "size of the face in pixels",
    "weight": "quality of the face",
}
"""What is compared, as people call it."""


def deciding_face(verdict: Verdict) -> Track | None:
    """Return the track that decided, or would have: the most suspicious one that counts and is not background."""
    counted = [track for track in verdict.tracks if track.counted and not track.background]
    return verdict.deciding or max(counted, key=lambda track: track.fake_probability, default=None)


def figures_of(verdict: Verdict) -> dict[str, float]:
    """Return the `FIGURES` of one clip that there are; none without a face that counts."""
    track = deciding_face(verdict)
    if track is None:
        return {}
    faces = [face for frame in verdict.frames for face in frame.faces if face.track == track.track]
    sides = [max(right - left, bottom - top) for left, top, right, bottom in (face.box_xyxy for face in faces)]
    score = track.fake_probability if verdict.fake_probability is None else verdict.fake_probability
    figures = {
        "score": score,
        "size": float(np.median(sides)),
        "weight": float(np.mean([face.weight for face in faces])),
    }
    return figures if track.unlikeness is None else {**figures, "unlikeness": track.unlikeness}


def learn_looks(looks: NDArray[np.float64]) -> tuple[Looks, Float] | None:
    """Return what the looks of clips, ``[N, K]``, have in common, and how unlike the others each is, ``[N]``.

    The limit is such that at most `UNLIKE_RATE` of further clips of the same kind lie beyond it, on average (or one
    of N + 1, where there are fewer): a conformal quantile, see `operating_point`, of the distances that each clip has
    from all others; but no more than `FARTHEST` allows. The covariance is shrunk (O. Ledoit and M. Wolf, "A
    well-conditioned estimator for large-dimensional covariance matrices", 2004), as there are few clips. None for
    fewer than `MIN_CLIPS`.
    """
    if len(looks) < MIN_CLIPS:
        return None
    left_out = [
        unlikeness(looks[place], _fitted(np.delete(looks, place, axis=0), limit=1.0)) for place in range(len(looks))
    ]
    distances = np.array(left_out)
    allowed = max(0, num_allowed(len(looks), UNLIKE_RATE))
    conformal = float(np.sort(distances)[len(looks) - allowed - 1])
    limit = max(min(conformal, FARTHEST * float(np.quantile(distances, 0.75))), 1e-9)
    return _fitted(looks, limit=limit), distances / limit


def _fitted(looks: NDArray[np.float64], *, limit: float) -> Looks:
    mean, deviation = looks.mean(axis=0), np.maximum(looks.std(axis=0, ddof=1), MIN_DEVIATION)
    model = LedoitWolf(assume_centered=True).fit((looks - mean) / deviation)
    precision = tuple(tuple(round(value, 4) for value in row) for row in model.precision_.tolist())
    return Looks(tuple(mean.round(6).tolist()), tuple(deviation.round(6).tolist()), precision, limit)


def histogram_of(name: str, values: Sequence[float]) -> Histogram:
    """Return the histogram of a figure of the calibration's clips."""
    edges = np.unique(np.quantile(values, np.arange(1, NUM_BINS) / NUM_BINS))
    counts = _counts(values, edges)
    return Histogram(name, tuple(edges.tolist()), tuple(counts.tolist()))


def _counts(values: Sequence[float], edges: Float) -> NDArray[np.int64]:
    places = np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right")
    return np.bincount(places, minlength=len(edges) + 1)


@dataclass(frozen=True, slots=True)
class FigureDrift(JsonData):
    """How one figure has moved.

    Attributes:
        figure: a key of `FIGURES`.
        index: population stability index.
        limit: what it stays below without a change.
        drifted: whether it does not.
        edges: where bins end; see `Histogram`.
        shares: of the calibration's clips, by bin.
        shares_now: of the later clips, by bin.
    """

    figure: str
    index: float
    limit: float
    drifted: bool
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    shares_now: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Drift(JsonData):
    """Whether later clips are still like those of the calibration.

    Attributes:
        model: name of the model.
        version: its version.
        num_clips: later clips with a face that counts.
        drifted: whether any figure has moved.
        figures: all that can be compared.
        notes: what was left out, as sentences.
    """

    model: str
    version: int
    num_clips: int
    drifted: bool
    figures: tuple[FigureDrift, ...]
    notes: tuple[str, ...] = ()


def drift_of(
    verdicts: Sequence[Verdict],
    calibration: Calibration | None,
    *,
    model: str,
    version: int,
    notes: Sequence[str] = (),
) -> Drift:
    """Compare clips with those of a model's calibration.

    Raises:
        OptionError: the model was never calibrated, or fewer than `MIN_LATER` clips show a face.
    """
    if calibration is None or not calibration.histograms:
        raise OptionError(
            f"{model!r} version {version} has no calibration to compare with; make one of your own clips with "
            "`deepfake calibrate`"
        )
    clips = [figures for figures in map(figures_of, verdicts) if figures]
    if len(clips) < MIN_LATER:
        raise OptionError(
            f"{len(clips)} of {len(verdicts)} clips show a face that counts, and {MIN_LATER} are needed to tell a "
            "drift from chance; name the results of a longer time"
        )
    figures = tuple(
        _drift(histogram, [clip[histogram.name] for clip in clips])
        for histogram in calibration.histograms
        if all(histogram.name in clip for clip in clips)
    )
    return Drift(model, version, len(clips), any(item.drifted for item in figures), figures, tuple(notes))


def _drift(histogram: Histogram, values: Sequence[float]) -> FigureDrift:
    counts = np.array(histogram.counts, dtype=np.float64)
    now = _counts(values, np.array(histogram.edges)).astype(np.float64)
    # Half a clip for each bin: of an empty one the logarithm has no value.
    before, after = ((found + 0.5) / (found + 0.5).sum() for found in (counts, now))
    index = float(((after - before) * np.log(after / before)).sum())
    by_chance = float(chi2.ppf(CERTAINTY, max(1, len(counts) - 1)) * (1 / counts.sum() + 1 / now.sum()))
    limit = max(CHANGED, by_chance)
    return FigureDrift(
        histogram.name,
        index,
        limit,
        index > limit,
        histogram.edges,
        tuple((counts / counts.sum()).tolist()),
        tuple((now / now.sum()).tolist()),
    )
