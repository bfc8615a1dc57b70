"""What pages say about a verdict or a failure, for everybody first: sentences, and names with values."""

from __future__ import annotations

from typing import Any, Final

from deepfake_client.result.words import CONCERN_WORDS, REASON_SENTENCES, REASON_WORDS, mark
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.web.language import Language

Json = dict[str, Any]

LABELS: Final = {"FAKE": mark("FAKE"), "REAL": mark("REAL"), "INCONCLUSIVE": mark("INCONCLUSIVE")}
STATES: Final = {
    "queued": mark("waiting"),
    "running": mark("running"),
    "done": mark("done"),
    "failed": mark("no result"),
    "canceled": mark("canceled"),
}
SHORT_ERRORS: Final = {
    "MediaOpenError": mark("cannot be read as a video or picture"),
    "MediaLimitError": mark("larger or longer than is accepted"),
    "SandboxError": mark("took too much time or memory"),
    "MediaAwayError": mark("the file could not be fetched"),
    "InternalError": mark("this service failed"),
    "QuotaError": mark("the key's video for the day is used up"),
}
OF_FILE: Final = frozenset({"MediaOpenError", "MediaLimitError", "SandboxError"})
"""Errors that the same file will have again."""
_FRONT: Final = mark("Send a part in which a face looks towards the camera.")
_MORE: Final = mark("Look at more frames: open “Analyze again” below and set a higher number.")
_LONGER: Final = mark("Send a longer part with the face in it.")
_SHARPER: Final = mark("Send a sharper or larger version, as close to the original as you can get it.")
_CONVERT: Final = mark("If the file is damaged, download it or convert it again.")
_OF_VIDEOS: Final = frozenset({_MORE, _LONGER})
_ASK: Final = mark("If the answer stays open, ask a person who knows the field.")
_ORIGINAL: Final = mark("Send the original file, before filters and conversions, if you can get it.")
_LATER: Final = mark("Send the file again in a moment.")
_AGAIN: Final = mark("Watch the source again in a moment.")
_TOMORROW: Final = mark("Send the file again after midnight (UTC).")
_TELL: Final = mark("Tell whoever runs this service, if it goes on.")
_KINDS: Final = mark("Send a video (MP4, WebM, MOV, MKV, AVI) or a picture (JPEG, PNG, WebP, HEIC).")
_SHORTER: Final = mark("Send a shorter part, or a smaller version of it.")
ADVICE: Final = {
    "no_face": (_FRONT, _MORE),
    "too_few_frames": (_MORE, _LONGER),
    "poor_faces": (_SHARPER, _FRONT),
    "near_threshold": (_LONGER, _SHARPER, _ASK),
    "out_of_distribution": (_SHARPER, _ORIGINAL),
    "undecodable": (_CONVERT,),
    "server_unavailable": (_LATER, _TELL),
    "server_error": (_LATER, _TELL),
    "MediaOpenError": (_KINDS, _CONVERT),
    "MediaLimitError": (_SHORTER,),
    "SandboxError": (_SHORTER, _CONVERT),
    "MediaAwayError": (_LATER, _TELL),
    "QuotaError": (_TOMORROW,),
    "ServerUnavailableError": (_LATER, _TELL),
    "ServerTimeoutError": (_LATER, _TELL),
    "ServerBusyError": (_LATER,),
}
"""What would help where there is no answer, by the reason of a verdict or the type of an error."""


WATCH_STATES: Final = {
    "queued": mark("waiting"),
    "running": mark("watched now"),
    "done": mark("ended"),
    "failed": mark("broke off"),
    "canceled": mark("ended"),
}
_PLAYER: Final = mark("Check the address in a video player, on a machine in the same network as this service.")
_CAMERA: Final = mark("Check that the source is on, and that its user and password are right.")
_SMALLER: Final = mark("Let the source send a smaller picture.")
LIVE_ADVICE: Final = {
    "MediaOpenError": (_PLAYER, _CAMERA),
    "MediaNotFoundError": (_PLAYER,),
    "MediaLimitError": (_SMALLER,),
    "SandboxError": (_SMALLER, _TELL),
    "ServerUnavailableError": (_AGAIN, _TELL),
    "ServerTimeoutError": (_AGAIN, _TELL),
    "ServerBusyError": (_AGAIN,),
}
"""What would help where a live source is watched no more, by the type of the error."""


PROBLEMS: Final = {
    403: mark("This is not allowed"),
    404: mark("There is nothing here"),
    408: mark("It took too long"),
    409: mark("This is not possible now"),
    413: mark("The file is too large"),
    415: mark("This kind of file is not taken"),
    422: mark("Something does not fit"),
    429: mark("Too much at once"),
    503: mark("This does not work at the moment"),
}
_OTHER_PROBLEM: Final = mark("This does not work")


def problem_words(say: Language, status: int) -> str:
    """Return why a request was refused, in a few words."""
    return say.say(PROBLEMS.get(status, _OTHER_PROBLEM))


