"""What the result page shows, worked out of a verdict's JSON: sentences, the scale, and a lane for each face."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

LANE_HEIGHT_PX: Final = 80
_MARGIN_PX: Final = 6
MOST_MOMENTS: Final = 6

Json = dict[str, Any]

CONCERNS: Final = {
    "tiny": "too small",
    "blurred": "blurred",
    "extreme_pose": "turned away",
    "cut_off": "cut off",
}
ADVICE: Final = {
    "no_face": "Send a part in which a face is seen from the front, or look at more frames.",
    "too_few_frames": "Send a longer part with the face in it, or look at more frames.",
    "poor_faces": "Send a sharper or larger version, as close to the original as you can get it.",
    "near_threshold": "Send a longer or better part; if the answer stays open, ask a person who knows the field.",
    "out_of_distribution": "Send the original file, before filters and conversions, if you can get it.",
    "undecodable": "The file is damaged: convert it again from its source.",
    "server_unavailable": "The judging server went away: send the file again in a moment.",
    "server_error": "The judging server failed: send the file again, and tell whoever runs it.",
}
"""What would help where there is no answer."""


@dataclass(frozen=True, slots=True)
class Point:
    """A face on one frame: place in percent from the left and pixels from the top, and what to say of it."""

    x: float
    y: float
    pts_seconds: float
    left_out: bool
    title: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a lane that took no part, in percent of its width."""

    x: float
    width: float
    words: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One face over time."""

    number: int
    track: int
    kind: str
    tag: str
    small: str
    label: str
    points: tuple[Point, ...]
    stretches: tuple[Stretch, ...]
    band_x: float
    band_width: float
    band_y: float
    band_height: float
    threshold_y: float
    decides: bool


def lanes_of(verdict: Json) -> list[Lane]:
    """Return the lanes, the deciding face first, then the most suspicious."""
    span_s = span_of(verdict)
    tracks = sorted(
        verdict["tracks"],
        key=lambda track: (
            track["track"] != verdict["deciding_track"],
            not track["counted"],
            track["background"],
            -track["fake_probability"],
        ),
    )
    return [_lane(verdict, track, span_s) for track in tracks]


def span_of(verdict: Json) -> float:
    """Return the seconds that a lane is wide: up to the last frame, and a little more."""
    times = [frame["pts_seconds"] for frame in verdict["frames"]]
    if len(times) < 2:
        return max(1.0, *times) if times else 1.0
    step = (times[-1] - times[0]) / (len(times) - 1)
    return float(times[-1] + step / 2) or 1.0


def _y(probability: float) -> float:
    return round(LANE_HEIGHT_PX - _MARGIN_PX - probability * (LANE_HEIGHT_PX - 2 * _MARGIN_PX), 1)


def _lane(verdict: Json, track: Json, span_s: float) -> Lane:
    seen = [
        (frame, face) for frame in verdict["frames"] for face in frame["faces"] if face["track"] == track["track"]
    ]
    points = tuple(_point(frame, face, span_s) for frame, face in seen if face["fake_probability"] is not None)
    decides = track["track"] == verdict["deciding_track"]
    judged = track["counted"] and not track["background"]
    kind = {"FAKE": "fake", "REAL": "real"}[track["label"]] if judged else "inc"
    score = f"{track['fake_probability']:.2f}"
    number = track["track"] + 1
    agreeing = f"agreeing {100 * track['consistency']['agreeing_share']:.0f}%"
    frames = f"{track['num_frames']} frame{'s' if track['num_frames'] != 1 else ''}"
    if decides:
        small = f"decides; {frames}, {agreeing}"
    elif judged:
        small = f"{frames} from {clock(track['first_pts_seconds'])}, {agreeing}"
    elif track["background"]:
        small = f"{frames}; a picture, or too poor beside the others"
    else:
        small = f"{frames}; seen too rarely or too poorly to count"
    first, last = (100 * track[f"{end}_pts_seconds"] / span_s for end in ("first", "last"))
    interval = track["interval"]
    tag = f"{track['label']} {score}" if judged else f"did not decide, {score}"
    left_out = sum(point.left_out for point in points)
    return Lane(
        number=number,
        track=track["track"],
        kind=kind,
        tag=tag,
        small=small,
        label=f"Face {number}: {tag}, interval {interval['low']:.2f} to {interval['high']:.2f}, {frames}, "
        f"{left_out} of them left out, threshold {verdict['threshold']:.2f}",
        points=points,
        stretches=tuple(_stretches(seen, span_s)),
        band_x=round(first, 2),
        band_width=round(max(last - first, 0.5), 2),
        band_y=_y(interval["high"]),
        band_height=round(max(_y(interval["low"]) - _y(interval["high"]), 1.0), 1),
        threshold_y=_y(verdict["threshold"]),
        decides=decides,
    )


def _point(frame: Json, face: Json, span_s: float) -> Point:
    words = ", ".join(CONCERNS.get(concern, concern) for concern in face["concerns"])
    left_out = not face["weight"]
    title = f"{clock(frame['pts_seconds'], tenths=True)}: {face['fake_probability']:.2f}"
    if words:
        title += f" ({'left out: ' if left_out else 'counts less: '}{words})"
    x = round(100 * frame["pts_seconds"] / span_s, 2)
    return Point(x, _y(face["fake_probability"]), frame["pts_seconds"], left_out, title)


def _stretches(seen: list[tuple[Json, Json]], span_s: float) -> list[Stretch]:
    """Return where a face is seen on two frames or more in a row and takes no part."""
    found = []
    for left_out, group in groupby(seen, key=lambda item: not item[1]["weight"]):
        run = list(group)
        if not left_out or len(run) < 2:
            continue
        start, end = run[0][0]["pts_seconds"], run[-1][0]["pts_seconds"]
        concerns = run[0][1]["concerns"]
        words = CONCERNS.get(concerns[0], concerns[0]) if concerns else "left out"
        found.append(Stretch(round(100 * start / span_s, 2), round(100 * (end - start) / span_s, 2), words))
    return found


def headline(verdict: Json) -> str:
    """Say in one or two sentences for everybody what was found."""
    if verdict["reason"] is not None:
        reason = {
            "no_face": "No face was found, so there is nothing to judge.",
            "too_few_frames": "The face was seen on too few frames to say anything.",
            "poor_faces": "Faces were found, but too small, blurred or turned away to say anything.",
            "near_threshold": "The score lies where real and manipulated faces look alike to this detector.",
            "out_of_distribution": "The face looks unlike any that this detector was checked on.",
            "undecodable": "Not one picture could be read from this file.",
        }.get(verdict["reason"], "The judging server failed before there was an answer.")
        return f"{reason} {ADVICE.get(verdict['reason'], '')}".strip()
    deciding = verdict["deciding_track"]
    faces = [
        face for frame in verdict["frames"] for face in frame["faces"]
        if face["track"] == deciding and face["weight"] and face["fake_probability"] is not None
    ]  # fmt: skip
    over = sum(face["fake_probability"] >= verdict["threshold"] for face in faces)
    others = sum(track["counted"] and track["track"] != deciding for track in verdict["tracks"])
    frames = f"{len(faces)} readable frame{'s' if len(faces) != 1 else ''}"
    if verdict["label"] == "FAKE":
        return f"Face {deciding + 1} looks manipulated in {over} of {frames}." + (
            f" {others} other face{'s were' if others > 1 else ' was'} judged as well." if others else ""
        )
    who = "No face looks manipulated" if others else "The face does not look manipulated"
    return f"{who}; the most suspicious one does in {over} of {frames}." if over else f"{who} in any of {frames}."


def moments_of(verdict: Json) -> list[Json]:
    """Return the most suspicious faces of the deciding track: time, score and place."""
    found = [
        {"pts_seconds": frame["pts_seconds"], "score": face["fake_probability"], "box_xyxy": face["box_xyxy"]}
        for frame in verdict["frames"]
        for face in frame["faces"]
        if face["track"] == verdict["deciding_track"] and face["weight"] and face["fake_probability"] is not None
    ]
    return sorted(found, key=lambda item: -item["score"])[:MOST_MOMENTS]


def facts_of(verdict: Json) -> list[tuple[str, str]]:
    """Return what was looked at, as names and values."""
    faces = [face for frame in verdict["frames"] for face in frame["faces"]]
    concerns: dict[str, int] = {}
    for face in faces:
        if not face["weight"] and face["concerns"]:
            words = CONCERNS.get(face["concerns"][0], face["concerns"][0])
            concerns[words] = concerns.get(words, 0) + 1
    left_out = sum(not face["weight"] for face in faces)
    detail = ", ".join(f"{count} {words}" for words, count in concerns.items())
    counted = sum(track["counted"] and not track["background"] for track in verdict["tracks"])
    others = len(verdict["tracks"]) - counted
    model = verdict["model"]
    facts = [("Model", f"{model['name']}, version {model['version']}")]
    if model["checkpoint_sha256"]:
        facts.append(("Checkpoint", model["checkpoint_sha256"][:12]))
    facts += [
        ("Frames", f"{len(verdict['frames'])} looked at"),
        ("Faces", f"{counted} judged" + (f", {others} did not decide" if others else "")),
    ]
    if left_out:
        facts.append(("Left out", f"{left_out} faces: {detail}" if detail else f"{left_out} faces"))
    if verdict.get("unread_s"):
        facts.append(("Not readable", f"{verdict['unread_s']:.1f} s of the file"))
    facts.append(("Took", f"{verdict['timing_s']['total']:.1f} s"))
    return facts


def notes_of(verdict: Json) -> list[str]:
    """Return what is worth knowing about the file, as sentences."""
    notes = list(verdict.get("input_notes", ()))
    if verdict["detail"]:
        notes.append(verdict["detail"])
    if verdict["corrupt_packets"]:
        notes.append(f"{verdict['corrupt_packets']} damaged packets were left out")
    return [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in notes]


def clock(seconds: float, *, tenths: bool = False) -> str:
    """Return a time in the file as minutes and seconds."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:04.1f}" if tenths else f"{int(minutes)}:{int(rest):02d}"
