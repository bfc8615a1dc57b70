"""What Alembic runs for `upgrade.upgrade`, which opens the connection and the transaction."""

from alembic import context

from deepfake_gateway.store.migrations.upgrade import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], version_table=VERSION_TABLE, transactional_ddl=False
)
context.run_migrations()
