"""When the frames looked at suffice: early stopping for `until_sure`.

What it must not do is answer for parts of the video that nobody looked at. In order of time the first frames say
nothing on the later ones, where a face may be swapped or another face may appear. So the sampled frames are taken in
passes from coarse to fine, each spread over the whole video: first every n-th, then those in the middle of the gaps,
at last all others. After each pass but the last there is one look:

- FAKE suffices when a track's score is above the threshold with its whole confidence interval.
- REAL suffices when every face that was seen is below it in the same way, and no face can have gone unseen that
  would count: the gaps between frames are shorter than the number of frames from which on a track counts.

Looking several times would let chance stop it sooner or later, so the allowed error is spent in equal parts over all
looks (alpha spending: K. Lan and D. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983,
in its plainest form, Bonferroni's), and for FAKE over the tracks as well. The interval is that of
`analysis.judging.consistency`. Frames at equal distances represent a video at least as well as frames at random do
when the resemblance of frames fades with their distance (W. Cochran, "Sampling Techniques", 3rd ed., 8.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepfake_client.analysis.judging.aggregation import Strategy, num_frames_needed, scores_by_track
from deepfake_client.analysis.judging.consistency import interval
from deepfake_client.result.verdict import FrameResult, Track
from deepfake_preprocess.media.sampling import PartOf, Sampling

MIN_STRIDE = 3
"""Below the frames that a face needs to count (`aggregation.MIN_TRACK_FRAMES`), so that none fits between."""
FIRST_PASS_FRAMES = 12
"""About as many frames as the first pass takes of a long video: with fewer, no interval is narrow."""
MAX_FRAMES = 100_000
"""With more frames (some hours, several a second) no passes are planned."""
MIN_SURE_FRAMES = 8
"""Frames on which a face must be scored before its interval is believed."""


def passes(num_frames: int) -> list[list[int]]:
    """Return the positions of `num_frames` sampled frames that each pass takes, from coarse to fine.

    The first pass takes every n-th, with n at least `MIN_STRIDE`, so no counting face fits between; each
    further pass the middle of every gap; the last all others, as soon as the gaps are shorter than that.
    """
    stride = max(MIN_STRIDE, num_frames // FIRST_PASS_FRAMES)
    result = [list(range(min(stride // 2, num_frames - 1), num_frames, stride))]
    while True:
        taken = sorted(position for part in result for position in part)
        gaps = [
            (low + 1, high) for low, high in zip([-1, *taken], [*taken, num_frames], strict=True) if high > low + 1
        ]
        if not gaps:
            return result
        if max(high - low for low, high in gaps) < MIN_STRIDE:
            return [*result, [position for low, high in gaps for position in range(low, high)]]
        result.append([(low + high) // 2 for low, high in gaps])


@dataclass(frozen=True, slots=True)
class StopRule:
    """Decides after each pass over `num_frames` whether the frames so far suffice.

    `confidence` is the probability that a stop does not change the answer.
    """

    num_frames: int
    strategy: Strategy
    threshold: float
    confidence: float

    def parts(self, sampling: Sampling) -> list[PartOf]:
        """Return what each pass takes of `sampling`."""
        *coarse, last = passes(self.num_frames)
        # The number of frames is reckoned from rate and length; rounding may leave one or two more.
        return [PartOf.of(sampling, part) for part in [*coarse, [*last, self.num_frames, self.num_frames + 1]]]

    def suffices(self, frames: Sequence[FrameResult], tracks: Sequence[Track], *, num_passes: int) -> bool:
        """Return whether the answer of the frames so far, after `num_passes`, stands at the confidence asked for."""
        plan = passes(self.num_frames)
        counted = {track.track for track in tracks if track.takes_part}
        if not counted or num_passes >= len(plan):
            return False
        # For FAKE any of the tracks may err; an error of one end of an interval is half of both ends'.
        tail = (1 - self.confidence) / (len(plan) - 1) / len(counted)
        all_below, longest = True, 0
        for track, (scores, weights) in scores_by_track(frames).items():
            sure = interval(self.strategy, scores, weights, confidence=1 - 2 * tail)
            enough = len(scores) >= MIN_SURE_FRAMES
            if enough and track in counted and sure.low >= self.threshold:
                return True
            all_below = all_below and enough and sure.high < self.threshold
            longest = max(longest, len(scores))
        taken = sorted(position for part in plan[:num_passes] for position in part)
        longest_gap = max(np.diff([-1, *taken, self.num_frames])) - 1
        return all_below and longest_gap < num_frames_needed(self.num_frames, longest / len(frames) * self.num_frames)
