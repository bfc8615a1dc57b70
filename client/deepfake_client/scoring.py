"""From the scored faces of an input to the judgement on it: tracks, weights, scores, label and reason.

Plain functions over data; knows no server, no file and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepfake_client.aggregation import Strategy, most_suspicious, score_tracks
from deepfake_client.tracking import Tracker
from deepfake_client.verdict import FaceScore, FrameResult, Interval, Label, Reason, Track
from deepfake_preprocess.errors import InferenceError, ServerError
from deepfake_preprocess.face import Face


@dataclass(slots=True)
class ScoredFrame:
    """One sampled frame on its way through the stages.

    Attributes:
        index: the frame's index.
        pts_seconds: presentation time in seconds.
        faces: faces found, in pixels of the frame.
        probabilities: float32 ``[len(faces)]`` fake probabilities; None when there is no answer for them.
    """

    index: int
    pts_seconds: float
    faces: list[Face] = field(default_factory=list)
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the scores say; its fields are those of `Verdict`."""

    label: Label
    fake_probability: float | None
    interval: Interval | None
    deciding_track: int | None
    reason: Reason | None
    detail: str
    tracks: tuple[Track, ...]
    frames: tuple[FrameResult, ...]


def judge(
    scored: Sequence[ScoredFrame], *, strategy: Strategy, threshold: float, failure: ServerError | None = None
) -> Judgement:
    """Follow the faces, score the tracks and decide.

    Args:
        scored: sampled frames in order of time.
        strategy: how a track's frames become its score.
        threshold: FAKE at or above it, in (0, 1).
        failure: what ended the analysis before its time; makes the judgement INCONCLUSIVE.
    """
    frames = tuple(_followed(scored))
    tracks = score_tracks(frames, strategy=strategy, threshold=threshold)
    suspect = most_suspicious(tracks)
    reason, detail = _reason(scored, failure, conclusive=suspect is not None)
    if reason is not None or suspect is None:
        return Judgement(Label.INCONCLUSIVE, None, None, None, reason, detail, tracks, frames)
    return Judgement(
        suspect.label, suspect.fake_probability, suspect.interval, suspect.track, None, detail, tracks, frames
    )


def _followed(scored: Sequence[ScoredFrame]) -> Iterator[FrameResult]:
    tracker = Tracker()
    for frame in scored:
        ids = tracker.update([face.box_xyxy for face in frame.faces])
        scores = [None] * len(ids) if frame.probabilities is None else [float(p) for p in frame.probabilities]
        faces = tuple(
            FaceScore(
                track, _as_tuple(face.box_xyxy), face.confidence, score, landmarks_xy=_as_points(face.landmarks_xy)
            )
            for track, face, score in zip(ids, frame.faces, scores, strict=True)
        )
        yield FrameResult(frame.index, frame.pts_seconds, faces)


def _as_tuple(box_xyxy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in box_xyxy)
    return left, top, right, bottom


def _as_points(landmarks_xy: NDArray[np.float32] | None) -> tuple[tuple[float, float], ...] | None:
    return None if landmarks_xy is None else tuple((float(x), float(y)) for x, y in landmarks_xy)


def _reason(
    scored: Sequence[ScoredFrame], failure: ServerError | None, *, conclusive: bool
) -> tuple[Reason | None, str]:
    if failure is not None:
        reason = Reason.SERVER_ERROR if isinstance(failure, InferenceError) else Reason.SERVER_UNAVAILABLE
        answered = sum(frame.probabilities is not None for frame in scored)
        return reason, f"after {answered} scored frames: {failure}"
    if not scored:
        return Reason.UNDECODABLE, "the file opens, but no frame of it could be decoded; it may be damaged"
    if not any(frame.faces for frame in scored):
        return Reason.NO_FACE, f"no face was found in {len(scored)} frames; is a face visible and large enough?"
    if not conclusive:
        return Reason.TOO_FEW_FRAMES, "no face was seen on enough frames; sample more with --frames or --fps"
    return None, ""
