"""The timeline of a result: a lane for each face, and its axis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

from deepfake_client.result.words import agreeing_percent
from deepfake_gateway.web.language import Language
from deepfake_gateway.web.words import concern_words, label_words

LANE_HEIGHT_PX: Final = 80
MOST_TICKS: Final = 8
_MARGIN_PX: Final = 6
_COLORS: Final = {"FAKE": "fake", "REAL": "real", "INCONCLUSIVE": "inc"}
_TICKS_S: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """A face on one frame: place in percent from the left and pixels from the top, and what to say of it."""

    x: float
    y: float
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
    numbers: tuple[str, ...]
    """Score, interval, frames, their side, variance, longest run, and time seen: for the table of all numbers."""

    def of_points(self, points: tuple[Point, ...], first: float, last: float) -> Lane:
        """Return the lane with other points, and its band from `first` to `last`, in percent of its width."""
        width = round(max(last - first, 0.5), 2)
        return replace(self, points=points, stretches=(), band_x=first, band_width=width)


def lanes_of(say: Language, verdict: Json) -> list[Lane]:
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
    return [_lane(say, verdict, track, span_s) for track in tracks]


def span_of(verdict: Json) -> float:
    """Return the seconds that a lane is wide: up to the last frame, and a little more."""
    times = [frame["pts_seconds"] for frame in verdict["frames"]]
    if len(times) < 2:
        return max(1.0, 2 * times[0]) if times else 1.0
    step = (times[-1] - times[0]) / (len(times) - 1)
    return float(times[-1] + step / 2) or 1.0


def ticks_of(say: Language, span_s: float) -> list[tuple[float, str]]:
    """Return the marks of the time axis: percent from the left, and the time in words."""
    step = next((step for step in _TICKS_S if span_s / step <= MOST_TICKS), _TICKS_S[-1])
    count = int(span_s / step) + 1
    return [
        (round(100 * number * step / span_s, 2), say.clock(number * step, tenths=step < 1)) for number in range(count)
    ]


def height_of(probability: float) -> float:
    """Return the place of a score in a lane, in pixels from the top."""
    return round(LANE_HEIGHT_PX - _MARGIN_PX - probability * (LANE_HEIGHT_PX - 2 * _MARGIN_PX), 1)


def kind_of(track: Json) -> str:
    """Return the class of a track's color: it has one only where the track is judged."""
    return _COLORS[track["label"]] if track["counted"] and not track["background"] else "inc"


def _lane(say: Language, verdict: Json, track: Json, span_s: float) -> Lane:
    seen = [
        (frame, face) for frame in verdict["frames"] for face in frame["faces"] if face["track"] == track["track"]
    ]
    points = tuple(
        _point(say, verdict, frame, face, span_s) for frame, face in seen if face["fake_probability"] is not None
    )
    judged = track["counted"] and not track["background"]
    number, score = track["track"] + 1, say.number(track["fake_probability"])
    low, high = track["interval"]["low"], track["interval"]["high"]
    first, last = (_place(verdict, track[f"{end}_pts_seconds"], span_s) for end in ("first", "last"))
    tag = f"{label_words(say, track['label'])} {score}" if judged else say.say("did not decide")
    frames = say.say_of("%(number)s frame", "%(number)s frames", track["num_frames"])
    interval = say.say("%(low)s to %(high)s", low=say.number(low), high=say.number(high))
    label = say.say(
        "Face %(face)s: %(tag)s; score %(score)s, interval %(interval)s, %(frames)s, %(out)s of them left out, "
        "threshold %(threshold)s",
        face=number, tag=tag, score=score, interval=interval, frames=frames,
        out=say.whole(sum(point.left_out for point in points)), threshold=say.number(verdict["threshold"]),
    )  # fmt: skip
    consistency = track["consistency"]
    return Lane(
        number=number,
        track=track["track"],
        kind=kind_of(track),
        tag=tag,
        small=_small(say, verdict, track, frames),
        label=label,
        points=points,
        stretches=tuple(_stretches(say, seen, span_s)),
        band_x=round(first, 2),
        band_width=round(max(last - first, 0.5), 2),
        band_y=height_of(high),
        band_height=round(max(height_of(low) - height_of(high), 1.0), 1),
        threshold_y=height_of(verdict["threshold"]),
        numbers=(
            say.number(track["fake_probability"], 4),
            say.say("%(low)s to %(high)s", low=say.number(low, 4), high=say.number(high, 4)),
            say.whole(track["num_frames"]),
            _side(say, verdict, track),
            say.number(consistency["score_variance"], 4),
            say.whole(consistency["longest_run"]),
            " – ".join(say.clock(track[f"{end}_pts_seconds"], tenths=True) for end in ("first", "last")),
        ),
    )


def _small(say: Language, verdict: Json, track: Json, frames: str) -> str:
    side, decides = _side(say, verdict, track), track["track"] == verdict["deciding_track"]
    if len(verdict["frames"]) == 1 and track["counted"] and not track["background"]:
        return say.say("decides") if decides else ""
    if decides:
        return say.say("decides; %(frames)s, %(side)s", frames=frames, side=side)
    if track["counted"] and not track["background"]:
        start = say.clock(track["first_pts_seconds"])
        return say.say("%(frames)s from %(time)s, %(side)s", frames=frames, time=start, side=side)
    if track["background"]:
        return say.say("%(frames)s; a picture, or too poor beside the others", frames=frames)
    return say.say("%(frames)s; seen too rarely or too poorly to count", frames=frames)


def _side(say: Language, verdict: Json, track: Json) -> str:
    percent = agreeing_percent(track["consistency"]["agreeing_share"])
    if track["fake_probability"] >= verdict["threshold"]:
        return say.say("%(percent)s%% above the threshold", percent=percent)
    return say.say("%(percent)s%% below the threshold", percent=percent)


def _place(verdict: Json, seconds: float, span_s: float) -> float:
    """Return where a time is, in percent from the left; a single frame stands in the middle."""
    return 100 * seconds / span_s if len(verdict["frames"]) > 1 else 50.0


def _point(say: Language, verdict: Json, frame: Json, face: Json, span_s: float) -> Point:
    words = ", ".join(concern_words(say, concern) for concern in face["concerns"])
    left_out = not face["weight"]
    title = f"{say.clock(frame['pts_seconds'], tenths=True)}: {say.number(face['fake_probability'])}"
    if words:
        how = say.say("left out: %(why)s", why=words) if left_out else say.say("counts less: %(why)s", why=words)
        title += f" ({how})"
    return Point(
        round(_place(verdict, frame["pts_seconds"], span_s), 2), height_of(face["fake_probability"]), left_out, title
    )


def _stretches(say: Language, seen: list[tuple[Json, Json]], span_s: float) -> list[Stretch]:
    """Return where a face is seen on two frames or more in a row and takes no part."""
    found = []
    for left_out, group in groupby(seen, key=lambda item: not item[1]["weight"]):
        run = list(group)
        if not left_out or len(run) < 2:
            continue
        start, end = run[0][0]["pts_seconds"], run[-1][0]["pts_seconds"]
        concerns = run[0][1]["concerns"]
        words = concern_words(say, concerns[0]) if concerns else say.say("left out")
        found.append(Stretch(round(100 * start / span_s, 2), round(100 * (end - start) / span_s, 2), words))
    return found
