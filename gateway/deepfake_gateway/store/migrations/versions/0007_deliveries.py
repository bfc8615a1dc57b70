"""Deliveries go with the analysis that they tell of."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Of the deliveries that were there before, the bodies say the analysis; those of deleted ones go."""
    with op.batch_alter_table("deliveries") as table:
        table.add_column(sa.Column("analysis_id", sa.String(32)))
    connection = op.get_bind()
    deliveries = sa.table("deliveries", sa.column("id"), sa.column("body"), sa.column("analysis_id"))
    analyses = sa.table("analyses", sa.column("id"))
    for delivery_id, body in connection.execute(sa.select(deliveries.c.id, deliveries.c.body)).all():
        change = deliveries.update().where(deliveries.c.id == delivery_id)
        connection.execute(change.values(analysis_id=json.loads(body)["data"]["id"]))
    known = sa.select(analyses.c.id)
    connection.execute(deliveries.delete().where(deliveries.c.analysis_id.not_in(known)))
    with op.batch_alter_table("deliveries") as table:
        table.alter_column("analysis_id", existing_type=sa.String(32), nullable=False)
        table.create_foreign_key(
            "deliveries_analysis_id_fkey", "analyses", ["analysis_id"], ["id"], ondelete="CASCADE"
        )
        table.create_index("ix_deliveries_analysis_id", ["analysis_id"])
