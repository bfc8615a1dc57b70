"""The tables, and the engine that opens them on SQLite or Postgres.

A change here needs a step in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

import random
import sqlite3
import time
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError

from deepfake_gateway.store.migrations.upgrade import upgrade
from deepfake_preprocess.errors import OptionError

METADATA = sa.MetaData()
BUSY_WAIT_S: Final = 30.0
"""How long a writer of SQLite waits for another."""

ANALYSES = sa.Table(
    "analyses",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False, index=True),  # seconds since 1970, here and below
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("file_name", sa.Text, nullable=False),
    sa.Column("media_type", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("options", sa.Text, nullable=False),  # canonical JSON, so that equal options are equal text
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("model_name", sa.Text),
    sa.Column("model_version", sa.Integer),
    sa.Column("checkpoint_sha256", sa.String(64)),
    sa.Column("label", sa.String(16), index=True),
    sa.Column("fake_probability", sa.Float),
    sa.Column("reason", sa.String(32)),
    sa.Column("verdict", sa.Text),  # the JSON of docs/verdict.schema.json, as the client writes it
    sa.Column("error_type", sa.Text),
    sa.Column("error_detail", sa.Text),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
    sa.Column("key_id", sa.String(8)),  # the key that it was sent with
    sa.Column("request_id", sa.String(64)),
    sa.Column("traceparent", sa.String(64)),  # W3C's trace context of the request
    sa.Index("ix_analyses_idempotency_key", "tenant", "idempotency_key", unique=True),
    sa.Index("ix_analyses_tenant", "tenant", "created_at"),
)

EVENTS = sa.Table(
    "analysis_events",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column(
        "analysis_id", sa.String(32), sa.ForeignKey("analyses.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    # Or SQLite gives an event the number of one that was deleted, and who follows misses it.
    sqlite_autoincrement=True,
)

EXPLANATIONS = sa.Table(
    "explanations",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column(
        "analysis_id", sa.String(32), sa.ForeignKey("analyses.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # canonical JSON, so that equal requests are equal text
    sa.Column("faces", sa.Text),  # JSON: what was found in each crop; the pictures are files
    sa.Column("error_type", sa.Text),
    sa.Column("error_detail", sa.Text),
    sa.Column("request_id", sa.String(64)),
    sa.Column("traceparent", sa.String(64)),
)

BATCHES = sa.Table(
    "batches",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
    sa.Column("fields", sa.Text, nullable=False, server_default="{}"),  # JSON: options as they were sent
    sa.Column("key_id", sa.String(8)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("traceparent", sa.String(64)),
    sa.Index("ix_batches_tenant", "tenant", "created_at"),
)

BATCH_ITEMS = sa.Table(
    "batch_items",
    METADATA,
    sa.Column("batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    # Empty where there is an analysis, which has the name: with it, the name is forgotten.
    sa.Column("file_name", sa.Text, nullable=False),
    # No foreign key: the batch goes on counting a file whose analysis was deleted.
    sa.Column("analysis_id", sa.String(32), index=True),
    sa.Column("refusal", sa.Text),
    sa.Column("url", sa.Text),  # of a file that is yet to be fetched
)
AWAITED: Final = BATCH_ITEMS.c.url.is_not(None)
sa.Index("ix_batch_items_awaited", BATCH_ITEMS.c.batch_id, sqlite_where=AWAITED, postgresql_where=AWAITED)

KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(8), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # with spaces between them
    sa.Column("sha256", sa.String(64), nullable=False),  # of the key, which itself is kept nowhere
    sa.Column("seconds_per_day", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("sha256", sa.String(64), primary_key=True),  # of what the cookie holds
    sa.Column("key_id", sa.String(8), sa.ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

DAILY_USAGE = sa.Table(
    "daily_usage",
    METADATA,
    # No foreign key: an analysis that ends after its key was removed is counted all the same.
    sa.Column("key_id", sa.String(8), primary_key=True),  # empty for what came without a key
    sa.Column("day", sa.String(10), primary_key=True),  # in UTC
    sa.Column("seconds", sa.Float, nullable=False),  # of video
    *(
        sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        for name in ("sent", "done", "failed", "canceled", "size_bytes")
    ),
)

COUNTERS = sa.Table(
    "counters",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("labels", sa.String(512), primary_key=True),  # canonical JSON
    sa.Column("amount", sa.Float, nullable=False),
)

WEBHOOKS = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),  # messages are signed with it, so it cannot be a hash
    sa.Column("created_at", sa.Float, nullable=False),
)

DELIVERIES = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column(
        "webhook_id", sa.String(32), sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    # The body names its file: it goes with the analysis.
    sa.Column(
        "analysis_id", sa.String(32), sa.ForeignKey("analyses.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float, index=True),  # none once it is over
    sa.Column("delivered_at", sa.Float),
    sa.Column("outcome", sa.Text),
)

WATCHES = sa.Table(
    "watches",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ends_at", sa.Float),  # at the latest
    sa.Column("finished_at", sa.Float, index=True),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),  # the address as it is shown
    sa.Column("url", sa.Text),  # with a user's password, for as long as it is needed
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("restarts", sa.Integer, nullable=False),
    sa.Column("last_event", sa.Integer, nullable=False),
    sa.Column("verdict", sa.Text),  # the latest: the JSON of docs/verdict.schema.json
    sa.Column("end_reason", sa.String(32)),
    sa.Column("error_type", sa.Text),
    sa.Column("error_detail", sa.Text),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
    sa.Column("key_id", sa.String(8)),
    sa.Index("ix_watches_tenant", "tenant", "created_at"),
)

WATCH_EVENTS = sa.Table(
    "watch_events",
    METADATA,
    sa.Column("watch_id", sa.String(32), sa.ForeignKey("watches.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("seen_at", sa.Float, nullable=False),
)


def open_engine(url: str) -> sa.Engine:
    """Return the engine of a database, with its tables made or brought up to date.

    Raises OptionError where it cannot be opened.
    """
    try:
        engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))  # a file does not go away
    except (ArgumentError, ImportError):
        raise OptionError(
            "`database` is not the address of a database that is supported; name one as "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:////PATH"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        upgrade(engine)
    except DatabaseError as exc:
        engine.dispose()
        reason = " ".join(str(exc.orig).split())[:200]
        advice = "make it and its folder writable" if engine.dialect.name == "sqlite" else "start it"
        raise OptionError(
            f"the database {engine.url.set(query={}).render_as_string()} cannot be opened ({reason}); {advice}, or "
            "name another `database` or `data_dir`"
        ) from exc
    except BaseException:
        engine.dispose()
        raise
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLite's own knows the letters of ASCII alone, and names are searched by it.
    connection.create_function("lower", 1, lambda text: text and str(text).lower(), deterministic=True)
    connection.execute(f"PRAGMA busy_timeout={round(BUSY_WAIT_S * 1000)}")  # rides out the moments of two writers
    _switch_to_wal(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: Any) -> None:
    """Let gateway and worker read while the other writes.

    Of several that open a new database at once, SQLite refuses all but one at once, whatever its timeout is.
    """
    give_up_at = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        else:
            return
        time.sleep(random.uniform(0.01, 0.05))
