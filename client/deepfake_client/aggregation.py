"""From the scores of single faces to the score of a track, and from tracks to the verdict.

A video is as fake as its most suspicious face: tracks are scored one by one and the largest counts, so that one
manipulated face among several real ones is not averaged away.

Within a track the default is the mean of the frames' probabilities: it is the figure that papers and benchmarks of
the field report for a video, moves little with any one frame, and keeps the meaning of a calibrated probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deepfake_client.verdict import Consistency, FrameResult, Interval, Label, Track
from deepfake_preprocess.errors import OptionError

Strategy = Callable[[NDArray[np.float64]], float]
"""Takes float64 ``[N]`` probabilities in order of time, N >= 1, and returns one in [0, 1]."""

MIN_TRACK_FRAMES = 3
"""Frames on which a face must be scored before its track counts in a video: fewer are often false detections."""
MIN_TRACK_SHARE = 0.1
"""Share of the longest track's frames that another track needs to count, for the same reason."""
_EPSILON = 1e-6


def mean(probabilities: NDArray[np.float64]) -> float:
    """Arithmetic mean."""
    return float(probabilities.mean())


def median(probabilities: NDArray[np.float64]) -> float:
    """Median; ignores up to half of outliers."""
    return float(np.median(probabilities))


def trimmed(probabilities: NDArray[np.float64]) -> float:
    """Mean without the lowest and the highest tenth."""
    cut = len(probabilities) // 10
    return float(np.sort(probabilities)[cut : len(probabilities) - cut].mean())


def top_k(probabilities: NDArray[np.float64]) -> float:
    """Mean of the highest quarter: for manipulations that show only now and then."""
    return float(np.sort(probabilities)[-max(1, len(probabilities) // 4) :].mean())


def vote(probabilities: NDArray[np.float64]) -> float:
    """Share of frames at or above 0.5."""
    return float((probabilities >= 0.5).mean())


def confident(probabilities: NDArray[np.float64]) -> float:
    """The rule of the winner of the DFDC (S. Seferbekov, 2020, `kernel_utils.confident_strategy`).

    Mean of the frames above 0.8 when they are more than 2/5 of all and more than 11; mean of those below 0.2 when
    they are more than 9/10 of all; else the mean.
    """
    high, low = probabilities[probabilities > 0.8], probabilities[probabilities < 0.2]
    if len(high) > len(probabilities) // 2.5 and len(high) > 11:
        return float(high.mean())
    if len(low) > 0.9 * len(probabilities):
        return float(low.mean())
    return float(probabilities.mean())


def log_odds(probabilities: NDArray[np.float64]) -> float:
    """Sigmoid of the mean logit: lets a few very sure frames weigh more than the mean does."""
    clipped = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    return float(1 / (1 + np.exp(-np.log(clipped / (1 - clipped)).mean())))


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {rule.__name__: rule for rule in (mean, median, trimmed, top_k, vote, confident, log_odds)}
)
DEFAULT_STRATEGY = "mean"


def strategy_named(name: str) -> Strategy:
    """Return the strategy of that name.

    Raises:
        OptionError: there is none; the message lists them.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise OptionError(f"aggregation {name!r} is unknown; choose one of {', '.join(STRATEGIES)}") from None


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that would call every face FAKE, or none.

    Raises:
        OptionError: it is given and not strictly between 0 and 1.
    """
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise OptionError(f"threshold must lie strictly between 0 and 1, got {threshold}")


def score_tracks(frames: tuple[FrameResult, ...], *, strategy: Strategy, threshold: float) -> tuple[Track, ...]:
    """Score every track of `frames` that has at least one scored face, in order of id.

    A track counts when it was scored on at least `MIN_TRACK_FRAMES` frames (or on all of them when there are fewer)
    and on at least `MIN_TRACK_SHARE` of the frames of the longest track.
    """
    seen: dict[int, list[tuple[float, float]]] = {}
    for frame in frames:
        for face in frame.faces:
            if face.fake_probability is not None:
                seen.setdefault(face.track, []).append((frame.pts_seconds, face.fake_probability))
    longest = max((len(points) for points in seen.values()), default=0)
    needed = max(min(MIN_TRACK_FRAMES, len(frames)), MIN_TRACK_SHARE * longest)
    tracks = []
    for track, points in sorted(seen.items()):
        scores = np.array([score for _, score in points], dtype=np.float64)
        probability = strategy(scores)
        tracks.append(
            Track(
                track=track,
                fake_probability=probability,
                label=Label.FAKE if probability >= threshold else Label.REAL,
                num_frames=len(points),
                first_pts_seconds=points[0][0],
                last_pts_seconds=points[-1][0],
                counted=len(points) >= needed,
                interval=_interval(scores, probability),
                consistency=_consistency(scores, probability, threshold),
            )
        )
    return tuple(tracks)


def _interval(scores: NDArray[np.float64], probability: float) -> Interval:
    # Normal approximation of the mean's standard error.
    half = 1.96 * float(scores.std(ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 1.0
    return Interval(max(0.0, probability - half), min(1.0, probability + half))


def _consistency(scores: NDArray[np.float64], probability: float, threshold: float) -> Consistency:
    fake = scores >= threshold
    longest = run = 0
    for flag in fake:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return Consistency(float((fake == (probability >= threshold)).mean()), float(scores.var()), longest)


def most_suspicious(tracks: tuple[Track, ...]) -> Track | None:
    """Return the counted track with the highest score, or None when no track counts."""
    return max((track for track in tracks if track.counted), key=lambda track: track.fake_probability, default=None)
