"""`Watches`: live sources that are watched, their rolling verdicts, and why they ended.

A password in an address is kept for as long as the source may have to be opened again, and shown nowhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import sqlalchemy as sa

from deepfake_gateway.store.analysis import UNFINISHED, Event, Status, canonical
from deepfake_gateway.store.counters import Tally
from deepfake_gateway.store.places import Place
from deepfake_gateway.store.schema import WATCH_EVENTS, WATCHES
from deepfake_gateway.store.usage import add_usage

KEPT_VERDICTS: Final = 600
"""Rolling verdicts of a source that stay: ten minutes of one a second."""
_UNFINISHED: Final = WATCHES.c.status.in_([status.value for status in UNFINISHED])


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One live source as it is stored; times in seconds since 1970, null before they are reached."""

    id: str
    created_at: float
    status: Status
    name: str
    url: str | None
    options: dict[str, Any]
    duration_s: float
    started_at: float | None = None
    ends_at: float | None = None
    finished_at: float | None = None
    restarts: int = 0
    last_event: int = 0
    verdict: dict[str, Any] | None = None
    end_reason: str | None = None
    error_type: str | None = None
    error_detail: str | None = None
    tenant: str = ""
    key_id: str | None = None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the watch of a row of SQLAlchemy's."""
        values = row._asdict()
        values["status"] = Status(values["status"])
        values["options"] = json.loads(values["options"])
        values["verdict"] = None if values["verdict"] is None else json.loads(values["verdict"])
        return cls(**values)


