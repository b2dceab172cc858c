"""What differs between SQLite and PostgreSQL: how they are opened, begun, timed, and how they fail."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import sqlite3
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.sql.elements import TextClause

from dinemesh.kit import rounds
from dinemesh.kit.store_errors import StoreInUse

log = logging.getLogger(__name__)

# A lock that somebody else holds for longer is not given back soon: the next item would wait for it as well.
# Above the second in which PostgreSQL finds a deadlock.
LOCK_TIMEOUT_SECONDS = 2
# A change takes milliseconds. One of an operator's commands has all the time it needs.
STATEMENT_TIMEOUT_SECONDS = 5
# A page of a list takes milliseconds too; what looks through a whole table may take longer.
READ_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 3
# On a full disk there may be room for the next change and not for the one after it. SQLite's log grows to
# 4 MB before it is emptied; a group needs less than a quarter of that.
ROOM_BYTES = 1 << 20
# What a pod that hangs, or whose machine is gone, had locked is free again after this, before others give up
# to wait for it; a transaction that writes never rests longer than a moment.
IDLE_IN_TRANSACTION_SECONDS = 1
# Finds a server that vanished without a word, which TCP by itself notices after a quarter of an hour.
_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,  # ms
}

# PostgreSQL: the server ends a session whose transaction rests, and reads nothing from it any more.
_RESTED = "25P03"
# PostgreSQL: serialization_failure, deadlock_detected. Another try makes sense at once.
_RETRYABLE_STATES = frozenset({"40001", "40P01"})
# PostgreSQL: what makes the next item fail as well, by class and by state.
_DOWN_CLASSES = (
    "08",  # connection exception
    "53",  # out of disk, memory, connections or another resource
    "57P",  # shutting down, starting, crashed, dropped
    "58",  # the system below PostgreSQL fails
)
_DOWN_STATES = frozenset(
    {
        "25006",  # read-only: what was the primary is one no more
        _RESTED,
        "28000",  # the role may not come in
        "28P01",  # the password is wrong
        "3D000",  # no such database
        "42501",  # a right is missing
        "55P03",  # a lock was not given back in time
        "57014",  # a statement did not end in time
        "XX001",  # data are corrupted
        "XX002",  # an index is
    }
)
_SQLITE_RETRYABLE = frozenset({sqlite3.SQLITE_LOCKED})
_SQLITE_DOWN = frozenset(
    {
        sqlite3.SQLITE_BUSY,  # a lock was not given back in time
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,  # a statement did not end in time
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
# After these a COMMIT has certainly changed nothing: the log's last page is not there.
_SQLITE_UNDONE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL})


class ReadOnly(Exception):
    """The server can be read and takes no changes, as one that is a primary no more."""


class NotReplicated(Exception):
    """A commit was answered without the standby that it has to wait for: somebody ended the wait."""


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

    def forget_sessions(self) -> None:
        """Lets nobody go on with a session of before. One to a server that is a primary no more would be
        answered, and with what was."""
        if self.reader.dialect.name == "postgresql":
            self.reader.dispose()


def open_engines(url: str, readers: int, *, exclusive: bool, patient: bool = False) -> Engines:
    """`patient`: statements may take as long as they need.

    Raises ValueError for a database that is not supported, StoreInUse if another process has the file.
    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed, readers, exclusive=exclusive)
    if backend == "postgresql":
        return _open_postgresql(parsed, readers, patient=patient)
    raise ValueError(f"unknown database {backend!r}: use sqlite:/// or postgresql+psycopg://")


def _open_sqlite(url: URL, readers: int, *, exclusive: bool) -> Engines:
    if not url.database or url.database == ":memory:":
        raise ValueError("a SQLite store needs a file: sqlite:///path/to/file.db")
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_beside(path) if exclusive else None
    return Engines(_sqlite_engine(url, "IMMEDIATE", 1), _sqlite_engine(url, "DEFERRED", readers), lock)


def _open_postgresql(url: URL, readers: int, *, patient: bool) -> Engines:
    # Not out of one pool: a session that has read is told "read and write" from then on, and would write to a
    # database that its operators have made read-only.
    writer = _postgresql_engine(url, 1, patient=patient)
    rounds.listen(writer)
    reader = _postgresql_engine(url, readers, patient=patient)
    return Engines(
        writer, reader.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    )


