"""From the scored faces of an input to the judgment on it: tracks, weights, scores, label and reason.

Plain functions over data; knows no server, no file and no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.following.appearance import Colors, face_colors, picture_colors
from deepfake_client.analysis.following.tracking import Detection, Tracker
from deepfake_client.analysis.judging.abstaining import Look, abstention, look_of, unlikeness
from deepfake_client.analysis.judging.aggregation import (
    MIN_TRACK_FRAMES,
    STRATEGIES,
    Strategy,
    num_frames_needed,
    score_tracks,
)
from deepfake_client.analysis.judging.deciding import Decision, decide
from deepfake_client.analysis.judging.motion import MIN_STILL_PATCHES, Patch, patch_of
from deepfake_client.analysis.judging.quality import Quality, assess, inner_face
from deepfake_client.options import CALIBRATED_AGGREGATION, AnalyzeOptions, WatchOptions
from deepfake_client.result.verdict import Concern, FaceScore, FrameResult, Interval, Label, Reason, Track
from deepfake_client.result.words import CONCERN_WORDS
from deepfake_preprocess.contract.spec import Calibration, ModelSpec
from deepfake_preprocess.errors import InferenceError, ServerError
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import Frame

LYING_DEG = 45.0
"""From this roll on a head lies on its side or upside down."""
LYING_SHARE = 1 / 3
"""Frames with a lying head that make the picture lie: detectors find upright "faces" in many of the others. Of 25
upright clips one frame of one has such a head."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How scores become a judgment; see `AnalyzeOptions`."""

    strategy: Strategy
    threshold: float
    min_face_px: float = 0.0
    min_face_share: float = 0.0
    turns_heads: bool = False
    """Whether the model's crops are turned upright, however a head is rolled."""
    calibration: Calibration | None = None
    """When a verdict is left open; None decides always."""
    knows_scores: bool = False
    """Whether `calibration` was found with this strategy and threshold."""
    least_sightings: int = MIN_TRACK_FRAMES
    """Frames on which a face must be scored to count."""

    @classmethod
    def of(cls, options: AnalyzeOptions | WatchOptions, spec: ModelSpec) -> Rules:
        """Return what the options say, with the model's own threshold where they name none."""
        threshold = spec.threshold if options.threshold is None else options.threshold
        return cls(
            STRATEGIES[options.aggregation],
            threshold,
            options.min_face_px,
            options.min_face_share,
            spec.crop.align == "eyes",
            spec.calibration if options.abstain else None,
            options.threshold is None and options.aggregation == CALIBRATED_AGGREGATION,
        )

    @classmethod
    def of_window(cls, options: WatchOptions, spec: ModelSpec) -> Rules:
        """Return the rules for the last seconds of a source that goes on.

        There a face that just came counts only once it could have been seen to be a picture on the wall, unless that
        takes more than half of the window.
        """
        half = int(options.window_s * options.fps / 2)
        return replace(cls.of(options, spec), least_sightings=max(MIN_TRACK_FRAMES, min(MIN_STILL_PATCHES, half)))


