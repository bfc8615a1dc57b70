"""What an analysis yields: `Verdict` and its parts. Plain data, no computation.

The fields are those of the JSON that `deepfake analyze` prints, with their ranges and the decimals they are
written with; their descriptions are those of ``docs/verdict.schema.json``. What is null in JSON is None here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from deepfake_preprocess.contract.spec import Sha256
from deepfake_preprocess.support.json_data import Bounds, ExplainedEnum, JsonData, Rounded

Count = Annotated[int, Bounds(ge=0)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Pixels = Annotated[float, Rounded(2)]
PtsSeconds = Annotated[float, Rounded(6)]
StageSeconds = Annotated[float, Rounded(4), Bounds(ge=0)]


class Label(ExplainedEnum):
    """The three possible answers."""

    REAL = "REAL", "No face that counts has a fake probability at or above the threshold."
    FAKE = "FAKE", "A face that counts has a fake probability at or above the threshold."
    INCONCLUSIVE = "INCONCLUSIVE", "There is no answer; `reason` says why."


class Reason(ExplainedEnum):
    """Why a verdict is INCONCLUSIVE."""

    NO_FACE = "no_face", "Frames were decoded, but no face was found in any of them."
    TOO_FEW_FRAMES = (
        "too_few_frames",
        "No face was scored on enough frames to say anything, or too few frames of a longer video were looked at.",
    )
    POOR_FACES = (
        "poor_faces",
        "Faces were found on enough frames, but too small, blurred, turned away or cut off to say anything.",
    )
    NEAR_THRESHOLD = (
        "near_threshold",
        "The score lies where the model's calibration found real and fake clips, or moves across that place.",
    )
    OUT_OF_DISTRIBUTION = (
        "out_of_distribution",
        "The face looks unlike those that the model was calibrated on, so its score says nothing.",
    )
    UNDECODABLE = "undecodable", "The input opens, but not one frame could be decoded."
    SERVER_UNAVAILABLE = "server_unavailable", "The server went away, timed out or refused during the analysis."
    SERVER_ERROR = "server_error", "The server answered a request with an error of its own."


class Concern(ExplainedEnum):
    """Why a face counts less than others in its track's score, or not at all."""

    TINY = "tiny", "The face has fewer pixels than a score can be trusted on, or than asked for."
    BLURRED = "blurred", "The face is out of focus or smeared by motion."
    EXTREME_POSE = (
        "extreme_pose",
        "The face is seen from the side, from far above or below, on its side or upside down.",
    )
    CUT_OFF = "cut_off", "Much of the face lies outside the picture."


@dataclass(frozen=True, slots=True)
class FaceScore(JsonData):
    """One face in one frame."""

    track: Count
    """Id of the track the face belongs to."""
    box_xyxy: tuple[Pixels, Pixels, Pixels, Pixels]
    """Left, top, right, bottom in pixels of the upright frame."""
    detection_confidence: Annotated[Share, Rounded(6)]
    """Of the face detector, in [0, 1]."""
    fake_probability: Share | None
    """In [0, 1]; null when the server did not answer for it."""
    weight: Annotated[Share, Rounded(4)] = 1.0
    """How much the face counts in its track's score, in [0, 1]; 0 leaves it out."""
    concerns: tuple[Concern, ...] = ()
    """Why `weight` is below 1; empty when it is 1."""
    landmarks_xy: tuple[tuple[Pixels, Pixels], ...] | None = None
    """The five `faces.detector.LANDMARK_NAMES`, in pixels of the upright frame; null when the detector gave none."""

    @property
    def takes_part(self) -> bool:
        """Whether the face was scored and counts in its track's score."""
        return self.fake_probability is not None and self.weight > 0


@dataclass(frozen=True, slots=True)
class FrameResult(JsonData):
    """All faces of one sampled frame, which may be none."""

    index: Count
    """The frame's index (see `deepfake_preprocess.media.frame.Frame`)."""
    pts_seconds: PtsSeconds
    """Presentation time in seconds."""
    faces: tuple[FaceScore, ...]
    """The faces found, largest detection confidence first."""
    size_wh: tuple[Count, Count] = (0, 0)
    """Width and height in pixels of the upright frame, which boxes and landmarks refer to."""


@dataclass(frozen=True, slots=True)
class Interval(JsonData):
    """A 95% confidence interval of a fake probability, both ends in [0, 1]."""

    low: Share
    high: Share


@dataclass(frozen=True, slots=True)
class Consistency(JsonData):
    """How steady a track's scores are over time; frames that are left out do not take part."""

    agreeing_share: Share
    """Share of frames on the same side of the threshold as the track's score, in [0, 1]."""
    score_variance: Annotated[float, Bounds(ge=0, le=0.25)]
    """Variance of the frames' fake probabilities, in [0, 0.25]."""
    longest_run: Count
    """Most frames in a row on the FAKE side of the threshold."""


