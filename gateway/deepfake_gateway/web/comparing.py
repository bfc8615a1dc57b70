"""Two results of the same file side by side: what differs between them, and what that says."""

from __future__ import annotations

from dataclasses import dataclass

from deepfake_gateway.intake.problems import Problem, without_verdict
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.web.lanes import Lane, lanes_of
from deepfake_gateway.web.language import Language
from deepfake_gateway.web.words import Json, facts_of, headline, numbers_of


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two results."""

    analysis: Analysis
    headline: str
    lanes: list[Lane]


def sides_of(say: Language, one: Analysis, two: Analysis) -> list[Side]:
    """Return both results; Problem 409 where they are of different files, or one has no verdict."""
    if one.sha256 != two.sha256:
        raise Problem(409, "these are results of different files; compare two results of the same file")
    return [
        Side(analysis, headline(say, _verdict(analysis)), lanes_of(say, _verdict(analysis)))
        for analysis in (one, two)
    ]


def difference_of(say: Language, one: Analysis, two: Analysis) -> str:
    """Return in a sentence what differs."""
    first, second = _verdict(one), _verdict(two)
    if first["label"] != second["label"]:
        return say.say("The verdicts differ.")
    scores = first["fake_probability"], second["fake_probability"]
    if None in scores:
        return say.say("Both say the same.")
    moved = say.number(abs(scores[0] - scores[1]))
    if moved == say.number(0):
        return say.say("Both say the same, with the same score.")
    inside = first["interval"]["low"] <= scores[1] <= first["interval"]["high"]
    if inside:
        return say.say("Both say the same; the scores differ by %(moved)s, within the interval.", moved=moved)
    return say.say("Both say the same, but the scores differ by %(moved)s, more than the interval.", moved=moved)


def rows_of(say: Language, one: Analysis, two: Analysis) -> list[tuple[str, str, str]]:
    """Return the names and both values of what differs."""
    first, second = (
        [*numbers_of(say, side, _verdict(side)), *facts_of(say, side, _verdict(side))] for side in (one, two)
    )
    values, others = dict(first), dict(second)
    times = {say.say("Took"), say.say("Time by stage")}
    return [
        (name, values.get(name, "–"), others.get(name, "–"))
        for name in dict.fromkeys([*values, *others])
        if values.get(name) != others.get(name) and name not in times
    ]


def _verdict(analysis: Analysis) -> Json:
    if analysis.verdict is None:
        raise without_verdict(analysis)
    return analysis.verdict