def live_advice(say: Language, error_type: str | None) -> list[str]:
    """Return what would help, as sentences."""
    return [say.say(text) for text in LIVE_ADVICE.get(error_type or "", (_AGAIN, _TELL) if error_type else ())]


def watch_state_words(say: Language, status: str) -> str:
    """Return where a watch is, in words."""
    return say.say(WATCH_STATES[status])


def label_words(say: Language, label: str) -> str:
    """Return REAL, FAKE or INCONCLUSIVE in words."""
    return say.say(LABELS[label])


def state_words(say: Language, status: str) -> str:
    """Return where an analysis is, in words."""
    return say.say(STATES[status])


def concern_words(say: Language, concern: str) -> str:
    """Return why a face counts less, in words."""
    return say.say(CONCERN_WORDS[concern])


def short_reason(say: Language, reason: str) -> str:
    """Return why a verdict is INCONCLUSIVE, in a few words."""
    return say.say(REASON_WORDS[reason])


def short_error(say: Language, error_type: str | None) -> str:
    """Return why an analysis failed, in a few words."""
    return say.say(SHORT_ERRORS.get(error_type or "", REASON_WORDS["server_error"])) if error_type else ""


def advice(say: Language, cause: str | None, *, is_image: bool) -> list[str]:
    """Return what would help, as sentences; `cause` is a verdict's reason or an error's type."""
    texts = ADVICE.get(cause or "", (_LATER, _TELL) if cause else ())
    return [say.say(text) for text in texts if not (is_image and text in _OF_VIDEOS)]


def headline(say: Language, verdict: Json) -> str:
    """Return in a few sentences what was found, and whether it is a close call."""
    if verdict["reason"] is not None:
        return say.say(REASON_SENTENCES[verdict["reason"]])
    return f"{_found(say, verdict)} {_closeness(say, verdict)}".strip()


def _closeness(say: Language, verdict: Json) -> str:
    """Say what an interval across the threshold means."""
    if not verdict["interval"]["low"] < verdict["threshold"] <= verdict["interval"]["high"]:
        return ""
    if len(verdict["frames"]) == 1:
        return say.say("One picture does not show how far this score may lie elsewhere.")
    return say.say("It is a close call: the score may as well lie on the other side of the threshold.")


def _found(say: Language, verdict: Json) -> str:
    deciding, threshold = verdict["deciding_track"], verdict["threshold"]
    faces = _taking_part(verdict, deciding)
    over = sum(face["fake_probability"] >= threshold for face in faces)
    others = [
        track for track in verdict["tracks"]
        if track["counted"] and not track["background"] and track["track"] != deciding
        and track["label"] != "INCONCLUSIVE"
    ]  # fmt: skip
    if verdict["label"] == "FAKE":
        first = say.say_of(
            "Face %(face)s looks manipulated.",
            "Face %(face)s looks manipulated in %(over)s of the %(number)s frames that show it well.",
            len(faces), face=deciding + 1, over=say.whole(over),
        )  # fmt: skip
        return f"{first} {_others(say, others)}".strip()
    if others:
        return say.say_of(
            "No face looks manipulated overall.",
            "No face looks manipulated overall; the most suspicious one does in %(over)s of the %(number)s frames "
            "that show it well.",
            len(faces), over=say.whole(over),
        )  # fmt: skip
    if over:
        return say.say_of(
            "The face does not look manipulated overall.",
            "The face does not look manipulated overall, though it does in %(over)s of the %(number)s frames "
            "that show it well.",
            len(faces), over=say.whole(over),
        )  # fmt: skip
    return say.say_of(
        "The face does not look manipulated.",
        "The face does not look manipulated in any of the %(number)s frames that show it well.",
        len(faces),
    )


def _others(say: Language, others: list[Json]) -> str:
    fakes = [track for track in others if track["label"] == "FAKE"]
    if not others:
        return ""
    if len(others) == 1 and fakes:
        return say.say("Face %(face)s does, too.", face=others[0]["track"] + 1)
    if len(others) == 1:
        return say.say("Face %(face)s does not.", face=others[0]["track"] + 1)
    if not fakes:
        return say.say("The other %(count)s faces do not.", count=say.whole(len(others)))
    return say.say("So do %(fakes)s of the other %(count)s faces.", fakes=len(fakes), count=len(others))


def _taking_part(verdict: Json, track: int | None) -> list[Json]:
    return [
        face for frame in verdict["frames"] for face in frame["faces"]
        if face["track"] == track and face["weight"] and face["fake_probability"] is not None
    ]  # fmt: skip


def threshold_by_hand(say: Language, options: Json, verdict: Json, own: float | None = None) -> str:
    """Say that the threshold was chosen by whoever sent the file; `own` is the model's, None where unknown."""
    chosen = options.get("threshold")
    if chosen is None or chosen == own:
        return ""
    if own is None:
        return say.say("The threshold was chosen by hand.")
    words = say.say("The threshold was chosen by hand; the model's own is %(own)s.", own=say.number(own))
    if verdict["fake_probability"] is None:
        return words
    if verdict["fake_probability"] >= own:
        return f"{words} " + say.say("The score reaches that one.")
    return f"{words} " + say.say("The score does not reach that one.")


