"""From the scores of single faces to the score of a track.

A video is as fake as its most suspicious face: tracks are scored one by one, so one manipulated face among several
real ones is not averaged away. Which of them decides is for `analysis.judging.deciding`.

Within a track the default is the mean of the frames' probabilities: it is the figure that papers and benchmarks of
the field report for a video, moves little with any one frame, and keeps the meaning of a calibrated probability.

Every rule takes weights (see `analysis.judging.quality`). A face of weight 0 takes no part; weights that are all 1
give the plain rule. But for `confident`, which counts frames, only the weights' proportions matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.judging.consistency import consistency, interval
from deepfake_client.result.verdict import FrameResult, Label, Track

MIN_TRACK_FRAMES = 4
"""Frames on which a face must be scored before its track counts in a video: fewer are often false detections."""
MIN_TRACK_SHARE = 0.1
"""Share of the longest track's frames that another track needs to count, for the same reason."""
_EPSILON = 1e-6


class Strategy(Protocol):
    """A rule that makes one score of many; whatever their order."""

    __name__: str

    def __call__(self, probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None, /) -> float:
        """Return one score in [0, 1] of float64 ``[N]`` in [0, 1], N >= 1; `weights` are at least 0 and not all 0."""
        ...


def mean(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Arithmetic mean."""
    return _share_mean(probabilities, weights, 0.0, 1.0)


def median(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Median; ignores up to half of outliers."""
    ordered, _, end = _ordered(probabilities, weights)
    # Sums of weights carry rounding errors; half of them must still be met exactly where it is met.
    below, above = end[-1] / 2 * (1 - 1e-12), end[-1] / 2 * (1 + 1e-12)
    return float(ordered[np.searchsorted(end, below)] + ordered[np.searchsorted(end, above, side="right")]) / 2


def trimmed(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Mean without the lowest and the highest tenth; a frame on the border takes part with what is inside."""
    return _share_mean(probabilities, weights, 0.1, 0.9)


def top_k(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Mean of the highest quarter, as with `trimmed`: for manipulations that show only now and then."""
    return _share_mean(probabilities, weights, 0.75, 1.0)


def vote(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Share of frames at or above 0.5."""
    return mean((probabilities >= 0.5).astype(np.float64), weights)


def confident(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """The rule of the winner of the DFDC (S. Seferbekov, 2020, `kernel_utils.confident_strategy`).

    Mean of the frames above 0.8 when they are more than 2/5 of all and more than 11; mean of those below 0.2 when
    they are more than 9/10 of all; else the mean. With weights, a frame counts as its weight's part of a frame.
    """
    weights = np.ones(len(probabilities)) if weights is None else weights
    high, low = probabilities > 0.8, probabilities < 0.2
    num_frames, num_high, num_low = float(weights.sum()), float(weights[high].sum()), float(weights[low].sum())
    if num_high > num_frames // 2.5 and num_high > 11:
        return mean(probabilities[high], weights[high])
    if num_low > 0.9 * num_frames:
        return mean(probabilities[low], weights[low])
    return mean(probabilities, weights)


def log_odds(probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """Sigmoid of the mean logit: lets a few very sure frames weigh more than the mean does."""
    clipped = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    logit = np.average(np.log(clipped / (1 - clipped)), weights=weights)
    return float(1 / (1 + np.exp(-logit)))


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {rule.__name__: rule for rule in (mean, median, trimmed, top_k, vote, confident, log_odds)}
)
"""The rules by name: `deepfake_client.options.AGGREGATIONS`."""


def num_frames_needed(
    num_frames: int, longest: float, *, complete: bool = True, at_least: int = MIN_TRACK_FRAMES
) -> int:
    """Return on how many of `num_frames` a face must be scored for its track to count, at least 1.

    `at_least`, or all frames where there are fewer and the input has no more (`complete`), and at least
    `MIN_TRACK_SHARE` of the `longest` track's.
    """
    least = min(at_least, num_frames) if complete else at_least
    return max(least, int(np.ceil(MIN_TRACK_SHARE * longest - 1e-9)))


def scores_by_track(frames: Sequence[FrameResult]) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return scores and weights of every face that is not left out, float64 ``[N]`` in order of time, by track."""
    points: dict[int, list[tuple[float, float]]] = {}
    for frame in frames:
        for face in frame.faces:
            if face.fake_probability is not None and face.weight > 0:
                points.setdefault(face.track, []).append((face.fake_probability, face.weight))
    columns = {track: np.array(rows, dtype=np.float64) for track, rows in points.items()}
    return {track: (rows[:, 0], rows[:, 1]) for track, rows in columns.items()}


def score_tracks(
    frames: tuple[FrameResult, ...],
    *,
    strategy: Strategy,
    threshold: float,
    complete: bool = True,
    at_least: int = MIN_TRACK_FRAMES,
) -> tuple[Track, ...]:
    """Score every track of `frames` that has at least one scored face, in order of id.

    Faces that are left out (weight 0) take no part, neither in the score nor in whether the track counts. A track
    that has no others is scored as if all had weight 1, so there is something to look at, and never counts.
    """
    seen: dict[int, list[tuple[float, float, float]]] = {}
    for frame in frames:
        for face in frame.faces:
            if face.fake_probability is not None:
                seen.setdefault(face.track, []).append((frame.pts_seconds, face.fake_probability, face.weight))
    longest = max((sum(weight > 0 for _, _, weight in points) for points in seen.values()), default=0)
    needed = num_frames_needed(len(frames), longest, complete=complete, at_least=at_least)
    tracks = []
    for track, points in sorted(seen.items()):
        used = [point for point in points if point[2] > 0] or [(*point[:2], 1.0) for point in points]
        scores, weights = (np.array(column, dtype=np.float64) for column in list(zip(*used, strict=True))[1:])
        probability = strategy(scores, weights)
        tracks.append(
            Track(
                track=track,
                fake_probability=probability,
                label=Label.FAKE if probability >= threshold else Label.REAL,
                num_frames=len(points),
                first_pts_seconds=points[0][0],
                last_pts_seconds=points[-1][0],
                counted=sum(point[2] > 0 for point in points) >= max(1, needed),
                interval=interval(strategy, scores, weights),
                consistency=consistency(scores, weights, fake=probability >= threshold, threshold=threshold),
            )
        )
    return tuple(tracks)


def _ordered(
    probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores in rising order, their weights, and how much weight lies up to and with each."""
    order = np.argsort(probabilities, kind="stable")
    ordered_weights = np.ones(len(order)) if weights is None else weights[order]
    return probabilities[order], ordered_weights, np.cumsum(ordered_weights)


def _share_mean(
    probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None, low: float, high: float
) -> float:
    """Return the mean of the scores that make up the shares `low` to `high` of all weight, in rising order."""
    ordered, own, end = _ordered(probabilities, weights)
    part = np.clip(np.minimum(end, high * end[-1]) - np.maximum(end - own, low * end[-1]), 0.0, None)
    # Rounding must not carry a mean beyond the scores it is of.
    return float(np.clip(part @ ordered / part.sum(), ordered[0], ordered[-1]))
