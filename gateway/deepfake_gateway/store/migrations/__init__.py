"""How the tables came to be what `schema` says: one step after the other, by Alembic."""
