"""From the scored faces of an input to the judgment on it: tracks, weights, scores, label and reason.

Plain functions over data; knows no server, no file and no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.aggregation import Strategy, most_suspicious, num_frames_needed, score_tracks
from deepfake_client.analysis.appearance import Colors, face_colors, picture_colors
from deepfake_client.analysis.quality import Quality, assess, inner_face
from deepfake_client.analysis.tracking import Detection, Tracker
from deepfake_client.result.verdict import FaceScore, FrameResult, Interval, Label, Reason, Track
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import InferenceError, ServerError
from deepfake_preprocess.faces.detector import Face


@dataclass(frozen=True, slots=True, eq=False)
class FaceAppearance:
    """What a face's picture says in addition to its score; its colors distinguish it from other faces."""

    quality: Quality
    colors: Colors


@dataclass(slots=True)
class ScoredFrame:
    """One sampled frame on its way through the stages.

    Attributes:
        index: the frame's index.
        pts_seconds: presentation time in seconds.
        faces: faces found, in pixels of the frame.
        probabilities: float32 ``[len(faces)]`` fake probabilities; None when there is no answer for them.
        picture: colors of the whole frame; without them no cut is seen.
        appearances: one for each face; without them every face counts in full.
    """

    index: int
    pts_seconds: float
    faces: list[Face] = field(default_factory=list)
    probabilities: NDArray[np.float32] | None = None
    picture: Colors | None = None
    appearances: list[FaceAppearance] = field(default_factory=list)

    def describe(
        self,
        picture_rgb: NDArray[np.uint8],
        crops: NDArray[np.uint8] | None,
        *,
        frame_wh: tuple[int, int],
        spec: ModelSpec,
    ) -> None:
        """Fill in `picture` and `appearances` while the pixels are at hand.

        `picture_rgb` is the frame at any size, `frame_wh` its full size; `crops` are the network's input for `faces`,
        None where there are none.
        """
        self.picture = picture_colors(picture_rgb)
        if crops is not None:
            self.appearances = [
                FaceAppearance(assess(face, crop, frame_wh, spec), face_colors(inner_face(crop, spec)))
                for face, crop in zip(self.faces, crops, strict=True)
            ]


@dataclass(frozen=True, slots=True)
class Judgment:
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
) -> Judgment:
    """Follow the faces through frames in order of time, score the tracks and decide.

    FAKE is a score at or above `threshold`; `failure` ended the analysis before its time and makes it INCONCLUSIVE.
    """
    frames = tuple(_followed(scored))
    tracks = score_tracks(frames, strategy=strategy, threshold=threshold)
    suspect = most_suspicious(tracks)
    if failure is None and suspect is not None:
        score, spread, note = suspect.fake_probability, suspect.interval, _note_on_quality(frames)
        return Judgment(suspect.label, score, spread, suspect.track, None, note, tracks, frames)
    reason, detail = _reason(scored, frames, failure)
    return Judgment(Label.INCONCLUSIVE, None, None, None, reason, detail, tracks, frames)


def _followed(scored: Sequence[ScoredFrame]) -> Iterator[FrameResult]:
    tracker = Tracker()
    for frame in scored:
        appearances: Sequence[FaceAppearance | None] = frame.appearances or [None] * len(frame.faces)
        detections = [
            Detection(face.box_xyxy, face.landmarks_xy, None if look is None else look.colors)
            for face, look in zip(frame.faces, appearances, strict=True)
        ]
        ids = tracker.update(detections, pts_seconds=frame.pts_seconds, picture=frame.picture)
        scores = [None] * len(ids) if frame.probabilities is None else [float(p) for p in frame.probabilities]
        faces = tuple(
            FaceScore(
                track,
                _as_tuple(face.box_xyxy),
                face.confidence,
                score,
                1.0 if look is None else look.quality.weight,
                () if look is None else look.quality.concerns,
                landmarks_xy=_as_points(face.landmarks_xy),
            )
            for track, face, look, score in zip(ids, frame.faces, appearances, scores, strict=True)
        )
        yield FrameResult(frame.index, frame.pts_seconds, faces)


def _as_tuple(box_xyxy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in box_xyxy)
    return left, top, right, bottom


def _as_points(landmarks_xy: NDArray[np.float32] | None) -> tuple[tuple[float, float], ...] | None:
    return None if landmarks_xy is None else tuple((float(x), float(y)) for x, y in landmarks_xy)


def _reason(
    scored: Sequence[ScoredFrame], frames: Sequence[FrameResult], failure: ServerError | None
) -> tuple[Reason, str]:
    if failure is not None:
        reason = Reason.SERVER_ERROR if isinstance(failure, InferenceError) else Reason.SERVER_UNAVAILABLE
        answered = sum(frame.probabilities is not None for frame in scored)
        return reason, f"after {answered} scored frames: {failure}"
    if not scored:
        return Reason.UNDECODABLE, "the file opens, but no frame of it could be decoded; it may be damaged"
    faces = [face for frame in frames for face in frame.faces]
    if not faces:
        return Reason.NO_FACE, f"no face was found in {len(scored)} frames; is a face visible and large enough?"
    sightings = Counter(face.track for face in faces)
    longest = max(sightings.values())
    if longest >= num_frames_needed(len(frames), longest):
        # Seen often enough: what is missing is quality.
        left_out = [face for face in faces if face.weight == 0]
        return Reason.POOR_FACES, (
            f"{len(left_out)} of {len(faces)} faces found are too poor to judge ({_concerns(left_out)}); "
            "use a larger or sharper recording"
        )
    return Reason.TOO_FEW_FRAMES, (
        f"{len(faces)} faces of {len(sightings)} persons were found in {len(frames)} frames, none on enough of them; "
        "sample more: raise `num_frames` or `fps`"
    )


def _note_on_quality(frames: Sequence[FrameResult]) -> str:
    faces = [face for frame in frames for face in frame.faces]
    poor = [face for face in faces if face.concerns]
    if not poor:
        return ""
    return f"{len(poor)} of {len(faces)} faces count less than in full or not at all ({_concerns(poor)})"


def _concerns(faces: Sequence[FaceScore]) -> str:
    """Return how often each concern occurs, the most frequent first."""
    counts = Counter(concern for face in faces for concern in face.concerns)
    return ", ".join(f"{number} {concern.value}" for concern, number in counts.most_common())
