"""How far an analysis is, in words: its place in the queue, its frames, the time left, and what it says so far."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.store.analysis import Analysis, Filters, Status
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.web.language import Language
from deepfake_gateway.web.words import Json, label_words, short_error, short_reason, state_words

MOST_COUNTED = 100
"""Analyses ahead in the queue that are counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An analysis as a row or a page shows it; `percent` is None where the end is not known."""

    analysis: Analysis
    state: str
    so_far: str = ""
    percent: int | None = None


async def progress_of(desk: Desk, say: Language, analysis: Analysis) -> Progress:
    """Return how far an analysis is."""
    if analysis.status is Status.QUEUED:
        before = Filters(status=Status.QUEUED.value, until=analysis.created_at)
        ahead = len(await in_store(desk.store.page, before, limit=MOST_COUNTED))
        words = say.say_of("waits behind %(number)s", "waits behind %(number)s", ahead) if ahead else ""
        return Progress(analysis, words or state_words(say, analysis.status))
    if analysis.status is Status.RUNNING:
        seen = await in_store(desk.store.last_progress, analysis.id)
        return _running(say, analysis, seen)
    return Progress(analysis, state_words(say, analysis.status), _result(say, analysis))


def _running(say: Language, analysis: Analysis, seen: Json | None) -> Progress:
    if seen is None:
        return Progress(analysis, say.say("is opened"))
    done, expected = seen["frames_done"], seen["frames_expected"]
    so_far = ""
    if seen["fake_probability"] is not None:
        label, score = label_words(say, seen["label"]), say.number(seen["fake_probability"])
        so_far = say.say("%(label)s so far, %(score)s", label=label, score=score)
    elif seen["label"] is not None:
        so_far = say.say("no face to judge so far")
    if not expected:
        return Progress(analysis, say.say_of("%(number)s frame", "%(number)s frames", done), so_far)
    percent = min(100, round(100 * done / expected))
    words = f"{percent} %"
    if done and done < expected and analysis.started_at is not None:
        left_s = (time.time() - analysis.started_at) * (expected - done) / done
        words += ", " + say.say("%(time)s left", time=say.duration(max(1.0, left_s), 0))
    return Progress(analysis, words, so_far, percent)


def _result(say: Language, analysis: Analysis) -> str:
    if analysis.fake_probability is not None:
        return say.number(analysis.fake_probability)
    if analysis.reason is not None:
        return short_reason(say, analysis.reason)
    return short_error(say, analysis.error_type)
