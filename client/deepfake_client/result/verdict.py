"""What an analysis yields: `Verdict` and its parts, and their JSON form. Plain data, no computation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Label(StrEnum):
    """The three possible answers."""

    REAL = "REAL"
    FAKE = "FAKE"
    INCONCLUSIVE = "INCONCLUSIVE"


class Reason(StrEnum):
    """Why a verdict is INCONCLUSIVE."""

    NO_FACE = "no_face"
    """Frames were decoded, but no face was found in any of them."""
    TOO_FEW_FRAMES = "too_few_frames"
    """No face was scored on enough frames to say anything."""
    POOR_FACES = "poor_faces"
    """Faces were found on enough frames, but too small, blurred, turned away or cut off to say anything."""
    UNDECODABLE = "undecodable"
    """The input opens, but not one frame could be decoded."""
    SERVER_UNAVAILABLE = "server_unavailable"
    """The server went away, timed out or refused during the analysis."""
    SERVER_ERROR = "server_error"
    """The server answered a request with an error of its own."""


class Concern(StrEnum):
    """Why a face counts less than others in its track's score, or not at all."""

    TINY = "tiny"
    """The face has fewer pixels than a score can be trusted on."""
    BLURRED = "blurred"
    """The face is out of focus or smeared by motion."""
    EXTREME_POSE = "extreme_pose"
    """The face is seen from the side, from far above or below, or upside down."""
    CUT_OFF = "cut_off"
    """Much of the face lies outside the picture."""


@dataclass(frozen=True, slots=True)
class FaceScore:
    """One face in one frame.

    Attributes:
        track: id of the track the face belongs to.
        box_xyxy: left, top, right, bottom in pixels of the upright frame.
        detection_confidence: of the face detector, in [0, 1].
        fake_probability: in [0, 1]; None when the server did not answer for it.
        weight: how much the face counts in its track's score, in [0, 1]; 0 leaves it out.
        concerns: why `weight` is below 1; empty when it is 1.
        landmarks_xy: the five landmarks in the order of `faces.detector.LANDMARK_NAMES`, in pixels of the
            upright frame; None when the detector gave none.
    """

    track: int
    box_xyxy: tuple[float, float, float, float]
    detection_confidence: float
    fake_probability: float | None
    weight: float = 1.0
    concerns: tuple[Concern, ...] = ()
    landmarks_xy: tuple[tuple[float, float], ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "track": self.track,
            "box_xyxy": [round(value, 2) for value in self.box_xyxy],
            "detection_confidence": round(self.detection_confidence, 6),
            "fake_probability": self.fake_probability,
            "weight": round(self.weight, 4),
            "concerns": [concern.value for concern in self.concerns],
            "landmarks_xy": None
            if self.landmarks_xy is None
            else [[round(x, 2), round(y, 2)] for x, y in self.landmarks_xy],
        }


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All faces of one sampled frame, which may be none.

    Attributes:
        index: the frame's index (see `deepfake_preprocess.media.frame.Frame`).
        pts_seconds: presentation time in seconds.
        faces: the faces found, largest detection confidence first.
    """

    index: int
    pts_seconds: float
    faces: tuple[FaceScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "index": self.index,
            "pts_seconds": round(self.pts_seconds, 6),
            "faces": [face.to_dict() for face in self.faces],
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% confidence interval of a fake probability, both ends in [0, 1]."""

    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON data."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Consistency:
    """How steady a track's scores are over time; frames that are left out do not take part.

    Attributes:
        agreeing_share: share of frames on the same side of the threshold as the track's score, in [0, 1].
        score_variance: variance of the frames' fake probabilities, in [0, 0.25].
        longest_run: most frames in a row on the FAKE side of the threshold.
    """

    agreeing_share: float
    score_variance: float
    longest_run: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "agreeing_share": self.agreeing_share,
            "score_variance": self.score_variance,
            "longest_run": self.longest_run,
        }


