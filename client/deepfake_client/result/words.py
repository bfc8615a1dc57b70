"""What the library calls a parameter, a reason or a figure, and what people read, who know no code.

Messages name parameters in backquotes (`num_frames`); the commands have a table of their own, of options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from deepfake_client.result.verdict import Track


def mark(text: str) -> str:
    """Return a text as it is, and let it be found for translation."""
    return text


REASON_SENTENCES: Final[Mapping[str, str]] = {
    "no_face": mark("No face was found, so there is nothing to judge."),
    "too_few_frames": mark("The face was seen on too few frames to say anything."),
    "poor_faces": mark("Faces were found, but too small, blurred or turned away to say anything."),
    "near_threshold": mark("The score lies where real and manipulated faces look alike to this detector."),
    "out_of_distribution": mark("The face looks unlike any that this detector was checked on."),
    "undecodable": mark("Not one picture could be read from this file."),
    "server_unavailable": mark("The judging server went away before there was an answer."),
    "server_error": mark("The judging server failed before there was an answer."),
}
"""Why a verdict is INCONCLUSIVE, by its `Reason`."""
REASON_WORDS: Final[Mapping[str, str]] = {
    "no_face": mark("no face found"),
    "too_few_frames": mark("too few frames with the face"),
    "poor_faces": mark("faces too small, blurred or turned away"),
    "near_threshold": mark("too near the threshold"),
    "out_of_distribution": mark("unlike any face that was checked"),
    "undecodable": mark("no picture could be read"),
    "server_unavailable": mark("the judging server went away"),
    "server_error": mark("the judging server failed"),
}
"""The same in a few words, for lists."""
CONCERN_WORDS: Final[Mapping[str, str]] = {
    "tiny": mark("too small"),
    "blurred": mark("blurred"),
    "extreme_pose": mark("turned away"),
    "cut_off": mark("cut off"),
}
"""Why a face counts less, by its `Concern`."""

PLAIN_NAMES: Final[Mapping[str, str]] = {
    "aggregation": "the way a face's frames become its score",
    "at_seconds": "the list of times",
    "concurrency": "the number of analyses at once",
    "duration_s": "the time to watch in seconds",
    "fps": "the number of frames per second",
    "idle_s": "the time to wait for a file to grow",
    "job_timeout_s": "the time that an analysis may take",
    "layer": "the layer of the network",
    "max_latency_s": "the delay allowed",
    "method": "the kind of heatmap",
    "min_change": "the change that is reported",
    "min_face_px": "the smallest face in pixels",
    "min_face_share": "the smallest face as a share of the picture",
    "mode": "the way frames are chosen",
    "model": "the model",
    "num_frames": "the number of frames",
    "on_slow": "what happens when the server is slow",
    "output": "the folder for results",
    "reconnects": "the number of new tries",
    "source_timeout_s": "the time to wait for the source",
    "step_s": "the time from one verdict to the next",
    "threshold": "the threshold",
    "timeout_s": "the time to wait for the server",
    "until_sure": "the early stop",
    "url": "the address",
    "window_s": "the length of the window",
}
"""What is set by those who run a service is not here, and keeps its name, which they look for."""


def in_plain_words(text: str) -> str:
    """Return a text of the library in words for everybody."""
    return re.sub(r"`([a-z0-9_.]+)`", lambda found: PLAIN_NAMES.get(found[1], found[0]), text)


def sentence(text: str) -> str:
    """Return a message of the library as a sentence in words for everybody."""
    text = in_plain_words(text)
    if re.match(r"[a-z]+([\s,;:]|$)", text):  # and not a file's name
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def concern_words(concerns: Iterable[str]) -> str:
    """Return why a face counts less, as a list."""
    return ", ".join(CONCERN_WORDS[concern] for concern in concerns)


def agreeing_percent(agreeing_share: float) -> int:
    """Return the share of frames on the score's side in percent; 100 is all of them."""
    return 100 if agreeing_share == 1 else min(99, round(100 * agreeing_share))


def side_words(track: Track, threshold: float) -> str:
    """Return how many of a face's frames lie on the side of the threshold where its score lies."""
    side = "above" if track.fake_probability >= threshold else "below"
    return f"{agreeing_percent(track.consistency.agreeing_share)}% {side}"
