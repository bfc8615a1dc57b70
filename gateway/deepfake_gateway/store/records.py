"""`Store`: what happens to analyses, in the database.

Every change of a state is one transaction that can be lost or won, so that an analysis has one result whatever dies
when.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, Self, TypeAlias
from unicodedata import normalize

import sqlalchemy as sa

from deepfake_gateway.store.analysis import UNFINISHED, Analysis, Event, Filters, Status, canonical
from deepfake_gateway.store.counters import Tally, count_end, seconds_of
from deepfake_gateway.store.places import Place
from deepfake_gateway.store.schema import ANALYSES, EVENTS, WORKERS, open_engine
from deepfake_gateway.store.usage import add_usage
from deepfake_gateway.store.webhooks import announce

_BUT_VERDICT: Final = [column for column in ANALYSES.columns if column.name != "verdict"]
"""A verdict has some 30 kB: reading it costs as much as all else."""

HasChanged: TypeAlias = Callable[[], bool]
"""Returns whether anything was stored since it was last asked; True the first time."""


class Store:
    """The database of one gateway; safe for threads. One `of_tenant` finds only what belongs to a tenant."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._tenant: str | None = None

    def of_tenant(self, tenant: str | None) -> Self:
        """Return the same store, in which there are only the analyses of a tenant; with None, those of all."""
        store = copy(self)
        store._tenant = tenant
        return store

    def _of_mine(self) -> sa.ColumnElement[bool]:
        return sa.true() if self._tenant is None else ANALYSES.c.tenant == self._tenant

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # --- analyses -------------------------------------------------------------------------------------------------

    def add(self, analysis: Analysis, enqueue: Callable[[sa.Connection], None]) -> None:
        """Record a new analysis and queue it, both or neither.

        Raises sqlalchemy's IntegrityError where its idempotency key is in use.
        """
        with self.engine.begin() as connection:
            _insert(connection, analysis)
            enqueue(connection)
            tally = Tally()
            tally.count("sent")
            tally.count("sent_bytes", analysis.size_bytes)
            tally.add_up(connection)
            add_usage(connection, analysis.key_id, sent=1, size_bytes=analysis.size_bytes)

    def add_answered(self, analysis: Analysis) -> None:
        """Record an analysis that is done as it begins, for an earlier one answers it; it counts as no analysis.

        Raises sqlalchemy's IntegrityError where its idempotency key is in use.
        """
        with self.engine.begin() as connection:
            _insert(connection, analysis)
            announce(connection, analysis)

    def get(self, analysis_id: str) -> Analysis | None:
        """Return an analysis, or None."""
        return self._one(sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id))

    def with_idempotency_key(self, key: str) -> Analysis | None:
        """Return the analysis that was started under a key, or None."""
        return self._one(sa.select(ANALYSES).where(ANALYSES.c.idempotency_key == key))

    def with_idempotency_keys(self, keys: Collection[str]) -> list[str]:
        """Return the ids of the analyses that were started under some of the keys."""
        query = sa.select(ANALYSES.c.id).where(ANALYSES.c.idempotency_key.in_(keys) & self._of_mine())
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def earlier(
        self, sha256: str, options: Mapping[str, Any], checkpoint_sha256: str | None, *, name: str
    ) -> Analysis | None:
        """Return the latest finished analysis of the same bytes with the same options and checkpoint, or None.

        One whose file had the same `name` comes before all others.
        """
        if checkpoint_sha256 is None:
            return None
        same = _done(sha256, options) & (ANALYSES.c.checkpoint_sha256 == checkpoint_sha256)
        order = sa.case((ANALYSES.c.file_name == name, 0), else_=1), ANALYSES.c.created_at.desc()
        return self._one(sa.select(ANALYSES).where(same).order_by(*order).limit(1))

    def knows(self, sha256: str, options: Mapping[str, Any]) -> bool:
        """Return whether the same bytes were analyzed with the same options, by whichever checkpoint."""
        query = sa.select(ANALYSES.c.id).where(_done(sha256, options) & self._of_mine()).limit(1)
        with self.engine.connect() as connection:
            return connection.execute(query).first() is not None

    def page(self, filters: Filters, *, after: Place | None = None, limit: int = 20) -> list[Analysis]:
        """Return analyses, newest first, from behind a place; without their verdicts."""
        query = sa.select(*_BUT_VERDICT).where(self._of_mine())
        exact = {
            "label": filters.label,
            "status": filters.status,
            "model_name": filters.model,
            "sha256": filters.sha256,
        }
        for name, value in exact.items():
            if value is not None:
                query = query.where(ANALYSES.c[name] == value)
        if filters.name is not None:
            query = query.where(ANALYSES.c.file_name.icontains(normalize("NFC", filters.name), autoescape=True))
        if filters.since is not None:
            query = query.where(ANALYSES.c.created_at >= filters.since)
        if filters.until is not None:
            query = query.where(ANALYSES.c.created_at < filters.until)
        if after is not None:
            query = query.where(after.behind(ANALYSES))
        query = query.order_by(ANALYSES.c.created_at.desc(), ANALYSES.c.id.desc()).limit(limit)
        with self.engine.connect() as connection:
            return [Analysis.of(row) for row in connection.execute(query)]

    def count_by(self, *names: str) -> dict[tuple[Any, ...], int]:
        """Return how many analyses there are of each combination of columns, of all tenants."""
        columns = [ANALYSES.c[name] for name in names]
        query = sa.select(*columns, sa.func.count()).group_by(*columns)
        with self.engine.connect() as connection:
            return {tuple(row[:-1]): row[-1] for row in connection.execute(query)}

    def has_queued(self) -> bool:
        """Return whether an analysis of any tenant waits."""
        query = sa.select(ANALYSES.c.id).where(ANALYSES.c.status == Status.QUEUED.value).limit(1)
        with self.engine.connect() as connection:
            return connection.execute(query).first() is not None

    def model_names(self) -> list[str]:
        """Return the names of the models that gave verdicts, sorted."""
        query = sa.select(ANALYSES.c.model_name).where(ANALYSES.c.model_name.is_not(None) & self._of_mine())
        with self.engine.connect() as connection:
            return sorted(connection.execute(query.distinct()).scalars())

    def longest_wait(self) -> float:
        """Return for how many seconds the oldest queued analysis has waited; 0 where none waits."""
        query = sa.select(sa.func.min(ANALYSES.c.created_at)).where(ANALYSES.c.status == Status.QUEUED.value)
        with self.engine.connect() as connection:
            oldest = connection.execute(query).scalar()
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    def finished_before(self, moment: float, limit: int = 1000) -> list[str]:
        """Return the ids of analyses that were over before a time in seconds since 1970, the oldest first."""
        over = (ANALYSES.c.finished_at <= moment) & self._of_mine()
        query = sa.select(ANALYSES.c.id).where(over).order_by(ANALYSES.c.finished_at).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def delete(self, *analysis_ids: str) -> None:
        """Forget analyses and their events."""
        with self.engine.begin() as connection:
            connection.execute(ANALYSES.delete().where(self._these(analysis_ids)))

    def _these(self, analysis_ids: Collection[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a row is to be changed, for it is of these analyses."""
        these = ANALYSES.c.id.in_(analysis_ids) & self._of_mine()
        # Many in one order for all, or two transactions would wait for each other.
        in_order = sa.select(ANALYSES.c.id).where(these).order_by(ANALYSES.c.id).with_for_update()
        return these if len(analysis_ids) == 1 else ANALYSES.c.id.in_(in_order)

    def _one(self, query: sa.Select[Any]) -> Analysis | None:
        with self.engine.connect() as connection:
            row = connection.execute(query.where(self._of_mine())).first()
        return None if row is None else Analysis.of(row)

    # --- states ---------------------------------------------------------------------------------------------------

    def start(self, analysis_id: str) -> Analysis | None:
        """Mark an analysis as running, also one that a dead worker was running; None where it is over or gone."""
        return self._change_one(analysis_id, Status.RUNNING, started_at=time.time())

    def finish(self, analysis_id: str, verdict: dict[str, Any]) -> Analysis | None:
        """Store the verdict of an unfinished analysis and return it so; None where it was over, or gone."""
        model = verdict["model"]
        return self._change_one(
            analysis_id,
            Status.DONE,
            verdict,
            finished_at=_now_or_start(),
            verdict=json.dumps(verdict),
            label=verdict["label"],
            fake_probability=verdict["fake_probability"],
            reason=verdict["reason"],
            model_name=model["name"],
            model_version=model["version"],
            checkpoint_sha256=model["checkpoint_sha256"],
        )

    def fail(self, analysis_id: str, error_type: str, detail: str) -> Analysis | None:
        """Store why an unfinished analysis has no verdict and return it so; None where it was over, or gone."""
        return self._change_one(
            analysis_id, Status.FAILED, finished_at=_now_or_start(), error_type=error_type, error_detail=detail
        )

    def cancel(self, *analysis_ids: str) -> bool:
        """End unfinished analyses without a result; their workers see it. Returns whether any was unfinished."""
        return bool(self._change(analysis_ids, Status.CANCELED, finished_at=_now_or_start()))

    def _change_one(
        self, analysis_id: str, status: Status, result: dict[str, Any] | None = None, /, **values: Any
    ) -> Analysis | None:
        changed = self._change([analysis_id], status, result, **values)
        return Analysis.of(changed[0], result) if changed else None

    def _change(
        self, analysis_ids: Collection[str], status: Status, result: dict[str, Any] | None = None, /, **values: Any
    ) -> Sequence[Any]:
        """Change those of analyses that are unfinished, say so in their events, and count them; returns their rows.

        The `result` is the verdict of the one.
        """
        unfinished = self._these(analysis_ids) & ANALYSES.c.status.in_([item.value for item in UNFINISHED])
        with self.engine.begin() as connection:
            change = ANALYSES.update().where(unfinished).values(status=status.value, **values)
            rows = connection.execute(change.returning(*_BUT_VERDICT)).all()
            if not rows:
                return rows
            ids = [row.id for row in rows]
            if status.is_final:
                connection.execute(
                    EVENTS.delete().where(EVENTS.c.analysis_id.in_(ids) & (EVENTS.c.kind == "progress"))
                )
            _add_events(connection, ids, "status", {"status": status.value})
            if status.is_final:
                tally = Tally()
                for row in rows:
                    count_end(tally, row, result)
                tally.add_up(connection)
                seconds = 0.0 if result is None else seconds_of(result)
                for key_id, count in sorted(Counter(row.key_id or "" for row in rows).items()):
                    add_usage(connection, key_id, seconds=seconds, **{status.value: count})
            if status in (Status.DONE, Status.FAILED):
                for row in rows:
                    announce(connection, row)
            return rows

    # --- events ---------------------------------------------------------------------------------------------------

    def add_progress(self, analysis_id: str, progress: Mapping[str, Any]) -> bool:
        """Record how far a running analysis is; returns whether it still runs."""
        running = sa.select(ANALYSES.c.id).where(
            (ANALYSES.c.id == analysis_id) & (ANALYSES.c.status == Status.RUNNING.value)
        )
        with self.engine.begin() as connection:
            if connection.execute(running).first() is None:
                return False
            _add_events(connection, [analysis_id], "progress", progress)
            return True

    def events(self, analysis_id: str, *, after: int = 0) -> list[Event]:
        """Return the events of an analysis behind one of them, in order."""
        query = (
            sa.select(EVENTS)
            .join(ANALYSES, ANALYSES.c.id == EVENTS.c.analysis_id)
            .where((EVENTS.c.analysis_id == analysis_id) & (EVENTS.c.id > after) & self._of_mine())
            .order_by(EVENTS.c.id)
        )
        with self.engine.connect() as connection:
            return [Event(row.id, row.kind, json.loads(row.data)) for row in connection.execute(query)]

    def latest_events(self, limit: int) -> dict[int, str]:
        """Return the numbers of the latest events, each with the id of its analysis, of all tenants."""
        query = sa.select(EVENTS.c.id, EVENTS.c.analysis_id).order_by(EVENTS.c.id.desc()).limit(limit)
        with self.engine.connect() as connection:
            return {row.id: row.analysis_id for row in connection.execute(query)}

    @contextmanager
    def changes(self) -> Iterator[HasChanged | None]:
        """Yield how to ask whether anything was stored; None where the database tells only by a query.

        SQLite counts what other connections store; asking for that takes some microseconds, in shared memory.
        """
        if self.engine.dialect.name != "sqlite":
            yield None
            return
        with self.engine.connect() as connection:
            execute = connection.connection.cursor().execute
            counted: int | None = None

            def has_changed() -> bool:
                nonlocal counted
                try:
                    before, counted = counted, execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.Error:
                    return True  # a query says what is wrong
                return counted != before

            yield has_changed

    def last_progress(self, analysis_id: str) -> dict[str, Any] | None:
        """Return how far an analysis is, as `add_progress` took it; None before anything is known."""
        query = (
            sa.select(EVENTS.c.data)
            .where((EVENTS.c.analysis_id == analysis_id) & (EVENTS.c.kind == "progress"))
            .order_by(EVENTS.c.id.desc())
            .limit(1)
        )
        with self.engine.connect() as connection:
            data = connection.execute(query).scalar()
        return None if data is None else dict(json.loads(data))

    # --- workers --------------------------------------------------------------------------------------------------

    def worker_seen(self, name: str) -> None:
        """Record that a worker is alive."""
        with self.engine.begin() as connection:
            now = time.time()
            if connection.execute(WORKERS.update().where(WORKERS.c.name == name).values(seen_at=now)).rowcount == 0:
                connection.execute(WORKERS.insert().values(name=name, seen_at=now))

    def workers_alive(self, within_s: float) -> int:
        """Return how many workers were alive in the last seconds."""
        query = sa.select(sa.func.count()).where(WORKERS.c.seen_at > time.time() - within_s)
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def _now_or_start() -> sa.ColumnElement[float]:
    """Return the time, never one before the start: who ends an analysis may have waited for the one who began it."""
    now = time.time()
    return sa.case((ANALYSES.c.started_at > now, ANALYSES.c.started_at), else_=now)


def _add_events(connection: sa.Connection, analysis_ids: Collection[str], kind: str, data: Mapping[str, Any]) -> None:
    text = json.dumps(data)
    rows = [{"analysis_id": analysis_id, "kind": kind, "data": text} for analysis_id in analysis_ids]
    connection.execute(EVENTS.insert(), rows)


def _done(sha256: str, options: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    return (
        (ANALYSES.c.sha256 == sha256)
        & (ANALYSES.c.options == canonical(options))
        & (ANALYSES.c.status == Status.DONE.value)
    )


def _insert(connection: sa.Connection, analysis: Analysis) -> None:
    values = {column.name: getattr(analysis, column.name) for column in ANALYSES.columns}
    verdict = None if analysis.verdict is None else json.dumps(analysis.verdict)
    values |= {"options": canonical(analysis.options), "verdict": verdict, "status": analysis.status.value}
    connection.execute(ANALYSES.insert().values(values))
    _add_events(connection, [analysis.id], "status", {"status": analysis.status.value})
