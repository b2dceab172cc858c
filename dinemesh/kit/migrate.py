"""Schema changes: each service keeps its alembic migrations in `<package>/migrations`.

`python -m dinemesh.kit.migrate <package>` applies them to DINEMESH_DATABASE_URL, for a job before a rollout.
A schema that this version of the code does not know is a newer one, and is left as it is: the pods of the
version before go on with it, start again with it, and can be rolled back to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

_URL = "database_url"
_CONNECT_SECONDS = 5
# Any number will do, as long as all pods of a service take the same one.
_LOCK = 0x64696E65


def upgrade(url: str, package: str) -> None:
    """Brings the database to the newest schema of `package`, unless it is newer. Blocks; safe with several
    pods at once."""
    command.upgrade(_config(url, package), "head")


def is_current(url: str, package: str) -> bool:
    """Whether the database has the newest schema of `package`, or a newer one. Blocks."""
    script = ScriptDirectory.from_config(_config(url, package))
    with _engine(url).connect() as connection:
        migration = MigrationContext.configure(connection)
        return set(migration.get_current_heads()) == set(script.get_heads()) or _is_newer(migration, script)


def _is_newer(migration: MigrationContext, script: ScriptDirectory) -> bool:
    known = {one.revision for one in script.walk_revisions()}
    return not known.issuperset(migration.get_current_heads())


def run_env(metadata: MetaData) -> None:
    """The whole of a service's `migrations/env.py`: runs the migrations in one transaction."""
    with _engine(context.config.attributes[_URL]).connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            # SQLite changes a table by making it anew.
            render_as_batch=connection.dialect.name == "sqlite",
        )
        with context.begin_transaction():
            _one_at_a_time(connection)
            if not _is_newer(context.get_context(), context.script):
                context.run_migrations()
        connection.commit()


def _one_at_a_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Whatever the role or the database says: a migration takes the time that it takes.
        for timeout in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"SET LOCAL {timeout} = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _config(url: str, package: str) -> Config:
    config = Config()
    config.set_main_option("script_location", f"{package}:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes[_URL] = url  # not an option: a % in a password would be taken for interpolation
    return config


def _engine(url: str) -> Engine:
    postgres = url.startswith("postgresql")
    return create_engine(
        url, poolclass=NullPool, connect_args={"connect_timeout" if postgres else "timeout": _CONNECT_SECONDS}
    )


def main(arguments: Sequence[str]) -> None:
    """The command line. Exits with 1, nothing changed, where the database cannot be reached."""
    url = os.environ.get("DINEMESH_DATABASE_URL")
    if len(arguments) != 1 or not url:
        sys.exit("usage: DINEMESH_DATABASE_URL=... python -m dinemesh.kit.migrate <package>")
    try:
        upgrade(url, arguments[0])
    except OperationalError as error:
        sys.exit(f"{arguments[0]}: {error.orig}")
    sys.stdout.write(f"{arguments[0]}: the schema is up to date\n")


if __name__ == "__main__":
    main(sys.argv[1:])
