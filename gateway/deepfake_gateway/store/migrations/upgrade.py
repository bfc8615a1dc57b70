"""`upgrade`: brings a database to the tables of this release, whoever else starts at the same moment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from deepfake_preprocess.errors import OptionError

VERSION_TABLE: Final = "gateway_schema"
_LOCK: Final = 0x6465657066616B65
"""Key of Postgres' advisory lock: the bytes of ``deepfake``."""


def upgrade(engine: sa.Engine) -> None:
    """Make what is missing, all of it or nothing; data stay.

    Raises OptionError where a later release made the database.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        if _step_of(connection) == script.get_current_head():
            return
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # One transaction of our own: sqlite3's would begin behind the first changes of tables.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_sqlite else "BEGIN")
        try:
            if not is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            _check_known(script, _step_of(connection))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")


def _step_of(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _check_known(script: ScriptDirectory, step: str | None) -> None:
    if step not in {None, *(known.revision for known in script.walk_revisions())}:
        raise OptionError(
            f"the database was made by a later release (its tables are at {step!r}); run that release, or name "
            "another `database` or `data_dir`"
        )