class Watches:
    """The tables of watches; safe for threads. Of a `tenant`, there are only its own."""

    def __init__(self, engine: sa.Engine, tenant: str | None = None) -> None:
        self._engine = engine
        self._of_mine = sa.true() if tenant is None else WATCHES.c.tenant == tenant

    def add(self, watch: Watch, enqueue: Callable[[sa.Connection], None]) -> None:
        """Record a watch and queue it, both or neither."""
        values = {column.name: getattr(watch, column.name) for column in WATCHES.columns}
        values |= {"options": canonical(watch.options), "verdict": None, "status": watch.status.value}
        with self._engine.begin() as connection:
            connection.execute(WATCHES.insert().values({**values, "last_event": 1}))
            _add_event(connection, watch.id, 1, "status", {"status": watch.status.value})
            enqueue(connection)

    def get(self, watch_id: str) -> Watch | None:
        """Return a watch, or None."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(WATCHES).where((WATCHES.c.id == watch_id) & self._of_mine)).first()
        return None if row is None else Watch.of(row)

    def page(self, *, after: Place | None = None, limit: int = 20) -> list[Watch]:
        """Return watches, newest first, from behind a place; without their verdicts."""
        columns = [sa.null().label("verdict") if column.name == "verdict" else column for column in WATCHES.columns]
        query = sa.select(*columns).where(self._of_mine)
        if after is not None:
            query = query.where(after.behind(WATCHES))
        query = query.order_by(WATCHES.c.created_at.desc(), WATCHES.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [Watch.of(row) for row in connection.execute(query)]

    def unfinished(self, key_id: str | None = None) -> int:
        """Return how many watches wait or run: of a key, or all."""
        query = sa.select(sa.func.count()).where(_UNFINISHED)
        if key_id is not None:
            query = query.where(WATCHES.c.key_id == key_id)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def delete(self, watch_id: str) -> bool:
        """Forget a watch and its events; returns whether there was one."""
        with self._engine.begin() as connection:
            gone = connection.execute(WATCHES.delete().where((WATCHES.c.id == watch_id) & self._of_mine))
            return gone.rowcount > 0

    def finished_before(self, moment: float, limit: int = 1000) -> list[str]:
        """Return the ids of watches that were over before a time in seconds since 1970, the oldest first."""
        query = sa.select(WATCHES.c.id).where(WATCHES.c.finished_at <= moment)
        with self._engine.connect() as connection:
            return list(connection.execute(query.order_by(WATCHES.c.finished_at).limit(limit)).scalars())

    # --- states ---------------------------------------------------------------------------------------------------

    def start(self, watch_id: str) -> Watch | None:
        """Mark a watch as running, also one that a dead worker was running, and count that; None where it is over."""
        now = time.time()
        with self._engine.begin() as connection:
            is_again = WATCHES.c.status == Status.RUNNING.value
            changed = connection.execute(
                WATCHES.update()
                .where((WATCHES.c.id == watch_id) & _UNFINISHED)
                .values(
                    status=Status.RUNNING.value,
                    last_event=WATCHES.c.last_event + 1,
                    started_at=sa.func.coalesce(WATCHES.c.started_at, now),
                    ends_at=sa.func.coalesce(WATCHES.c.ends_at, now + WATCHES.c.duration_s),
                    restarts=WATCHES.c.restarts + sa.case((is_again, 1), else_=0),
                )
            )
            if changed.rowcount == 0:
                return None
            watch = _read(connection, watch_id)
            data: dict[str, Any] = {"status": watch.status.value}
            if watch.restarts:
                data |= {"reason": "worker_restarted", "restarts": watch.restarts}
            _add_event(connection, watch_id, watch.last_event, "status", data)
        return watch

    def finish(self, watch_id: str, end_reason: str) -> bool:
        """Note that a watch ended as it should; returns whether it was unfinished."""
        return self._end(watch_id, Status.DONE, end_reason=end_reason)

    def fail(self, watch_id: str, error_type: str, detail: str) -> bool:
        """Note why a watch ended before its time; returns whether it was unfinished."""
        return self._end(watch_id, Status.FAILED, error_type=error_type, error_detail=detail)

    def cancel(self, watch_id: str) -> bool:
        """End a watch; its worker sees it. Returns whether it was unfinished."""
        return self._end(watch_id, Status.CANCELED)

    def _end(self, watch_id: str, status: Status, **values: Any) -> bool:
        now = time.time()
        with self._engine.begin() as connection:
            changed = connection.execute(
                WATCHES.update()
                .where((WATCHES.c.id == watch_id) & _UNFINISHED & self._of_mine)
                .values(
                    status=status.value,
                    last_event=WATCHES.c.last_event + 1,
                    finished_at=now,
                    url=None,
                    **values,
                )
            )
            if changed.rowcount == 0:
                return False
            watch = _read(connection, watch_id)
            reason = {"reason": watch.end_reason} if watch.end_reason else {}
            _add_event(connection, watch_id, watch.last_event, "status", {"status": status.value, **reason})
            seconds = 0.0 if watch.started_at is None else max(1.0, now - watch.started_at)
            tally = Tally()
            tally.count("watches_ended", status=status.value, reason=watch.end_reason or watch.error_type or "")
            tally.count("watched_seconds", seconds)
            tally.add_up(connection)
            if seconds:
                add_usage(connection, watch.key_id, seconds=seconds)
        return True

    # --- events ---------------------------------------------------------------------------------------------------

    def add_verdict(self, watch_id: str, rolling: Mapping[str, Any], verdict: Mapping[str, Any]) -> bool:
        """Record the latest verdict, in short as an event and whole; returns whether the watch still runs."""
        running = (WATCHES.c.id == watch_id) & (WATCHES.c.status == Status.RUNNING.value)
        with self._engine.begin() as connection:
            values = {"last_event": WATCHES.c.last_event + 1, "verdict": json.dumps(verdict)}
            if connection.execute(WATCHES.update().where(running).values(values)).rowcount == 0:
                return False
            number = int(
                connection.execute(sa.select(WATCHES.c.last_event).where(WATCHES.c.id == watch_id)).scalar_one()
            )
            _add_event(connection, watch_id, number, "verdict", rolling)
            old = (WATCH_EVENTS.c.watch_id == watch_id) & (WATCH_EVENTS.c.number <= number - KEPT_VERDICTS)
            connection.execute(WATCH_EVENTS.delete().where(old & (WATCH_EVENTS.c.kind == "verdict")))
        return True

    def events(self, watch_id: str, *, after: int = 0) -> list[Event]:
        """Return the events of a watch behind one of them, in order, numbered from 1."""
        query = (
            sa.select(WATCH_EVENTS)
            .join(WATCHES, WATCHES.c.id == WATCH_EVENTS.c.watch_id)
            .where((WATCH_EVENTS.c.watch_id == watch_id) & (WATCH_EVENTS.c.number > after) & self._of_mine)
            .order_by(WATCH_EVENTS.c.number)
        )
        with self._engine.connect() as connection:
            return [Event(row.number, row.kind, json.loads(row.data)) for row in connection.execute(query)]


def _read(connection: sa.Connection, watch_id: str) -> Watch:
    return Watch.of(connection.execute(sa.select(WATCHES).where(WATCHES.c.id == watch_id)).one())


def _add_event(connection: sa.Connection, watch_id: str, number: int, kind: str, data: Mapping[str, Any]) -> None:
    connection.execute(
        WATCH_EVENTS.insert().values(watch_id=watch_id, number=number, kind=kind, data=json.dumps(data))
    )
