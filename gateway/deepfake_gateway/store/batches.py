"""`Batches`: files that were sent together, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from deepfake_gateway.store.records import Analysis
from deepfake_gateway.store.schema import ANALYSES, BATCH_ITEMS, BATCHES


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One file of a batch: its analysis, or why it has none; neither where the analysis was deleted."""

    file_name: str
    analysis: Analysis | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that were sent together."""

    id: str
    created_at: float
    name: str
    items: tuple[BatchItem, ...]


class Batches:
    """The tables of batches; safe for threads. Of a `tenant`, there are only its own."""

    def __init__(self, engine: sa.Engine, tenant: str | None = None) -> None:
        self._engine = engine
        self._of_mine = sa.true() if tenant is None else BATCHES.c.tenant == tenant

    def add(self, batch: Batch, tenant: str) -> None:
        """Record a batch whose analyses are recorded already."""
        values = {"id": batch.id, "created_at": batch.created_at, "name": batch.name, "tenant": tenant}
        with self._engine.begin() as connection:
            connection.execute(BATCHES.insert().values(values))
            rows = [
                {
                    "batch_id": batch.id,
                    "position": position,
                    "file_name": item.file_name,
                    "analysis_id": None if item.analysis is None else item.analysis.id,
                    "refusal": item.refusal,
                }
                for position, item in enumerate(batch.items)
            ]
            if rows:
                connection.execute(BATCH_ITEMS.insert(), rows)

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
        return Batch(
            row.id, row.created_at, row.name,
            tuple(BatchItem(item.file_name, found.get(item.analysis_id), item.refusal) for item in items),
        )  # fmt: skip

    def latest(self, count: int) -> list[Batch]:
        """Return the latest `count` batches, the newest first."""
        query = sa.select(BATCHES.c.id).where(self._of_mine).order_by(BATCHES.c.created_at.desc()).limit(count)
        with self._engine.connect() as connection:
            ids = connection.execute(query).scalars().all()
        return [batch for batch_id in ids if (batch := self.get(batch_id)) is not None]