@dataclass(frozen=True, slots=True)
class Track:
    """One face followed through the sampled frames.

    Attributes:
        track: id, from 0 in order of first appearance.
        fake_probability: score of the track, in [0, 1]; faces of weight 0 take no part, unless there are no others.
        label: REAL or FAKE by the verdict's threshold.
        num_frames: number of frames on which the face was scored, also those of weight 0.
        first_pts_seconds: time of the first of them.
        last_pts_seconds: time of the last of them.
        counted: whether the track takes part in the verdict: it was seen with a weight above 0 often enough.
        interval: how far `fake_probability` could lie elsewhere, given the spread of the frames.
        consistency: how steady the scores are over time.
    """

    track: int
    fake_probability: float
    label: Label
    num_frames: int
    first_pts_seconds: float
    last_pts_seconds: float
    counted: bool
    interval: Interval
    consistency: Consistency

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "track": self.track,
            "fake_probability": self.fake_probability,
            "label": self.label.value,
            "num_frames": self.num_frames,
            "first_pts_seconds": round(self.first_pts_seconds, 6),
            "last_pts_seconds": round(self.last_pts_seconds, 6),
            "counted": self.counted,
            "interval": self.interval.to_dict(),
            "consistency": self.consistency.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model gave the scores.

    Attributes:
        name: Triton model name.
        version: Triton model version.
        checkpoint_sha256: hash of the checkpoint the model was exported from, as the server reports it.
    """

    name: str
    version: int
    checkpoint_sha256: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"name": self.name, "version": self.version, "checkpoint_sha256": self.checkpoint_sha256}


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds of wall clock.

    Stages overlap, so that their sum may exceed `total_s`. Each is the time during which at least one piece
    of work of that stage was under way.
    """

    decode_s: float
    detect_s: float
    crop_s: float
    infer_s: float
    aggregate_s: float
    total_s: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON data."""
        return {
            "decode": round(self.decode_s, 4),
            "detect": round(self.detect_s, 4),
            "crop": round(self.crop_s, 4),
            "infer": round(self.infer_s, 4),
            "aggregate": round(self.aggregate_s, 4),
            "total": round(self.total_s, 4),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one input.

    Attributes:
        source: what was analyzed (path or name).
        label: REAL, FAKE or INCONCLUSIVE.
        fake_probability: score of the most suspicious counted track, in [0, 1]; None when inconclusive.
        interval: that track's interval; None when inconclusive.
        deciding_track: id of that track; None when inconclusive.
        threshold: FAKE means `fake_probability` at or above it.
        reason: why the verdict is inconclusive, else None.
        detail: one sentence about `reason`, or about something worth knowing; may be empty.
        tracks: every face followed through the input.
        frames: every sampled frame in order of time, also those without a face.
        model: which model gave the scores.
        timing: where the time went.
        corrupt_packets: number of damaged packets that were skipped while decoding.
        frames_saved: sampled frames that were not looked at, because those before them sufficed.
        frames_dropped: frames of a live source that were left out, because the server was slower than the source.
    """

    source: str
    label: Label
    fake_probability: float | None
    interval: Interval | None
    deciding_track: int | None
    threshold: float
    reason: Reason | None
    detail: str
    tracks: tuple[Track, ...]
    frames: tuple[FrameResult, ...]
    model: ModelIdentity
    timing: Timing
    corrupt_packets: int = 0
    frames_saved: int = 0
    frames_dropped: int = 0

    def __post_init__(self) -> None:
        inconclusive = self.label is Label.INCONCLUSIVE
        if inconclusive != (self.reason is not None) or inconclusive != (self.fake_probability is None):
            raise ValueError("an INCONCLUSIVE verdict has a reason and no probability; any other, the reverse")

    def __repr__(self) -> str:
        score = f"{self.fake_probability:.4f}" if self.fake_probability is not None else f"reason={self.reason}"
        counts = f"{len(self.frames)} frames, {len(self.tracks)} tracks"
        return f"Verdict({self.source!r}, {self.label.value}, {score}, {counts})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as `deepfake analyze --json` prints it."""
        return {
            "source": self.source,
            "label": self.label.value,
            "fake_probability": self.fake_probability,
            "interval": None if self.interval is None else self.interval.to_dict(),
            "deciding_track": self.deciding_track,
            "threshold": self.threshold,
            "reason": None if self.reason is None else self.reason.value,
            "detail": self.detail,
            "tracks": [track.to_dict() for track in self.tracks],
            "frames": [frame.to_dict() for frame in self.frames],
            "model": self.model.to_dict(),
            "timing_s": self.timing.to_dict(),
            "corrupt_packets": self.corrupt_packets,
            "frames_saved": self.frames_saved,
            "frames_dropped": self.frames_dropped,
        }