def _postgresql_engine(url: URL, sessions: int, *, patient: bool) -> Engine:
    engine = create_engine(
        url,
        # Notes of guests and payment tokens must not reach a log by way of an error.
        hide_parameters=True,
        pool_size=sessions,
        max_overflow=0,
        # Every transaction of the store ends by an explicit commit or rollback: the reset would be one more
        # round trip per use.
        pool_reset_on_return=None,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, **_KEEPALIVE},
    )

    @event.listens_for(engine, "connect")
    def set_up(session: Any, _record: Any) -> None:
        session.execute(_timeouts(0 if patient else READ_TIMEOUT_SECONDS))
        session.commit()

    return engine


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
        connect_args={"timeout": LOCK_TIMEOUT_SECONDS, "check_same_thread": False},
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


_IS_READ_ONLY = "SELECT current_setting('transaction_read_only')"
# Nothing that the server remembers, and yet a commit that has to be synced and replicated like any other.
_LEAVES_NOTHING = text("SELECT pg_logical_emit_message(true, 'dinemesh', '')")
# Of ours: a commit goes on waiting after its client has left. Each further one would take a connection more.
_WAITS_FOR_STANDBY = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename = current_user AND wait_event = 'SyncRep'"
    " AND query_start < clock_timestamp() - interval '2 s'"
)
# As much as ROOM_BYTES, where the tables of this database are.
_TAKES_ROOM = text(
    "CREATE TEMPORARY TABLE dinemesh_room ON COMMIT DROP AS"
    f" SELECT repeat(md5(n::text), 32) FROM generate_series(1, {ROOM_BYTES // 1024}) AS n"
)
_NOT_ALLOWED = frozenset({"42501", "42883"})  # no right to do so, or no such function


def look(connection: Connection) -> None:
    """Raises ReadOnly where nothing can be changed. Writes nothing."""
    if connection.dialect.name != "postgresql":
        return
    if connection.exec_driver_sql(_IS_READ_ONLY).scalar_one() == "on":
        raise ReadOnly("the database takes no changes")


def _timeouts(statement_seconds: float) -> str:
    return (
        f"SET statement_timeout = {round(statement_seconds * 1000)};"
        f"SET lock_timeout = {round(LOCK_TIMEOUT_SECONDS * 1000)}"
    )