def _frames(say: Language, verdict: Json) -> str:
    """Say how many frames were looked at, and when."""
    times = [frame["pts_seconds"] for frame in verdict["frames"]]
    count = say.whole(len(times))
    if len(times) < 2:
        words = say.say("%(count)s looked at", count=count)
    else:
        step = (times[-1] - times[0]) / (len(times) - 1)
        words = say.say(
            "%(count)s looked at, from %(first)s to %(last)s, one every %(step)s on average",
            count=count, step=say.duration(step, 2 if step < 1 else 1),
            first=say.clock(times[0], tenths=True), last=say.clock(times[-1], tenths=True),
        )  # fmt: skip
    if verdict["frames_saved"]:
        words += ", " + say.say("%(count)s more were not needed", count=say.whole(verdict["frames_saved"]))
    return words


def _score(say: Language, verdict: Json) -> str:
    """Say why the score is not the one of the face that decides; nothing where it is."""
    own = next(
        (track["fake_probability"] for track in verdict["tracks"] if track["track"] == verdict["deciding_track"]),
        None,
    )
    if own is None or say.number(own) == say.number(verdict["fake_probability"]):
        return ""
    return say.say(
        "%(score)s: the %(own)s of face %(face)s, less what the highest of several faces' scores exceeds by chance",
        score=say.number(verdict["fake_probability"]), own=say.number(own), face=verdict["deciding_track"] + 1,
    )  # fmt: skip


def facts_of(say: Language, analysis: Analysis, verdict: Json) -> list[tuple[str, str]]:
    """Return what was looked at, as names and values."""
    faces = [face for frame in verdict["frames"] for face in frame["faces"]]
    concerns: dict[str, int] = {}
    for face in faces:
        if not face["weight"] and face["concerns"]:
            words = concern_words(say, face["concerns"][0])
            concerns[words] = concerns.get(words, 0) + 1
    left_out = sum(not face["weight"] for face in faces)
    detail = ", ".join(f"{say.whole(count)} {words}" for words, count in concerns.items())
    judged = sum(track["counted"] and not track["background"] for track in verdict["tracks"])
    others = len(verdict["tracks"]) - judged
    counted = say.say("%(count)s judged", count=say.whole(judged))
    if others:
        counted += ", " + say.say_of("%(number)s did not decide", "%(number)s did not decide", others)
    facts = [(say.say("Frames"), _frames(say, verdict)), (say.say("Faces"), counted)]
    if analysis.is_image:
        del facts[0]
    if score := _score(say, verdict):
        facts.append((say.say("Score"), score))
    if left_out:
        facts.append((say.say("Left out"), say.say_of("%(number)s face", "%(number)s faces", left_out)))
        if detail:
            facts[-1] = (facts[-1][0], f"{facts[-1][1]}: {detail}")
    if verdict["unread_s"]:
        unread = say.say("%(time)s of the file", time=say.duration(verdict["unread_s"]))
        facts.append((say.say("Not readable"), unread))
    facts.append((say.say("Took"), say.duration(verdict["timing_s"]["total"])))
    facts.append((say.say("File's size"), f"{say.size(analysis.size_bytes)}, {analysis.media_type}"))
    facts.append((say.say("File's SHA-256"), analysis.sha256))
    return facts


def numbers_of(say: Language, analysis: Analysis, verdict: Json) -> list[tuple[str, str]]:
    """Return what only experts ask for, as names and values."""
    model, sampling = verdict["model"], analysis.options["sampling"]
    frames = sampling["num_frames"] if sampling["num_frames"] is not None else f"{sampling['fps']} fps"
    numbers = [
        (say.say("Model"), f"{model['name']}, {model['version']}"),
        (say.say("Checkpoint's SHA-256"), model["checkpoint_sha256"] or "–"),
        (say.say("Threshold"), say.number(verdict["threshold"], 4)),
    ]
    if verdict["fake_probability"] is not None:
        low, high = (say.number(verdict["interval"][end], 4) for end in ("low", "high"))
        numbers.append((say.say("Fake probability"), say.number(verdict["fake_probability"], 4)))
        numbers.append((say.say("95%% interval"), say.say("%(low)s to %(high)s", low=low, high=high)))
    numbers += [
        (say.say("Sampling"), f"{sampling['mode']}, {frames}"),
        (say.say("Score of a face"), str(analysis.options["aggregation"])),
        (say.say("Damaged packets"), say.whole(verdict["corrupt_packets"])),
    ]
    stages = ("decode", "detect", "crop", "infer", "aggregate")
    times = ", ".join(f"{stage} {say.number(verdict['timing_s'][stage])} s" for stage in stages)
    numbers.append((say.say("Time by stage"), times))
    return numbers
