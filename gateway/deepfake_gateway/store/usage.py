"""`Usage`: what each key sent and got, by the day; added up in the transactions that begin and end analyses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.schema import DAILY_USAGE, KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyUsage:
    """What came with one key in one day (UTC), and how it ended; all of the key is None for what came without one."""

    day: str
    key_id: str | None
    name: str | None
    tenant: str | None
    sent: int
    done: int
    failed: int
    canceled: int
    seconds: float  # of video
    size_bytes: int


class Usage:
    """The table of usage; safe for threads. Of a `tenant`, there is only what its keys used."""

    def __init__(self, engine: sa.Engine, tenant: str | None = None) -> None:
        self._engine = engine
        self._of_mine = sa.true() if tenant is None else KEYS.c.tenant == tenant

    def between(self, first: date, last: date) -> list[DailyUsage]:
        """Return the usage of days, both included; the latest first."""
        used = [column for column in DAILY_USAGE.columns if column.name != "key_id"]
        query = (
            sa.select(*used, sa.func.nullif(DAILY_USAGE.c.key_id, "").label("key_id"), KEYS.c.name, KEYS.c.tenant)
            .outerjoin(KEYS, KEYS.c.id == DAILY_USAGE.c.key_id)
            .where(DAILY_USAGE.c.day.between(first.isoformat(), last.isoformat()) & self._of_mine)
            .order_by(DAILY_USAGE.c.day.desc(), DAILY_USAGE.c.key_id)
        )
        with self._engine.connect() as connection:
            return [DailyUsage(**row._asdict()) for row in connection.execute(query)]

    def seconds_today(self, key_id: str) -> float:
        """Return how many seconds of video were analyzed for a key since midnight (UTC)."""
        of_today = (DAILY_USAGE.c.key_id == key_id) & (DAILY_USAGE.c.day == today().isoformat())
        with self._engine.connect() as connection:
            return float(connection.execute(sa.select(DAILY_USAGE.c.seconds).where(of_today)).scalar() or 0.0)


class Quotas:
    """How much video each key may have analyzed in a day (UTC): its own bound, else that of all. Safe for threads."""

    def __init__(self, engine: sa.Engine, seconds_per_day: float) -> None:
        self._keys, self._usage = Keys(engine), Usage(engine)
        self._seconds_per_day = seconds_per_day

    def used_up(self, key_id: str | None) -> float | None:
        """Return how many seconds a key may have where it has used them; None where some are left."""
        key = None if key_id is None else self._keys.get(key_id)
        if key is None:
            return None
        allowed = self._seconds_per_day if key.seconds_per_day is None else key.seconds_per_day
        return allowed if allowed and self._usage.seconds_today(key.id) >= allowed else None


def add_usage(connection: sa.Connection, key_id: str | None, **amounts: float) -> None:
    """Add to columns of what a key used today, in a transaction of the store's."""
    # Two workers may be the first of a day.
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = insert(DAILY_USAGE).values(key_id=key_id or "", day=today().isoformat(), **{"seconds": 0.0, **amounts})
    totals = {name: DAILY_USAGE.c[name] + new.excluded[name] for name in amounts}
    connection.execute(new.on_conflict_do_update(index_elements=["key_id", "day"], set_=totals))


def today() -> date:
    """Return the date in UTC."""
    return datetime.now(UTC).date()
