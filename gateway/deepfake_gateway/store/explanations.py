"""`Explanations`: which heatmaps were asked for, and what they show; the pictures are files beside the medium."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import sqlalchemy as sa

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.store.analysis import UNFINISHED, Status, canonical
from deepfake_gateway.store.counters import Tally
from deepfake_gateway.store.schema import EXPLANATIONS
from deepfake_gateway.tracing import current_traceparent

_UNFINISHED: Final = EXPLANATIONS.c.status.in_([status.value for status in UNFINISHED])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredExplanation:
    """One request for heatmaps, as it is stored; times in seconds since 1970."""

    id: str
    analysis_id: str
    created_at: float
    status: Status
    request: dict[str, Any]
    finished_at: float | None = None
    faces: list[dict[str, Any]] | None = None
    error_type: str | None = None
    error_detail: str | None = None
    request_id: str | None = None
    traceparent: str | None = None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the explanation of a row of SQLAlchemy's."""
        values = row._asdict()
        values["status"] = Status(values["status"])
        values["request"] = json.loads(values["request"])
        values["faces"] = None if values["faces"] is None else json.loads(values["faces"])
        return cls(**values)


class Explanations:
    """The table of explanations; safe for threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def begin(
        self, analysis_id: str, request: Mapping[str, Any], enqueue: Callable[[sa.Connection, str], None]
    ) -> StoredExplanation:
        """Return the explanation of a request; a new one is recorded and queued, both or neither.

        One that failed is tried anew.
        """
        text = canonical(request)
        same = (
            (EXPLANATIONS.c.analysis_id == analysis_id)
            & (EXPLANATIONS.c.request == text)
            & (EXPLANATIONS.c.status != Status.FAILED.value)
        )
        explanation = StoredExplanation(
            id=secrets.token_hex(16),
            analysis_id=analysis_id,
            created_at=time.time(),
            status=Status.QUEUED,
            request=dict(request),
            request_id=REQUEST_ID.get() or None,
            traceparent=current_traceparent(),
        )
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(EXPLANATIONS).where(same).limit(1)).first()
            if row is not None:
                return StoredExplanation.of(row)
            values = {
                "id": explanation.id, "analysis_id": analysis_id, "created_at": explanation.created_at,
                "status": explanation.status.value, "request": text, "request_id": explanation.request_id,
                "traceparent": explanation.traceparent,
            }  # fmt: skip
            connection.execute(EXPLANATIONS.insert().values(values))
            enqueue(connection, explanation.id)
        return explanation

    def get(self, explanation_id: str) -> StoredExplanation | None:
        """Return an explanation, or None."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(EXPLANATIONS).where(EXPLANATIONS.c.id == explanation_id)).first()
        return None if row is None else StoredExplanation.of(row)

    def of_analysis(self, analysis_id: str) -> list[StoredExplanation]:
        """Return all explanations of an analysis, the newest first."""
        query = sa.select(EXPLANATIONS).where(EXPLANATIONS.c.analysis_id == analysis_id)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(EXPLANATIONS.c.created_at.desc())).all()
        return [StoredExplanation.of(row) for row in rows]

    def ids_of(self, *analysis_ids: str) -> list[str]:
        """Return the ids of all explanations of analyses."""
        query = sa.select(EXPLANATIONS.c.id).where(EXPLANATIONS.c.analysis_id.in_(analysis_ids))
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def unfinished(self) -> int:
        """Return how many explanations wait or are being made."""
        query = sa.select(sa.func.count()).where(_UNFINISHED)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def start(self, explanation_id: str) -> StoredExplanation | None:
        """Mark an explanation as running, also one that a dead worker was making; None where it is over or gone."""
        return self.get(explanation_id) if self._change(explanation_id, Status.RUNNING) else None

    def finish(self, explanation_id: str, faces: Sequence[Mapping[str, Any]]) -> bool:
        """Store what was found; returns whether the explanation was unfinished."""
        return self._change(explanation_id, Status.DONE, finished_at=time.time(), faces=json.dumps(list(faces)))

    def fail(self, explanation_id: str, error_type: str, detail: str) -> bool:
        """Store why there is none; returns whether the explanation was unfinished."""
        values = {"finished_at": time.time(), "error_type": error_type, "error_detail": detail}
        return self._change(explanation_id, Status.FAILED, **values)

    def _change(self, explanation_id: str, status: Status, **values: Any) -> bool:
        change = EXPLANATIONS.update().where((EXPLANATIONS.c.id == explanation_id) & _UNFINISHED)
        with self._engine.begin() as connection:
            if connection.execute(change.values(status=status.value, **values)).rowcount == 0:
                return False
            if status.is_final:
                tally = Tally()
                tally.count("explanations", status=status.value)
                tally.add_up(connection)
            return True
