"""What a report says of a verdict, in words and rows: the same on its page and in its PDF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from deepfake_client.analysis.judging.aggregation import num_frames_needed
from deepfake_client.options import AnalyzeOptions
from deepfake_client.report.plots import track_styles
from deepfake_client.result.times import day_and_time, duration, stretch
from deepfake_client.result.verdict import FaceScore, Label, Track, Verdict
from deepfake_client.result.words import CONCERN_WORDS, REASON_SENTENCES, sentence, side_words
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.media.sampling import Sampling

READING: Final = (
    "Each face gets a score of its own, made of its frames. The video is as fake as its most suspicious face that "
    "was seen often enough. A picture on the wall, which never moves by itself, and a face that is much poorer than "
    "others are background and do not decide.",
    "FAKE means that this score reaches the threshold. It is a reason to look closer, no proof. REAL means that the "
    "model saw nothing that it knows; a forgery of another kind than it was trained on may pass, and so may one "
    "between the frames that were looked at.",
    "The 95% interval says how far the score may lie elsewhere, given how the frames differ. An interval across the "
    "threshold is a close call. It does not say how often the model errs.",
    "Above or below: the share of a face's frames on the side of the threshold where its score lies. The "
    "longest fake run is the most frames in a row on the fake side. A fake that shows in all frames is another thing "
    "than one bad frame.",
    "Faces that are tiny, blurred, turned away or cut off count less, or not at all; the reason is in the tables.",
)
"""How to read a report."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """By which a file can be known again, whatever it is called.

    Attributes:
        size_bytes: how many bytes it has.
        sha256: lower-case hexadecimal SHA-256 of them.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReportContext:
    """What a report says in addition to the verdict.

    Attributes:
        spec: the contract of the model.
        options: how the input was analyzed.
        file: what was analyzed; None for what is no file, or is not known any more.
        analyzed_at: when the verdict was made, an aware time; None where nobody knows.
        kept_until: when the service that analyzed the file removes it, an aware time; None where nobody removes it.
    """

    spec: ModelSpec
    options: AnalyzeOptions
    file: FileFacts | None = None
    analyzed_at: datetime | None = None
    kept_until: datetime | None = None


def file_facts(source: str) -> FileFacts | None:
    """Read a file and return its facts; None for what is no file, such as an address, or cannot be read."""
    path = Path(source)
    try:
        return FileFacts(path.stat().st_size, sha256_file(path)) if path.is_file() else None
    except OSError:
        return None


def origin(context: ReportContext) -> list[str]:
    """Say when which bytes were analyzed, and until when they are kept, as far as it is known, as sentences."""
    told = []
    if context.analyzed_at is not None:
        told.append(f"Analyzed on {day_and_time(context.analyzed_at)}.")
    if context.file is not None:
        told.append(f"File: {context.file.size_bytes:,} bytes, SHA-256 {context.file.sha256}.")
    if context.kept_until is not None:
        told.append(f"The service that analyzed the file keeps it until {day_and_time(context.kept_until)}.")
    return told


def headline(verdict: Verdict) -> str:
    """Say in one or two sentences what was found, or why nothing was."""
    if verdict.reason is not None:
        return REASON_SENTENCES[verdict.reason]
    face = (verdict.deciding_track or 0) + 1
    score, threshold = f"{verdict.fake_probability:.3f}", f"the threshold of {verdict.threshold:g}"
    found = f"No face that counts looks fake: the highest score ({score}, face {face}) is below {threshold}."
    if verdict.label is Label.FAKE:
        found = f"Face {face} looks fake: the fake probability of {score} reaches {threshold}."
    return f"{found} {_closeness(verdict)}".strip()


def _closeness(verdict: Verdict) -> str:
    """Say what an interval across the threshold means."""
    interval = verdict.interval
    if interval is None or not interval.low < verdict.threshold <= interval.high:
        return ""
    if len(verdict.frames) == 1:
        return "One picture does not show how far this score may lie elsewhere."
    return "It is a close call: the score may as well lie on the other side."


