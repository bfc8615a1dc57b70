"""Files of a batch that are yet to be fetched from their addresses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Of the batches that were there before, all files are."""
    op.add_column("batches", sa.Column("fields", sa.Text, nullable=False, server_default="{}"))
    op.add_column("batches", sa.Column("key_id", sa.String(8)))
    for name in ("request_id", "traceparent"):
        op.add_column("batches", sa.Column(name, sa.String(64)))
    op.add_column("batch_items", sa.Column("url", sa.Text))
    awaited = sa.text("url IS NOT NULL")
    op.create_index(
        "ix_batch_items_awaited", "batch_items", ["batch_id"], sqlite_where=awaited, postgresql_where=awaited
    )