@dataclass(frozen=True, slots=True, eq=False)
class FaceAppearance:
    """What a face's picture says in addition to its score.

    Its colors distinguish it from other faces; its patch shows whether it moves by itself; its look whether the model
    was calibrated on such faces.
    """

    quality: Quality
    colors: Colors
    patch: Patch | None = None
    look: Look | None = None


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
        size_wh: width and height of the frame in pixels.
    """

    index: int
    pts_seconds: float
    faces: list[Face] = field(default_factory=list)
    probabilities: NDArray[np.float32] | None = None
    picture: Colors | None = None
    appearances: list[FaceAppearance] = field(default_factory=list)
    size_wh: tuple[int, int] = (0, 0)

    def describe(
        self, frame: Frame, small_rgb: NDArray[np.uint8], crops: NDArray[np.uint8] | None, spec: ModelSpec
    ) -> None:
        """Fill in the rest while the pixels are at hand: the frame, the same in small, and what the network gets."""
        self.size_wh = frame.width_px, frame.height_px
        self.picture = picture_colors(small_rgb)
        if crops is not None:
            self.appearances = [
                _appearance(frame, small_rgb, face, crop, spec) for face, crop in zip(self.faces, crops, strict=True)
            ]


def _appearance(
    frame: Frame, small_rgb: NDArray[np.uint8], face: Face, crop: NDArray[np.uint8], spec: ModelSpec
) -> FaceAppearance:
    quality, inner = assess(face, crop, (frame.width_px, frame.height_px), spec), inner_face(crop, spec)
    look = look_of(face, inner, quality.blur, spec)
    return FaceAppearance(quality, face_colors(inner), patch_of(frame, small_rgb, face), look)


@dataclass(frozen=True, slots=True)
class Judgment:
    """What the scores say; its fields are those of `Verdict`."""

    label: Label
    fake_probability: float | None
    interval: Interval | None
    deciding_track: int | None
    reason: Reason | None
    notes: tuple[str, ...]
    tracks: tuple[Track, ...]
    frames: tuple[FrameResult, ...]

    @property
    def detail(self) -> str:
        """All that is worth knowing, in one line; faces are counted from 1."""
        background = [
            f"background face {track.track + 1} looks fake; it did not decide"
            for track in self.tracks
            if track.background and track.label is Label.FAKE
        ]
        return "; ".join([*background, *self.notes])


def judge(
    scored: Sequence[ScoredFrame],
    rules: Rules,
    *,
    failure: ServerError | None = None,
    complete: bool = True,
    weigh_motion: bool = True,
) -> Judgment:
    """Follow the faces through frames in order of time, score the tracks and decide.

    `failure` ended the analysis before its time and makes it INCONCLUSIVE; `complete` says that the input has no
    other frames. Without `weigh_motion` a picture on the wall may decide: a preview that takes a millisecond.
    """
    lying = _Lying.of(scored)
    frames = tuple(_followed(scored, rules, lying))
    tracks = score_tracks(
        frames,
        strategy=rules.strategy,
        threshold=rules.threshold,
        complete=complete,
        at_least=rules.least_sightings,
    )
    tracks = _with_looks(tracks, scored, frames, rules.calibration)
    tracks = tuple(_open_where_left(track, rules) for track in tracks)
    patches = _patches_by_track(scored, frames) if weigh_motion else {}
    decision = decide(tracks, frames, patches, strategy=rules.strategy, threshold=rules.threshold)
    if failure is None and decision is not None:
        label = Label.FAKE if decision.fake_probability >= rules.threshold else Label.REAL
        notes = tuple(filter(None, (decision.note, lying.note, _note_on_quality(frames))))
        if left_open := _left_open(decision, rules):
            return Judgment(
                Label.INCONCLUSIVE, None, None, None, left_open[0], (left_open[1], *notes), decision.tracks, frames
            )
        return Judgment(
            label, decision.fake_probability, decision.interval, decision.track, None, notes, decision.tracks, frames
        )
    reason, why = _reason(scored, frames, rules, failure, complete=complete)
    notes = (lying.note, why) if reason is Reason.POOR_FACES and lying.note else (why,)
    return Judgment(Label.INCONCLUSIVE, None, None, None, reason, notes, tracks, frames)


@dataclass(frozen=True, slots=True)
class _Lying:
    """Whether the picture as a whole lies on its side or upside down, by its heads."""

    note: str = ""

    @classmethod
    def of(cls, scored: Sequence[ScoredFrame]) -> _Lying:
        """Look at the surest face of every frame."""
        rolls = [frame.faces[0].roll_deg or 0.0 for frame in scored if frame.faces]
        lying = [roll for roll in rolls if abs(roll) >= LYING_DEG]
        if len(lying) <= LYING_SHARE * len(rolls):
            return cls()
        turned, _ = Counter(round(roll / 90) * 90 % 360 for roll in lying).most_common(1)[0]
        how = "be upside down" if turned == 180 else f"lie on its side, turned by {turned} degrees clockwise"
        return cls(
            f"the picture may {how}: so are the heads in {len(lying)} of {len(rolls)} frames with a face; turn it "
            "upright and analyze it again"
        )

    def spares(self, face: Face, rules: Rules) -> bool:
        """Return whether a face may count: upright "faces" of a picture that lies are mostly none."""
        return not self.note or (rules.turns_heads and abs(face.roll_deg or 0.0) >= LYING_DEG)


def _followed(scored: Sequence[ScoredFrame], rules: Rules, lying: _Lying) -> Iterator[FrameResult]:
    tracker = Tracker()
    for frame in scored:
        appearances: Sequence[FaceAppearance | None] = frame.appearances or [None] * len(frame.faces)
        # Places are compared in the pixels of the first frame: the resolution may change on the way.
        factors = [first / max(1, size) for first, size in zip(scored[0].size_wh, frame.size_wh, strict=True)]
        detections = []
        for face, look in zip(frame.faces, appearances, strict=True):
            place = face if frame.size_wh == scored[0].size_wh else face.scaled(*factors)
            detections.append(Detection(place.box_xyxy, place.landmarks_xy, None if look is None else look.colors))
        ids = tracker.update(detections, pts_seconds=frame.pts_seconds, picture=frame.picture)
        scores = [None] * len(ids) if frame.probabilities is None else [float(p) for p in frame.probabilities]
        faces = []
        for track, face, look, score in zip(ids, frame.faces, appearances, scores, strict=True):
            quality = Quality(1.0, ()) if look is None else look.quality
            if max(face.width_px, face.height_px) < max(rules.min_face_px, rules.min_face_share * min(frame.size_wh)):
                quality = quality.without(Concern.TINY)
            if not lying.spares(face, rules):
                quality = quality.without(Concern.EXTREME_POSE)
            box, points = _as_tuple(face.box_xyxy), _as_points(face.landmarks_xy)
            faces.append(FaceScore(track, box, face.confidence, score, quality.weight, quality.concerns, points))
        yield FrameResult(frame.index, frame.pts_seconds, tuple(faces), frame.size_wh)


def _patches_by_track(scored: Sequence[ScoredFrame], frames: Sequence[FrameResult]) -> dict[int, list[Patch]]:
    patches: dict[int, list[Patch]] = {}
    for frame, result in zip(scored, frames, strict=True):
        for look, face in zip(frame.appearances, result.faces, strict=False):
            if look.patch is not None:
                patches.setdefault(face.track, []).append(look.patch)
    return patches


def _with_looks(
    tracks: tuple[Track, ...],
    scored: Sequence[ScoredFrame],
    frames: Sequence[FrameResult],
    calibration: Calibration | None,
) -> tuple[Track, ...]:
    """Return the tracks with the mean look of their faces, and how unlike those of the calibration that is."""
    looks: dict[int, list[Look]] = {}
    for frame, result in zip(scored, frames, strict=True):
        for appearance, face in zip(frame.appearances, result.faces, strict=False):
            if appearance.look is not None and face.takes_part:
                looks.setdefault(face.track, []).append(appearance.look)
    known = None if calibration is None else calibration.looks
    found = []
    for track in tracks:
        if track.track not in looks:
            found.append(track)
            continue
        mean = np.mean(looks[track.track], axis=0)
        far = None if known is None else unlikeness(mean, known)
        found.append(replace(track, unlikeness=far, look=tuple(mean.tolist())))
    return tuple(found)


def _open_where_left(track: Track, rules: Rules) -> Track:
    left_open = _abstained(track, track.fake_probability, track.interval, rules)
    return replace(track, label=Label.INCONCLUSIVE) if left_open else track


def _left_open(decision: Decision, rules: Rules) -> tuple[Reason, str] | None:
    """Return why the verdict is left open; None where it is not."""
    track = next(track for track in decision.tracks if track.track == decision.track)
    return _abstained(track, decision.fake_probability, decision.interval, rules)


def _abstained(
    track: Track, fake_probability: float, interval: Interval | None, rules: Rules
) -> tuple[Reason, str] | None:
    if rules.calibration is None:
        return None
    return abstention(
        fake_probability,
        interval if track.num_frames > 1 else None,  # of a single frame everything is possible
        track.look,
        rules.calibration,
        rules.threshold,
        knows_scores=rules.knows_scores,
    )


def _as_tuple(box_xyxy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in box_xyxy)
    return left, top, right, bottom


def _as_points(landmarks_xy: NDArray[np.float32] | None) -> tuple[tuple[float, float], ...] | None:
    return None if landmarks_xy is None else tuple((float(x), float(y)) for x, y in landmarks_xy)


def _frames(count: int, kind: str = "") -> str:
    return f"{count} {kind}frame" + ("" if count == 1 else "s")


def _reason(
    scored: Sequence[ScoredFrame],
    frames: Sequence[FrameResult],
    rules: Rules,
    failure: ServerError | None,
    *,
    complete: bool,
) -> tuple[Reason, str]:
    if failure is not None:
        reason = Reason.SERVER_ERROR if isinstance(failure, InferenceError) else Reason.SERVER_UNAVAILABLE
        answered = sum(frame.probabilities is not None for frame in scored)
        return reason, f"after {_frames(answered, 'scored ')}: {failure}"
    if not scored:
        return Reason.UNDECODABLE, "the file opens, but no frame of it could be decoded; it may be damaged"
    faces = [face for frame in frames for face in frame.faces]
    if not faces:
        return Reason.NO_FACE, f"no face was found in {_frames(len(scored))}; is a face visible and large enough?"
    sightings = Counter(face.track for face in faces)
    longest = max(sightings.values())
    if longest >= num_frames_needed(len(frames), longest, complete=complete, at_least=rules.least_sightings):
        # Seen often enough: what is missing is quality.
        left_out = [face for face in faces if face.weight == 0]
        return Reason.POOR_FACES, (
            f"{len(left_out)} of {len(faces)} faces found are too poor to judge ({_concerns(left_out)}); "
            "use a larger or sharper recording"
        )
    advice = "sample more: raise `num_frames` or `fps`"
    if rules.least_sightings > MIN_TRACK_FRAMES:
        advice = f"a face counts once it was scored on {rules.least_sightings}: wait, or raise `fps`"
    return Reason.TOO_FEW_FRAMES, (
        f"no face was found often enough: the most frequent one on {longest} of {_frames(len(frames))}; {advice}"
    )


def _note_on_quality(frames: Sequence[FrameResult]) -> str:
    faces = [face for frame in frames for face in frame.faces]
    poor = [face for face in faces if face.concerns]
    if not poor:
        return ""
    verb = "counts" if len(poor) == 1 else "count"
    return f"{len(poor)} of {len(faces)} pictures of faces {verb} less or not at all ({_concerns(poor)})"


def _concerns(faces: Sequence[FaceScore]) -> str:
    """Return how often each concern occurs, the most frequent first."""
    counts = Counter(concern for face in faces for concern in face.concerns)
    return ", ".join(f"{number} {CONCERN_WORDS[concern]}" for concern, number in counts.most_common())
