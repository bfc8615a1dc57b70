"""`Batches`: files that were sent together, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.schema import ANALYSES, AWAITED, BATCH_ITEMS, BATCHES


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One file of a batch: its analysis, why it has none, or where it is yet to be fetched from.

    None of them, and no name, where the analysis was deleted.
    """

    file_name: str
    analysis: Analysis | None = None
    refusal: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Files that were sent together; the `fields` are options of those that are yet to be fetched."""

    id: str
    created_at: float
    name: str
    items: tuple[BatchItem, ...]
    fields: dict[str, str] = field(default_factory=dict)
    tenant: str = ""
    key_id: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


def key_of(batch_id: str, position: int) -> str:
    """Return the idempotency key of a file of a batch that a worker fetches."""
    return f"batch {batch_id} {position}"


class Batches:
    """The tables of batches; safe for threads. Of a `tenant`, there are only its own."""

    def __init__(self, engine: sa.Engine, tenant: str | None = None) -> None:
        self._engine = engine
        self._of_mine = sa.true() if tenant is None else BATCHES.c.tenant == tenant

    def add(self, batch: Batch, enqueue: Callable[[sa.Connection, str], None]) -> None:
        """Record a batch, and queue it where files of it are yet to be fetched, both or neither."""
        values = {column.name: getattr(batch, column.name) for column in BATCHES.columns}
        rows = [
            {
                "batch_id": batch.id,
                "position": position,
                "file_name": item.file_name if item.analysis is None else "",
                "analysis_id": None if item.analysis is None else item.analysis.id,
                "refusal": item.refusal,
                "url": item.url,
            }
            for position, item in enumerate(batch.items)
        ]
        with self._engine.begin() as connection:
            connection.execute(BATCHES.insert().values({**values, "fields": json.dumps(batch.fields)}))
            connection.execute(BATCH_ITEMS.insert(), rows)
            if any(item.url is not None for item in batch.items):
                enqueue(connection, batch.id)

    def settle(self, batch_id: str, position: int, analysis: Analysis | None, refusal: str | None) -> bool:
        """Record that a file was fetched and has an analysis, or why not; its address is forgotten.

        Returns whether it was awaited, or has this analysis already.
        """
        values: dict[str, Any] = {"url": None, "refusal": refusal}
        if analysis is not None:
            values |= {"analysis_id": analysis.id, "file_name": ""}
        has_it = sa.false() if analysis is None else BATCH_ITEMS.c.analysis_id == analysis.id
        with self._engine.begin() as connection:
            change = BATCH_ITEMS.update().where(_at(batch_id, position) & (AWAITED | has_it))
            return connection.execute(change.values(values)).rowcount > 0

    def awaits(self, batch_id: str, position: int) -> bool:
        """Return whether a file is yet to be fetched."""
        query = sa.select(BATCH_ITEMS.c.position).where(_at(batch_id, position) & AWAITED)
        with self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    def await_no_more(self, batch_id: str) -> None:
        """Forget the addresses of files that are yet to be fetched."""
        with self._engine.begin() as connection:
            change = BATCH_ITEMS.update().where((BATCH_ITEMS.c.batch_id == batch_id) & AWAITED)
            connection.execute(change.values(url=None, file_name=""))

    def awaited(self) -> int:
        """Return how many files of all tenants are yet to be fetched."""
        query = sa.select(sa.func.count()).where(AWAITED)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def get(self, batch_id: str) -> Batch | None:
        """Return a batch with its analyses as they are now, without their verdicts; None where there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(BATCHES).where((BATCHES.c.id == batch_id) & self._of_mine)).first()
            if row is None:
                return None
            of_batch = BATCH_ITEMS.c.batch_id == batch_id
            items = connection.execute(sa.select(BATCH_ITEMS).where(of_batch).order_by(BATCH_ITEMS.c.position)).all()
            columns = [column for column in ANALYSES.columns if column.name != "verdict"]
            query = sa.select(*columns, sa.null().label("verdict")).where(
                ANALYSES.c.id.in_(sa.select(BATCH_ITEMS.c.analysis_id).where(of_batch))
            )
            found = {item.id: Analysis.of(item) for item in connection.execute(query)}
        values = row._asdict()
        values["fields"] = json.loads(values["fields"])
        values["items"] = tuple(_item(item, found.get(item.analysis_id)) for item in items)
        return Batch(**values)

    def latest(self, count: int) -> list[Batch]:
        """Return the latest `count` batches, the newest first."""
        query = sa.select(BATCHES.c.id).where(self._of_mine).order_by(BATCHES.c.created_at.desc()).limit(count)
        with self._engine.connect() as connection:
            ids = connection.execute(query).scalars().all()
        return [batch for batch_id in ids if (batch := self.get(batch_id)) is not None]

    def delete(self, batch_id: str) -> None:
        """Forget a batch and its items; their analyses stay."""
        with self._engine.begin() as connection:
            connection.execute(BATCHES.delete().where((BATCHES.c.id == batch_id) & self._of_mine))

    def over_before(self, moment: float, limit: int = 1000) -> list[str]:
        """Return the ids of batches begun before a time in seconds since 1970 that have and await no analysis."""
        is_there = sa.exists().where(ANALYSES.c.id == BATCH_ITEMS.c.analysis_id)
        holds = sa.exists().where((BATCH_ITEMS.c.batch_id == BATCHES.c.id) & (AWAITED | is_there))
        query = sa.select(BATCHES.c.id).where((BATCHES.c.created_at <= moment) & ~holds)
        with self._engine.connect() as connection:
            return list(connection.execute(query.order_by(BATCHES.c.created_at).limit(limit)).scalars())


def _at(batch_id: str, position: int) -> sa.ColumnElement[bool]:
    return (BATCH_ITEMS.c.batch_id == batch_id) & (BATCH_ITEMS.c.position == position)


def _item(row: Any, analysis: Analysis | None) -> BatchItem:
    return BatchItem(row.file_name if analysis is None else analysis.file_name, analysis, row.refusal, row.url)
