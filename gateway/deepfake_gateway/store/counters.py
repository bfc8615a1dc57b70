"""`Tally`: what is counted of jobs, in the database: workers end with their processes, and gateways are several.

A tally is added up in the transaction that changes a job, so each is counted once, whatever dies when.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deepfake_gateway.store.schema import COUNTERS

SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0)
TENTHS: Final = tuple(tenth / 10 for tenth in range(1, 11))
STAGES: Final = ("decode", "detect", "crop", "infer", "aggregate")
"""Stages in a verdict's `timing_s`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Something that is counted; with `buckets` it is a histogram, whose last bucket is open."""

    help_text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


COUNTED: Final[dict[str, Counted]] = {
    "sent": Counted("Analyses that were begun."),
    "sent_bytes": Counted("Bytes of their media."),
    "ended": Counted("Analyses that ended, by how, and by the label of their verdict.", ("status", "label")),
    "failures": Counted("Analyses that failed, by kind of error.", ("error_type",)),
    "inconclusive": Counted("Verdicts without an answer, by reason.", ("reason",)),
    "queue_wait_seconds": Counted("From being sent to a worker's start.", buckets=SECONDS),
    "analysis_seconds": Counted("From a worker's start to the verdict.", buckets=SECONDS),
    "stage_seconds": Counted("Time of the stages of analyses, which overlap.", ("stage",)),
    "video_seconds": Counted("Seconds of video that were analyzed."),
    "frames": Counted("Frames that were looked at."),
    "faces": Counted("Faces that were scored, in all frames."),
    "score": Counted("Probabilities of fake of verdicts, by checkpoint.", ("checkpoint_sha256",), TENTHS),
    "explanations": Counted("Explanations that ended, by how.", ("status",)),
    "watches_ended": Counted("Live sources that ended, by how and why.", ("status", "reason")),
    "watched_seconds": Counted("For how long live sources were watched."),
    "webhook_tries": Counted("Messages to webhooks, by what became of them.", ("outcome",)),
}
"""By name; ``/metrics`` shows them."""

Row = tuple[str, str]
"""Name and labels: canonical JSON, of a bucket with its upper bound as ``le``, of a histogram's sum with ``sum``."""


class Tally:
    """Amounts that are to be added up together."""

    def __init__(self) -> None:
        self._amounts: dict[Row, float] = defaultdict(float)

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        assert COUNTED[name].labels == tuple(labels)
        self._amounts[name, _text(labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        counted = COUNTED[name]
        assert counted.labels == tuple(labels)
        place = bisect_left(counted.buckets, value)
        bound = str(counted.buckets[place]) if place < len(counted.buckets) else "+Inf"
        self._amounts[name, _text({**labels, "le": bound})] += 1
        self._amounts[name, _text({**labels, "sum": ""})] += value

    def add_up(self, connection: sa.Connection) -> None:
        """Add all of it to the database, in a transaction of the store's."""
        if not self._amounts:
            return
        insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        new = insert(COUNTERS)
        total = {"amount": COUNTERS.c.amount + new.excluded.amount}
        # In one order for all, or two transactions would wait for each other.
        rows = [
            {"name": name, "labels": labels, "amount": amount}
            for (name, labels), amount in sorted(self._amounts.items())
        ]
        connection.execute(new.on_conflict_do_update(index_elements=["name", "labels"], set_=total), rows)


def count_end(tally: Tally, analysis: Any, verdict: Mapping[str, Any] | None) -> None:
    """Count the end of an analysis; `analysis` is its row, `verdict` the JSON of its verdict."""
    tally.count("ended", status=analysis.status, label=analysis.label or "")
    if analysis.error_type is not None:
        tally.count("failures", error_type=analysis.error_type)
    if analysis.reason is not None:
        tally.count("inconclusive", reason=analysis.reason)
    if analysis.started_at is not None:
        # Clocks of several machines may differ.
        tally.observe("queue_wait_seconds", max(0.0, analysis.started_at - analysis.created_at))
        if verdict is not None:
            tally.observe("analysis_seconds", max(0.0, analysis.finished_at - analysis.started_at))
    if verdict is not None:
        for stage in STAGES:
            tally.count("stage_seconds", verdict["timing_s"][stage], stage=stage)
        tally.count("video_seconds", seconds_of(verdict))
        tally.count("frames", len(verdict["frames"]))
        faces = [face for frame in verdict["frames"] for face in frame["faces"]]
        tally.count("faces", sum(face["fake_probability"] is not None for face in faces))
        if analysis.fake_probability is not None:
            checkpoint = analysis.checkpoint_sha256 or ""
            tally.observe("score", analysis.fake_probability, checkpoint_sha256=checkpoint)


def seconds_of(verdict: Mapping[str, Any]) -> float:
    """Return how many seconds a verdict counts for: up to the last frame looked at, and a picture for one."""
    return float(max([1.0, *(frame["pts_seconds"] for frame in verdict["frames"])]))


def amounts(connection: sa.Connection) -> Iterable[tuple[str, dict[str, str], float]]:
    """Return what was counted: name, labels as in `Row`, amount."""
    for name, labels, amount in connection.execute(sa.select(COUNTERS).order_by(COUNTERS.c.name, COUNTERS.c.labels)):
        yield name, json.loads(labels), amount


def _text(labels: Mapping[str, str]) -> str:
    return json.dumps(labels, sort_keys=True, separators=(",", ":"))
