"""Analyses with their events, explanations and batches, and the workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "analyses",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("model_name", sa.Text),
        sa.Column("model_version", sa.Integer),
        sa.Column("checkpoint_sha256", sa.String(64)),
        sa.Column("label", sa.String(16), index=True),
        sa.Column("fake_probability", sa.Float),
        sa.Column("reason", sa.String(32)),
        sa.Column("verdict", sa.Text),
        sa.Column("error_type", sa.Text),
        sa.Column("error_detail", sa.Text),
    )
    op.create_index("ix_analyses_idempotency_key", "analyses", ["idempotency_key"], unique=True)
    op.create_table(
        "analysis_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        _analysis_id(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "explanations",
        sa.Column("id", sa.String(32), primary_key=True),
        _analysis_id(),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("faces", sa.Text),
        sa.Column("error_type", sa.Text),
        sa.Column("error_detail", sa.Text),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
    )
    op.create_table(
        "batch_items",
        sa.Column("batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("analysis_id", sa.String(32), index=True),
        sa.Column("refusal", sa.Text),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("seen_at", sa.Float, nullable=False),
    )


def _analysis_id() -> sa.Column[str]:
    key = sa.ForeignKey("analyses.id", ondelete="CASCADE")
    return sa.Column("analysis_id", sa.String(32), key, nullable=False, index=True)
