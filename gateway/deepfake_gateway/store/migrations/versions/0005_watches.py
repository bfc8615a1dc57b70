"""Live sources that are watched, and what happens to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "watches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("ends_at", sa.Float),
        sa.Column("finished_at", sa.Float, index=True),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("url", sa.Text),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Text),
        sa.Column("end_reason", sa.String(32)),
        sa.Column("error_type", sa.Text),
        sa.Column("error_detail", sa.Text),
        sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
        sa.Column("key_id", sa.String(8)),
        sa.Index("ix_watches_tenant", "tenant", "created_at"),
    )
    watch = sa.ForeignKey("watches.id", ondelete="CASCADE")
    op.create_table(
        "watch_events",
        sa.Column("watch_id", sa.String(32), watch, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
