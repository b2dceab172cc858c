"""What happens to a PostgreSQL under a service: it turns read-only, or somebody holds a lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy.engine import make_url


def plain(url: str) -> str:
    """A SQLAlchemy URL as libpq takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def name_of(url: str) -> str:
    """The database's name."""
    name = make_url(url).database
    assert name
    return name


def end_sessions(execute: Callable[[str], Any], database: str) -> None:
    """Ends every session in the database."""
    execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")


@contextmanager
def read_only(execute: Callable[[str], Any], database: str) -> Iterator[None]:
    """The database takes no changes, as one whose address still points at what was the primary. `execute`
    runs a statement as the server's administrator."""
    execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    end_sessions(execute, database)
    try:
        yield
    finally:
        # Sessions that began meanwhile stay as they are; whoever has one has to begin anew by itself.
        execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")


@contextmanager
def locked(url: str, *tables: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's session holds tables against changes (and not against reading)."""
    with psycopg.connect(plain(url)) as holder:
        _lock(holder, tables)
        try:
            yield holder
        finally:
            holder.rollback()


def _lock(holder: psycopg.Connection[Any], tables: Sequence[str]) -> None:
    """Of a deadlock with those who write meanwhile one side is the victim: it may be this one."""
    for last in (False, False, False, True):
        try:
            holder.execute(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE".encode())
            return
        except psycopg.errors.DeadlockDetected:
            holder.rollback()
            if last:
                raise


def sessions_that_wait(execute: Callable[[str], Any], database: str) -> Any:
    """How many sessions of the database wait for a lock, as rows of one number."""
    return execute(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
    )
