"""What differs between SQLite and PostgreSQL: how they are opened, begun, timed, and how they fail."""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from dinemesh.kit.store_errors import StoreInUse

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS = 5
CONNECT_TIMEOUT_SECONDS = 3
# What a pod that hangs, or whose machine is gone, had locked is free again after this; a transaction that
# writes never rests longer than a moment.
IDLE_IN_TRANSACTION_SECONDS = 10
# Finds a server that vanished without a word, which TCP by itself notices after a quarter of an hour.
_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,  # ms
}

# PostgreSQL: serialization_failure, deadlock_detected, lock_not_available.
_RETRYABLE_STATES = frozenset({"40001", "40P01", "55P03"})
# PostgreSQL: connection exceptions and a server that is going down or not yet up.
_DOWN_STATES = ("08", "57P")
_SQLITE_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_DOWN = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    }
)


@dataclass(frozen=True)
class Engines:
    """One connection to write, some to read snapshots, and the lock that keeps a SQLite file ours."""

    writer: Engine
    reader: Engine
    lock: IO[str] | None = None

    def close(self) -> None:
        """Close every connection and let go of the file."""
        self.reader.dispose()
        self.writer.dispose()
        if self.lock is not None:
            self.lock.close()


def open_engines(url: str, readers: int, *, exclusive: bool) -> Engines:
    """Raises ValueError for a database that is not supported, StoreInUse if another process has the file."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed, readers, exclusive=exclusive)
    if backend == "postgresql":
        return _open_postgresql(parsed, readers)
    raise ValueError(f"unknown database {backend!r}: use sqlite:/// or postgresql+psycopg://")


def _open_sqlite(url: URL, readers: int, *, exclusive: bool) -> Engines:
    if not url.database or url.database == ":memory:":
        raise ValueError("a SQLite store needs a file: sqlite:///path/to/file.db")
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_beside(path) if exclusive else None
    return Engines(_sqlite_engine(url, "IMMEDIATE", 1), _sqlite_engine(url, "DEFERRED", readers), lock)


def _open_postgresql(url: URL, readers: int) -> Engines:
    engine = create_engine(
        url,
        # Notes of guests and payment tokens must not reach a log by way of an error.
        hide_parameters=True,
        pool_size=readers + 1,
        max_overflow=0,
        # Every transaction of the store ends by an explicit commit or rollback: the reset would be one more
        # round trip per use.
        pool_reset_on_return=None,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, **_KEEPALIVE},
    )
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Engines(engine, reader)


def _lock_beside(path: Path) -> IO[str]:
    lock = path.with_name(path.name + ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StoreInUse(
            f"{path} is in use by another process; on SQLite a service is one process "
            "(on PostgreSQL there may be several)"
        ) from None
    return lock


def _sqlite_engine(url: URL, begin: str, connections: int) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=connections,
        max_overflow=0,
        pool_reset_on_return=None,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        if begin == "DEFERRED":
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin_explicitly(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {begin}")

    return engine


def database_clock(connection: Connection) -> datetime:
    """The one clock of a service: its database's, aware UTC."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)  # an embedded database has the clock of its process
    moment = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return cast(datetime, moment).astimezone(UTC)


# A role, a database or a server may say otherwise, and then a commit that was answered could be lost with the
# machine. The one value that promises more stays.
_COMMIT_IS_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') <> 'remote_apply'"
)


def connect_writer(opened: Engines) -> Connection:
    """The one connection that writes, and the only one that holds locks. A reader may take its time."""
    connection = opened.writer.connect()
    if connection.dialect.name == "postgresql":
        session: Any = connection.connection.driver_connection
        session.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECONDS}s'")
        session.execute(_COMMIT_IS_DURABLE)
        if session.execute("SHOW fsync").fetchone() == ("off",):
            log.warning("this PostgreSQL runs with fsync=off: what it commits may be lost with its machine")
        session.commit()
    return connection


# Any number, the same in every pod; locks of this kind are counted per database.
_WAIT_FOR_TURN = text("SELECT pg_advisory_xact_lock(20615)")


def wait_for_turn(connection: Connection) -> None:
    """Groups of several pods on one PostgreSQL take turns until their commit.

    Each locks many rows in an order of its own: at the same time they would end in deadlocks, which cost a
    second each. On SQLite a service is one process. Nothing is right because of it: for that there are the
    guarded updates.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_WAIT_FOR_TURN)


def is_contention(error: DBAPIError) -> bool:
    """Whether another transaction was in the way, so that another try makes sense."""
    return _state(error) in _RETRYABLE_STATES or _sqlite_code(error) in _SQLITE_BUSY


def is_down(error: DBAPIError) -> bool:
    """Whether the database could not be reached, or its file not be used."""
    if error.connection_invalidated or _state(error).startswith(_DOWN_STATES):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_DOWN
    # psycopg has no state for a server that it never reached or lost.
    return isinstance(error, (OperationalError, InterfaceError)) and not _state(error)


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _sqlite_code(error: DBAPIError) -> int:
    return (getattr(error.orig, "sqlite_errorcode", None) or 0) & 0xFF  # without the extended part