def judged_first(track: Track) -> tuple[bool, float]:
    """Sort faces that take part in the verdict before others, and then the most suspicious first."""
    return not track.takes_part, -track.fake_probability


def track_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """Return what is known of each face, those that were judged first: track, color, concerns, what was left out."""
    styles = track_styles(verdict)
    rows = []
    usable = Counter(face.track for frame in verdict.frames for face in frame.faces if face.takes_part)
    needed = num_frames_needed(len(verdict.frames), max(usable.values(), default=0))
    for track in sorted(verdict.tracks, key=judged_first):
        faces = [face for frame in verdict.frames for face in frame.faces if face.track == track.track]
        unscored = sum(face.fake_probability is None for face in faces)
        left_out = len(faces) - unscored - usable[track.track]
        rows.append(
            {
                "track": track,
                "color": styles[track.track][0],
                "seen": stretch(track.first_pts_seconds, track.last_pts_seconds),
                "side": side_words(track, verdict.threshold),
                "concerns": _concerns(faces),
                "left_out": left_out,
                "unscored": unscored,
                "reason": _reasons(rare=len(faces) < needed, poor=left_out > 0, unscored=unscored > 0),
            }
        )
    return rows


def _reasons(*, rare: bool, poor: bool, unscored: bool) -> str:
    """Say why a track has too few usable faces to count."""
    seen = [words for words, holds in (("too rarely", rare), ("too poorly", poor)) if holds]
    reasons = [f"seen {' and '.join(seen)}"] if seen else []
    return ", ".join([*reasons, "not always scored"] if unscored else reasons)


def _concerns(faces: Sequence[FaceScore]) -> str:
    """Return the concerns of a track's faces with the number of frames, most frequent first."""
    counts = Counter(CONCERN_WORDS[concern] for face in faces for concern in face.concerns)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none"


def sampling_text(sampling: Sampling) -> str:
    """Say which frames were asked for."""
    where = "evenly spaced in time" if sampling.mode == "uniform" else "near keyframes (fast sampling)"
    if sampling.fps is not None:
        return f"{sampling.fps:g} frames per second, {where}"
    return f"{sampling.num_frames} frames, {where}"


def frames_text(verdict: Verdict, sampling: Sampling) -> str:
    """Say which frames were asked for, and at which times some were looked at."""
    times = [frame.pts_seconds for frame in verdict.frames]
    text = f"{sampling_text(sampling)}; {len(times)} looked at"
    if len(times) > 1:
        step = (times[-1] - times[0]) / (len(times) - 1)
        text += f", from {stretch(times[0], times[-1])}, one every {duration(step)} on average"
    return text + (f"; {verdict.frames_saved} not needed any more" if verdict.frames_saved else "")


def warnings(verdict: Verdict, spec: ModelSpec) -> list[str]:
    """Return what should be known before the score is used, as sentences."""
    texts = (*_own_threshold(verdict, spec), *verdict.notes(), *filter(None, [verdict.detail]))
    return [sentence(text) for text in texts]


def _own_threshold(verdict: Verdict, spec: ModelSpec) -> list[str]:
    """Say that the threshold is not the one that the model was made for."""
    if verdict.threshold == spec.threshold:
        return []
    text = f"the threshold of {verdict.threshold:g} was chosen by hand; the model's own is {spec.threshold:g}"
    if verdict.fake_probability is None:
        return [text]
    reaches = "reaches" if verdict.fake_probability >= spec.threshold else "does not reach"
    return [f"{text}, which the score {reaches}"]


def stages(verdict: Verdict) -> list[tuple[str, float, float]]:
    """Return name, seconds and share of the total of each stage."""
    timing = verdict.timing_s
    total = timing.total or 1.0
    stages = (
        ("decode", timing.decode),
        ("detect faces", timing.detect),
        ("crop", timing.crop),
        ("server", timing.infer),
        ("aggregate", timing.aggregate),
    )
    return [(name, seconds, min(1.0, seconds / total)) for name, seconds in stages]
