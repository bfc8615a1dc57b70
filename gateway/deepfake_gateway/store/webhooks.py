"""`Webhooks`: addresses that are told when an analysis is over, and each delivery with what became of it."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import sqlalchemy as sa

from deepfake_gateway.store.counters import Tally
from deepfake_gateway.store.schema import DELIVERIES, WEBHOOKS

BACK_OFF_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Between tries, as the Standard Webhooks specification proposes."""
LEASE_S: Final = 120.0
"""A delivery whose worker died is tried again after this long."""
LOG_LENGTH: Final = 100
AT_ONCE: Final = 4
"""Messages to one webhook that are on their way at once, in each worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An address that is told; times in seconds since 1970."""

    id: str
    tenant: str
    url: str
    secret: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message; it is pending while it has a `next_try_at`, and goes with the analysis that it tells of."""

    id: str
    webhook_id: str
    analysis_id: str
    created_at: float
    body: str
    attempts: int
    next_try_at: float | None
    delivered_at: float | None
    outcome: str | None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the delivery of a row of SQLAlchemy's."""
        return cls(**row._asdict())

    @property
    def state(self) -> str:
        """``pending``, ``delivered`` or ``failed``."""
        if self.next_try_at is not None:
            return "pending"
        return "failed" if self.delivered_at is None else "delivered"


class Webhooks:
    """The tables of webhooks; safe for threads. Of a `tenant`, there are only its own."""

    def __init__(self, engine: sa.Engine, tenant: str | None = None) -> None:
        self._engine = engine
        self._of_mine = sa.true() if tenant is None else WEBHOOKS.c.tenant == tenant

    def add(self, url: str, tenant: str) -> Webhook:
        """Record an address, with a new secret that messages to it are signed with."""
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        webhook = Webhook(
            id=secrets.token_hex(16), tenant=tenant, url=url, secret=secret, created_at=time.time()
        )  # fmt: skip
        values = {column.name: getattr(webhook, column.name) for column in WEBHOOKS.columns}
        with self._engine.begin() as connection:
            connection.execute(WEBHOOKS.insert().values(values))
        return webhook

    def all(self) -> list[Webhook]:
        """Return all webhooks, the oldest first."""
        query = sa.select(WEBHOOKS).where(self._of_mine).order_by(WEBHOOKS.c.created_at)
        with self._engine.connect() as connection:
            return [Webhook(**row._asdict()) for row in connection.execute(query)]

    def get(self, webhook_id: str) -> Webhook | None:
        """Return a webhook, or None."""
        query = sa.select(WEBHOOKS).where((WEBHOOKS.c.id == webhook_id) & self._of_mine)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Webhook(**row._asdict())

    def delete(self, webhook_id: str) -> bool:
        """Forget a webhook with its deliveries; returns whether there was one."""
        with self._engine.begin() as connection:
            change = WEBHOOKS.delete().where((WEBHOOKS.c.id == webhook_id) & self._of_mine)
            return connection.execute(change).rowcount > 0

    def deliveries(self, webhook_id: str) -> list[Delivery]:
        """Return the last deliveries of a webhook, the newest first."""
        query = sa.select(DELIVERIES).where(DELIVERIES.c.webhook_id == webhook_id)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(DELIVERIES.c.created_at.desc()).limit(LOG_LENGTH)).all()
        return [Delivery.of(row) for row in rows]

    def redeliver(self, delivery_id: str) -> bool:
        """Send a message once more, from the first try on; returns whether there is one."""
        change = DELIVERIES.update().where(DELIVERIES.c.id == delivery_id)
        values = {"attempts": 0, "next_try_at": time.time(), "delivered_at": None}
        with self._engine.begin() as connection:
            return connection.execute(change.values(values)).rowcount > 0

    def claim(self, limit: int, under_way: Mapping[str, int]) -> list[tuple[Webhook, Delivery]]:
        """Return up to `limit` deliveries whose time has come; no other worker gets them meanwhile.

        A webhook has no more than `AT_ONCE` with those that are `under_way`, by its id: one that answers slowly, or
        not at all, must not hold up the others.
        """
        now, counts, claimed = time.time(), Counter(under_way), []
        full = [webhook_id for webhook_id, count in counts.items() if count >= AT_ONCE]
        due = sa.select(DELIVERIES).where((DELIVERIES.c.next_try_at <= now) & DELIVERIES.c.webhook_id.not_in(full))
        with self._engine.connect() as connection:
            query = due.order_by(DELIVERIES.c.next_try_at).limit(limit)
            found = [Delivery.of(row) for row in connection.execute(query)]
        for delivery in found:
            if counts[delivery.webhook_id] >= AT_ONCE:
                continue
            same = (DELIVERIES.c.id == delivery.id) & (DELIVERIES.c.next_try_at == delivery.next_try_at)
            change = DELIVERIES.update().where(same)
            values = {"attempts": delivery.attempts + 1, "next_try_at": now + LEASE_S}
            with self._engine.begin() as connection:
                is_mine = connection.execute(change.values(values)).rowcount > 0
            if is_mine and (webhook := self.get(delivery.webhook_id)) is not None:
                claimed.append((webhook, delivery))
                counts[webhook.id] += 1
        return claimed

    def note(self, delivery: Delivery, outcome: str, *, delivered: bool, again: bool) -> None:
        """Record how a try of a claimed delivery ended, and when the next is."""
        now, tries = time.time(), delivery.attempts
        next_try_at = now + BACK_OFF_S[tries] if again and tries < len(BACK_OFF_S) else None
        values = {"outcome": outcome, "next_try_at": next_try_at, "delivered_at": now if delivered else None}
        with self._engine.begin() as connection:
            connection.execute(DELIVERIES.update().where(DELIVERIES.c.id == delivery.id).values(values))
            tally = Tally()
            tally.count("webhook_tries", outcome="delivered" if delivered else "again" if next_try_at else "given up")
            tally.add_up(connection)


def announce(connection: sa.Connection, analysis: Any) -> None:
    """Record a message for each webhook of an analysis' tenant, in the transaction in which it is over."""
    ids = connection.execute(sa.select(WEBHOOKS.c.id).where(WEBHOOKS.c.tenant == analysis.tenant)).scalars().all()
    for webhook_id in ids:
        facts = ("id", "file_name", "sha256", "label", "fake_probability", "reason", "error_type", "error_detail")
        body = {
            "type": f"analysis.{analysis.status}",
            "timestamp": datetime.fromtimestamp(analysis.finished_at, UTC).isoformat(),
            "data": {name: getattr(analysis, name) for name in facts},
        }
        now = time.time()
        connection.execute(
            DELIVERIES.insert().values(
                id=secrets.token_hex(16), webhook_id=webhook_id, analysis_id=analysis.id, created_at=now,
                body=json.dumps(body), attempts=0, next_try_at=now,
            )
        )  # fmt: skip