@dataclass(frozen=True, slots=True)
class Track(JsonData):
    """One face followed through the sampled frames."""

    track: Count
    """Id, from 0 in order of first appearance."""
    fake_probability: Share
    """Score of the track, in [0, 1]; faces of weight 0 take no part, unless there are no others."""
    label: Label
    """REAL or FAKE by the verdict's threshold; INCONCLUSIVE where the model's calibration leaves its score open."""
    num_frames: Annotated[int, Bounds(ge=1)]
    """Number of frames on which the face was scored, also those of weight 0."""
    first_pts_seconds: PtsSeconds
    """Time of the first of them."""
    last_pts_seconds: PtsSeconds
    """Time of the last of them."""
    counted: bool
    """Whether it was seen with a weight above 0 often enough to take part in the verdict."""
    interval: Interval
    """How far `fake_probability` could lie elsewhere, given the spread of the frames."""
    consistency: Consistency
    """How steady the scores are over time."""
    background: bool = False
    """Whether it looks more suspicious than the deciding track and does not decide: it never moves by itself, as a
    picture on the wall, or is too poor beside better ones."""
    unlikeness: Annotated[float, Bounds(ge=0), Rounded(4)] | None = None
    """How far its looks lie from the clips that the model was calibrated on: above 1 they are unlike those; null for
    a model without such a calibration."""
    look: tuple[float, ...] = field(default=(), metadata={"exclude": True}, compare=False)
    """Mean of the `analysis.judging.abstaining.LOOKS` of its faces of weight above 0; not in JSON."""

    @property
    def takes_part(self) -> bool:
        """Whether the verdict rests on it, too: it counts and is not background."""
        return self.counted and not self.background


@dataclass(frozen=True, slots=True)
class ModelIdentity(JsonData):
    """Which model gave the scores."""

    name: str
    """Triton model name."""
    version: Annotated[int, Bounds(ge=1)]
    """Triton model version."""
    checkpoint_sha256: Sha256 | None
    """Hash of the checkpoint the model was exported from, as the server reports it."""
    caution: str = field(default="", compare=False)
    """What the model's makers say its scores must not be used for; may be empty."""


@dataclass(frozen=True, slots=True)
class Timing(JsonData):
    """Where the time went, in seconds of wall clock.

    Stages overlap, so their sum may exceed `total`. Each is the time during which at least one piece of work of that
    stage was under way.
    """

    decode: StageSeconds
    detect: StageSeconds
    crop: StageSeconds
    infer: StageSeconds
    aggregate: StageSeconds
    total: StageSeconds


@dataclass(frozen=True, slots=True)
class Verdict(JsonData):
    """The answer for one input."""

    source: str
    """What was analyzed (path or name)."""
    label: Label
    """REAL, FAKE or INCONCLUSIVE."""
    fake_probability: Share | None
    """Score of the deciding track, in [0, 1], less what the highest of several faces' scores exceeds by chance; null
    when inconclusive."""
    interval: Interval | None
    """The interval of that, for as many faces; null when inconclusive."""
    deciding_track: Count | None
    """Id of the most suspicious counted track that is not background; null when inconclusive."""
    threshold: Annotated[float, Bounds(gt=0, lt=1)]
    """FAKE means `fake_probability` at or above it."""
    reason: Reason | None
    """Why the verdict is inconclusive, else null."""
    detail: str
    """One sentence about `reason`, or about something worth knowing; may be empty."""
    tracks: tuple[Track, ...]
    """Every face followed through the input."""
    frames: tuple[FrameResult, ...]
    """Every sampled frame in order of time, also those without a face."""
    model: ModelIdentity
    """Which model gave the scores."""
    timing_s: Timing
    """Where the time went."""
    corrupt_packets: Count = 0
    """Damaged packets, and pictures that refer to them, that were left out."""
    frames_saved: Count = 0
    """Sampled frames that were not looked at, because those before them sufficed."""
    frames_dropped: Count = 0
    """Frames of a live source that were left out, because the server was slower than the source."""
    unread_s: StageSeconds = 0.0
    """Seconds of the input that could not be read: cut off, or damaged up to the next keyframe. `interval` allows for
    any score of this part."""
    input_notes: tuple[str, ...] = ()
    """What is worth knowing about how the input was read (HDR, several streams, what is missing), as sentences."""

    def __post_init__(self) -> None:
        inconclusive = self.label is Label.INCONCLUSIVE
        if inconclusive != (self.reason is not None) or inconclusive != (self.fake_probability is None):
            raise ValueError("an INCONCLUSIVE verdict has a reason and no probability; any other, the reverse")

    def __repr__(self) -> str:
        score = f"{self.fake_probability:.4f}" if self.fake_probability is not None else f"reason={self.reason}"
        counts = f"{len(self.frames)} frames, {len(self.tracks)} tracks"
        return f"Verdict({self.source!r}, {self.label.value}, {score}, {counts})"

    @property
    def deciding(self) -> Track | None:
        """The track that `deciding_track` names."""
        return next((track for track in self.tracks if track.track == self.deciding_track), None)

    def notes(self) -> list[str]:
        """Return what is worth knowing about how the verdict came about, as sentences without a full stop."""
        counts = (
            (self.corrupt_packets, "damaged part{} of the file, with what depends on it, {} left out"),
            (self.frames_dropped, "frame{} {} left out, because the server was slower than the source"),
        )
        unread = [f"{self.unread_s:.1f} s of the video could not be read"] if self.unread_s else []
        counted = [
            f"{count} {what.format(*(('', 'was') if count == 1 else ('s', 'were')))}"
            for count, what in counts
            if count
        ]
        return [*self.input_notes, *unread, *counted, *self._by_chance()]

    def _by_chance(self) -> list[str]:
        deciding = next((track for track in self.tracks if track.track == self.deciding_track), None)
        if deciding is None or self.fake_probability is None:
            return []
        score, own = f"{self.fake_probability:.3f}", f"{deciding.fake_probability:.3f}"
        if score == own:
            return []
        return [
            f"the score of {score} is the {own} of face {deciding.track + 1}, less what the highest of several "
            "faces' scores exceeds by chance"
        ]
