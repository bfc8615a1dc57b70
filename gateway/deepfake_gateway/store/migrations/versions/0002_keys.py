"""Keys, sessions of the page, and whose an analysis or a batch is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """What was there before belongs to nobody in particular."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(8), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("seconds_per_day", sa.Float),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(8), sa.ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "quotas",
        sa.Column("key_id", sa.String(8), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.drop_index("ix_analyses_idempotency_key", "analyses")
    op.add_column("analyses", _tenant())
    op.add_column("analyses", sa.Column("key_id", sa.String(8)))
    op.create_index("ix_analyses_idempotency_key", "analyses", ["tenant", "idempotency_key"], unique=True)
    op.create_index("ix_analyses_tenant", "analyses", ["tenant", "created_at"])
    op.add_column("batches", _tenant())
    op.create_index("ix_batches_tenant", "batches", ["tenant", "created_at"])


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String(64), nullable=False, server_default="")