class Writer:
    """The one session that writes, and the only one that holds locks. A reader may take its time.

    To make one raises whatever the driver raises. `patient`: its statements may take as long as they need.
    """

    def __init__(self, opened: Engines, *, patient: bool = False) -> None:
        self.connection = opened.writer.connect()
        self._warnings: list[str] = []
        self._socket: socket.socket | None = None
        if self.connection.dialect.name == "postgresql":
            try:
                self._set_up(self.connection.connection.driver_connection, patient)
            except BaseException:
                self.drop()
                raise

    def _set_up(self, session: Any, patient: bool) -> None:
        # The same connection under a number of our own: libpq closes its own when it likes, and another file
        # could get it.
        self._socket = socket.socket(fileno=os.dup(session.fileno()))
        session.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_SECONDS}s'")
        session.execute(_timeouts(0 if patient else STATEMENT_TIMEOUT_SECONDS))
        session.execute(_COMMIT_IS_DURABLE)
        if session.execute("SHOW fsync").fetchone() == ("off",):
            log.warning("this PostgreSQL runs with fsync=off: what it commits may be lost with its machine")
        session.commit()
        session.add_notice_handler(self._on_notice)

    @property
    def usable(self) -> bool:
        """Returns False once the session is closed or invalidated; the store then replaces it."""
        return not (self.connection.closed or self.connection.invalidated)

    def begin(self) -> None:
        """Begins a transaction."""
        self.connection.begin()

    def commit(self) -> None:
        """Ends it. Raises NotReplicated for a commit that is answered and may be lost with its server."""
        self._warnings.clear()
        self.connection.commit()
        if self._warnings:
            # The server answers as if all were well when the wait for a standby is ended from outside.
            raise NotReplicated(self._warnings[0])

    def prove(self, *, room: bool = False) -> None:
        """Writes and commits something that leaves nothing behind; raises where that fails. With `room` it
        fails also where the disk has no more than what the next change would take."""
        if self.connection.dialect.name == "sqlite":
            self._prove_on_sqlite(room)
            return
        if room:
            self._need_room()
        self.begin()
        look(self.connection)
        if self.connection.execute(_WAITS_FOR_STANDBY).scalar_one():
            raise NotReplicated("commits wait for a standby")
        if self._may(_LEAVES_NOTHING):
            self.commit()

    def _prove_on_sqlite(self, room: bool) -> None:
        self.begin()
        version = self.connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        self.connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        self.commit()
        if room:
            _need_room_beside(Path(self.connection.engine.url.database or ""))

    def _need_room(self) -> None:
        self.begin()
        self._may(_TAKES_ROOM)
        self.connection.rollback()

    def _may(self, statement: TextClause) -> bool:
        """Runs it; False, and rolled back, where this role has no right to."""
        try:
            self.connection.execute(statement)
        except DBAPIError as error:
            self.connection.rollback()
            if _state(error) not in _NOT_ALLOWED:
                raise
            return False
        return True

    def cut(self) -> None:
        """From another thread: whatever the session waits for ends with an error."""
        try:
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
            elif self.connection.dialect.name == "sqlite" and self.usable:
                cast(Any, self.connection.connection.driver_connection).interrupt()
        except Exception:  # it has ended by itself
            log.debug("the session could not be cut", exc_info=True)

    def drop(self) -> None:
        """Ends the session, also a broken one, so that it is never used again."""
        try:
            self.connection.invalidate()
        except Exception:
            log.debug("the broken connection could not be invalidated", exc_info=True)
        self.connection.close()
        if self._socket is not None:
            self._socket.close()

    def _on_notice(self, notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(str(notice.message_primary))


def _need_room_beside(path: Path) -> None:
    """Raises OSError where the disk is full: SQLite may still find room in its log, for a while."""
    probe = path.with_name(path.name + ".room")
    try:
        with probe.open("wb") as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


_TAKE = (
    "SELECT coalesce(array_agg(number), '{}') FROM unnest(%(numbers)s::bigint[]) AS number"
    " WHERE NOT pg_try_advisory_xact_lock(number)"
)


def numbers_of(names: Sequence[str]) -> list[int]:
    """By which pods mean the same. Two names with one number only wait for each other."""
    return [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in names
    ]


def taken(connection: Connection, numbers: Collection[int]) -> Set[int]:
    """Those of these numbers that another pod has in hand; the others are ours until the commit.

    Nobody waits here. Where groups of several pods waited for each other's rows, each in an order of its own,
    they would end in deadlocks, which cost a second each, and a pod that hangs would stop them all. Nothing
    is right because of it: for that there are the guarded updates.
    """
    if not numbers:
        return frozenset()
    return frozenset(connection.exec_driver_sql(_TAKE, {"numbers": sorted(numbers)}).scalar_one())


# Of ours: the server ends one that rests between two statements, but has no timeout for one whose pod was
# stopped while it sent several at once.
_END_HUNG = text(
    "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a"
    " WHERE a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()"
    " AND a.state <> 'idle' AND a.wait_event = 'ClientRead'"
    f" AND a.state_change < clock_timestamp() - interval '{IDLE_IN_TRANSACTION_SECONDS} s'"
    " AND EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'advisory')"
)


def end_hung(connection: Connection) -> None:
    """End sessions of pods that hang and have in hand what others decide on. What they had not committed is
    rolled back."""
    connection.execute(_END_HUNG)


def is_contention(error: DBAPIError) -> bool:
    """Whether another transaction was in the way, so that another try makes sense."""
    return _state(error) in _RETRYABLE_STATES or _sqlite_code(error) in _SQLITE_RETRYABLE


def is_down(error: BaseException) -> bool:
    """Whether the next item would fail as well: the database cannot be reached, is full, takes no changes,
    or does not give back a lock."""
    if isinstance(error, ReadOnly | NotReplicated):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_DOWN
    state = _state(error)
    return is_lost(error) or state.startswith(_DOWN_CLASSES) or state in _DOWN_STATES


def is_lost(error: BaseException) -> bool:
    """Whether it is the session that ended, so that the next item may do with a new one."""
    if not isinstance(error, DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    if error.connection_invalidated or _state(error).startswith(("08", "57P", _RESTED)):
        return True
    # psycopg has no state for a server that it never reached or lost.
    return isinstance(error, (OperationalError, InterfaceError)) and not _state(error)


def is_full(error: BaseException) -> bool:
    """Whether the disk is."""
    if not isinstance(error, DBAPIError):
        return False
    return _state(error) == "53100" or _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def is_undone(error: BaseException) -> bool:
    """Whether a COMMIT that failed so has certainly changed nothing."""
    if not isinstance(error, DBAPIError):
        return False
    return _state(error) == _RESTED or _sqlite_code(error) in _SQLITE_UNDONE


def why(error: BaseException) -> str:
    """The kind of a failure in a few words, without what the statement was about."""
    if isinstance(error, DBAPIError):
        code = _state(error) or getattr(error.orig, "sqlite_errorname", None)
        return f"{type(error.orig).__name__} {code}" if code else type(error.orig).__name__
    return type(error).__name__


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _sqlite_code(error: DBAPIError) -> int:
    return (getattr(error.orig, "sqlite_errorcode", None) or 0) & 0xFF  # without the extended part
