"""Which face decides, and what its score is worth among several: tracks are weighed against each other.

A video is as fake as its most suspicious face, and that face must be a person of the scene. A picture on the wall is
not: its face never moves by itself. Nor is a face so poor that its score is mostly noise. Such a track is background
beside a better one and does not decide, however fake it looks; `Judgment.detail` says so. A second person far away,
small but alive, decides like any other. Of a single picture no face moves, so there motion says nothing.

The highest of many scores is high by chance. What the highest of as many equal faces exceeds its own expectation by
(G. Blom, "Statistical Estimates and Transformed Beta-Variables", 1958) is taken off the deciding score, and its
interval is that of a comparison of so many (Bonferroni). What is left is never below the middle one of the scores, so
several fakes do not excuse each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import NormalDist, median, median_low

from deepfake_client.analysis.judging.aggregation import Strategy, scores_by_track
from deepfake_client.analysis.judging.consistency import interval
from deepfake_client.analysis.judging.motion import Patch, moves
from deepfake_client.result.verdict import FrameResult, Interval, Track

POOR_WEIGHT = 0.25
"""Mean weight below which a track is background: at that weight scores are mostly noise."""
FAINT_WEIGHT, FAINT_SIZE = 0.5, 1 / 3
"""Mean weight, and size relative to the largest face, below which a face must be seen to move by itself."""
MIN_WEIGHT_SHARE = 0.1
"""Share of the heaviest track's summed weight that a track needs: also of poor faces a tenth of the frames."""
FRAME_SPREAD = 0.4
"""Standard deviation of one face's logit from frame to frame: 0.2 to 0.7 in 25 clips, median 0.4."""
MOST_INDEPENDENT_FRAMES = 4
"""Neighboring frames resemble each other, and part of the deviation stays the same in all of them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The deciding track, its score and interval as they stand among several, and who is background."""

    track: int
    fake_probability: float
    interval: Interval
    tracks: tuple[Track, ...]
    note: str


def decide(
    tracks: tuple[Track, ...],
    frames: Sequence[FrameResult],
    patches: Mapping[int, Sequence[Patch]],
    *,
    strategy: Strategy,
    threshold: float,
) -> Decision | None:
    """Choose among the counted tracks; None without any.

    `patches` are each track's faces with their surroundings, in order of time; a track without them is not seen to
    move.
    """
    standings = sorted(_standings(tracks, frames), key=lambda standing: -standing.track.fake_probability)
    if not standings:
        return None
    with_motion = len(frames) > 1 and len(standings) > 1

    def rank(standing: _Standing) -> int:
        return _rank(standing, patches.get(standing.track.track, ()) if with_motion else None)

    # Motion takes tens of milliseconds a track: from the most suspicious one down, until one may decide.
    ranks: list[int] = []
    while not ranks or (ranks[-1] > _DECIDES and len(ranks) < len(standings)):
        ranks.append(rank(standings[len(ranks)]))
    position = ranks.index(min(ranks))
    deciding = standings[position].track
    background = {
        standing.track.track for standing, own in zip(standings, ranks, strict=False) if own > ranks[position]
    }
    scores, weights = scores_by_track(frames)[deciding.track]
    rivals = [standing for standing in standings[position:] if ranks[position] == _POOR or not standing.is_poor]
    probability = _among(rivals, float(weights.sum()))
    if deciding.fake_probability >= threshold > probability:
        # Pictures on the wall must not excuse anybody.
        rivals = [standing for standing in rivals if rank(standing) <= ranks[position]]
        probability = _among(rivals, float(weights.sum()))
    around = interval(strategy, scores, weights, confidence=1 - 0.05 / len(rivals))
    shift = probability - deciding.fake_probability
    note = ""
    if deciding.fake_probability >= threshold > probability:
        note = (
            f"the highest score of {len(rivals)} faces, {deciding.fake_probability:.2f}, is within chance and counts "
            f"as {probability:.2f}"
        )
    return Decision(
        deciding.track,
        probability,
        Interval(max(0.0, around.low + shift), max(probability, around.high + shift)),
        tuple(replace(track, background=track.track in background) for track in tracks),
        note,
    )


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a counted track stands beside the others."""

    track: Track
    mean_weight: float
    side_px: float
    size: float  # relative to the largest
    weight_share: float  # of the largest summed weight

    @property
    def is_poor(self) -> bool:
        return self.mean_weight < POOR_WEIGHT or self.weight_share < MIN_WEIGHT_SHARE

    @property
    def is_faint(self) -> bool:
        return self.mean_weight < FAINT_WEIGHT or self.size < FAINT_SIZE


_DECIDES, _STILL, _POOR = range(3)


def _rank(standing: _Standing, patches: Sequence[Patch] | None) -> int:
    """Return how far a track is from deciding; `patches` are None where nothing can be said of motion."""
    if standing.is_poor:
        return _POOR
    if patches is None:
        return _DECIDES
    moved = moves(patches, standing.side_px)
    if moved or (moved is None and not standing.is_faint):
        return _DECIDES
    return _POOR if standing.is_faint else _STILL


def _standings(tracks: Sequence[Track], frames: Sequence[FrameResult]) -> list[_Standing]:
    sides: dict[int, list[tuple[float, float]]] = {}
    weights: dict[int, list[float]] = {}
    for frame in frames:
        for face in frame.faces:
            if face.fake_probability is not None and face.weight > 0:
                left, top, right, bottom = face.box_xyxy
                side_px = max(right - left, bottom - top)
                sides.setdefault(face.track, []).append((side_px, side_px / max(1, *frame.size_wh)))
                weights.setdefault(face.track, []).append(face.weight)
    counted = [track for track in tracks if track.counted]
    sizes = {track.track: median(share for _, share in sides[track.track]) for track in counted}
    sums = {track.track: sum(weights[track.track]) for track in counted}
    return [
        _Standing(
            track,
            sums[track.track] / len(weights[track.track]),
            median(side_px for side_px, _ in sides[track.track]),
            sizes[track.track] / max(sizes.values()),
            sums[track.track] / max(sums.values()),
        )
        for track in counted
    ]


def _among(rivals: Sequence[_Standing], num_frames: float) -> float:
    """Return what the first and highest of several scores is worth, of a track with that sum of weights."""
    scores = [rival.track.fake_probability for rival in rivals]
    if len(scores) < 2:
        return scores[0]
    by_chance = NormalDist().inv_cdf((len(scores) - 0.375) / (len(scores) + 0.25))
    spread = FRAME_SPREAD / sqrt(min(max(num_frames, 1.0), MOST_INDEPENDENT_FRAMES))
    clipped = min(max(scores[0], 1e-6), 1 - 1e-6)
    worth = 1 / (1 + exp(by_chance * spread - log(clipped / (1 - clipped))))
    return max(worth, median_low(scores))
