"""Counters, what a key used by the day, and the request that a job came with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Seconds of days before stay; the rest is counted from now on."""
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("labels", sa.String(512), primary_key=True),
        sa.Column("amount", sa.Float, nullable=False),
    )
    op.rename_table("quotas", "daily_usage")
    for name in ("sent", "done", "failed", "canceled", "size_bytes"):
        op.add_column("daily_usage", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    for table in ("analyses", "explanations"):
        op.add_column(table, sa.Column("request_id", sa.String(64)))
        op.add_column(table, sa.Column("traceparent", sa.String(64)))
