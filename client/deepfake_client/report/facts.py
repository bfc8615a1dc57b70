"""What a report says of a verdict, in words and rows: the same on its page and in its PDF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepfake_client.analysis.aggregation import num_frames_needed
from deepfake_client.options import AnalyzeOptions
from deepfake_client.report.plots import track_styles
from deepfake_client.result.verdict import FaceScore, Label, Verdict
from deepfake_client.result.words import in_plain_words
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.media.sampling import Sampling


@dataclass(frozen=True, slots=True)
class ReportContext:
    """What a report says in addition to the verdict: the contract of the model, and how the input was analyzed."""

    spec: ModelSpec
    options: AnalyzeOptions


def headline(verdict: Verdict) -> str:
    """Say in a sentence what was found, or why nothing was."""
    if verdict.reason is not None:
        detail = _sentence(verdict.detail)
        return f"No verdict: {verdict.reason.value.replace('_', ' ')}. {detail}".strip()
    face = (verdict.deciding_track or 0) + 1
    score, threshold = f"{verdict.fake_probability:.3f}", f"the threshold of {verdict.threshold:g}"
    if verdict.label is Label.FAKE:
        return f"Face {face} looks fake: its fake probability of {score} reaches {threshold}."
    return f"No face that counts looks fake: the highest score ({score}, face {face}) is below {threshold}."


def track_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """Return what is known of each face, most suspicious first: its track, color, concerns and what was left out."""
    styles = track_styles(verdict)
    rows = []
    usable = Counter(face.track for frame in verdict.frames for face in frame.faces if face.takes_part)
    needed = num_frames_needed(len(verdict.frames), max(usable.values(), default=0))
    for track in sorted(verdict.tracks, key=lambda track: (not track.counted, -track.fake_probability)):
        faces = [face for frame in verdict.frames for face in frame.faces if face.track == track.track]
        unscored = sum(face.fake_probability is None for face in faces)
        left_out = len(faces) - unscored - usable[track.track]
        rows.append(
            {
                "track": track,
                "color": styles[track.track][0],
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
    counts = Counter(concern.value.replace("_", " ") for face in faces for concern in face.concerns)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none"


def sampling_text(sampling: Sampling) -> str:
    """Say which frames were asked for."""
    where = "evenly spaced in time" if sampling.mode == "uniform" else "near keyframes (fast sampling)"
    if sampling.fps is not None:
        return f"{sampling.fps:g} frames per second, {where}"
    return f"{sampling.num_frames} frames, {where}"


def warnings(verdict: Verdict) -> list[str]:
    """Return what should be known before the score is used, as sentences."""
    detail = [verdict.detail] if verdict.detail and verdict.reason is None else []
    return [f"{_sentence(text).removesuffix('.')}." for text in (*verdict.notes(), *detail)]


def _sentence(text: str) -> str:
    plain = in_plain_words(text)
    return f"{plain[:1].upper()}{plain[1:]}"


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
