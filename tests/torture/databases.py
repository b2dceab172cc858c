"""The services' databases as somebody else can get at them: their disks, locks and clocks.

Each way to hurt one is a context: hurt inside, and as before after it. Nothing here speaks to the service.
"""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from tests.guards import switch
from tests.support import clock, database_faults
from tests.support.mesh import SERVICES, Launch
from tests.support.postgres import PostgresServer
from tests.support.process import Child, spawn
from tests.torture.disks import Disk

_NO_ROOM = "53100"
_SAID = {"25006": "read-only (25006)"}
_FAKE = "torture"


@dataclass(frozen=True)
class Database:
    """Of one service. `disk` and `clock` are None where the run did not give it its own: then it is no
    target of faults of theirs."""

    service: str
    url: str
    disk: Disk | None = None
    clock: Path | None = None
    """SQLite's clock is its process's, which follows this file; PostgreSQL's needs none."""

    @property
    def on_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def file(self) -> Path:
        """SQLite's."""
        name = make_url(self.url).database
        assert name
        return Path(name)

    @contextmanager
    def read_only(self) -> Iterator[str]:
        """What a write is answered meanwhile. On SQLite the service must not run when it begins."""
        if self.on_sqlite:
            assert self.disk is not None
            self.disk.forbid_writing()
            try:
                yield self.disk.refusal()
            finally:
                self.disk.allow_writing()
            return
        with database_faults.read_only(self._administer, database_faults.name_of(self.url)):
            yield self._refusal()

    @contextmanager
    def full(self) -> Iterator[str]:
        """What a write is answered meanwhile."""
        assert self.disk is not None
        if self.on_sqlite:
            # What is in the write-ahead log already could be written over without a byte more.
            with sqlite3.connect(self.file, timeout=10) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        self.disk.fill()
        try:
            yield self.disk.refusal() if self.on_sqlite else self._refusal()
        finally:
            self.disk.make_room()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another process's transaction holds the right to write, or every table against changes."""
        if self.on_sqlite:
            holder = sqlite3.connect(self.file, timeout=10, isolation_level=None, check_same_thread=False)
            try:
                holder.execute("BEGIN IMMEDIATE")
                yield
                holder.execute("ROLLBACK")
            finally:
                holder.close()
            return
        tables = self._execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        with database_faults.locked(self.url, *(str(name) for (name,) in tables)):
            yield

    def waiting(self) -> int:
        """How many of PostgreSQL's sessions wait for a lock."""
        (row,) = database_faults.sessions_that_wait(self._administer, database_faults.name_of(self.url))
        return int(row[0])

    @contextmanager
    def ahead(self, by: dt.timedelta) -> Iterator[None]:
        """Its clock jumps forward, and back at the end."""
        self._set_ahead(by)
        try:
            yield
        finally:
            self._set_ahead(dt.timedelta())

    def _set_ahead(self, by: dt.timedelta) -> None:
        if self.on_sqlite:
            assert self.clock is not None
            clock.write_ahead(self.clock, by)
        else:
            self._execute(f"UPDATE {_FAKE}.clock SET ahead = interval '{by.total_seconds()} seconds'")

    def _execute(self, statement: str) -> Sequence[tuple[object, ...]]:
        return _run(self.url, statement)

    def _administer(self, statement: str) -> Sequence[tuple[object, ...]]:
        """Outside of this database, whose sessions may have to end."""
        return _run(make_url(self.url).set(database="postgres").render_as_string(False), statement)

    def _refusal(self) -> str:
        """PostgreSQL's answer to somebody who needs a new page in this database; "" if it was given one."""
        try:
            _run(self.url, f"CREATE TABLE {_FAKE}.probe AS SELECT repeat('x', 1000) AS text")
            _run(self.url, f"DROP TABLE {_FAKE}.probe")
        except psycopg.Error as error:
            # A session that cannot even begin has no code.
            full = error.sqlstate == _NO_ROOM or "No space left" in str(error)
            return "disk full (53100)" if full else _SAID.get(error.sqlstate or "", str(error))
        return ""


def _run(url: str, statement: str) -> Sequence[tuple[object, ...]]:
    with psycopg.connect(database_faults.plain(url), autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def on_sqlite(folder: Path) -> dict[str, Database]:
    """A file for each service on a disk of its own, and a clock."""
    found = {}
    for name in SERVICES:
        disk = Disk(folder / "disks" / name)
        found[name] = Database(name, f"sqlite:///{disk.mount}/{name}.db", disk, clock_of(folder, name))
    return found


def on_postgresql(folder: Path, server: PostgresServer) -> dict[str, Database]:
    """A database for each service on a disk of its own (a tablespace), and a clock."""
    found = {}
    for name in SERVICES:
        disk = Disk(folder / "disks" / name)
        url = server.fresh(f"{name}_svc")
        database = database_faults.name_of(url)
        server.execute(f"CREATE TABLESPACE {name} LOCATION '{disk.mount}'")
        server.execute(f"ALTER DATABASE {database} SET TABLESPACE {name}")
        found[name] = Database(name, url, disk)
        _give_clock(found[name], database)
    return found


def plain(urls: Mapping[str, str]) -> dict[str, Database]:
    """Databases that stay where they are."""
    return {name: Database(name, urls[name]) for name in SERVICES}


def keep(databases: Mapping[str, Database]) -> None:
    """Copies SQLite files from disks that end with this process to where their folders are."""
    for one in databases.values():
        if one.on_sqlite and one.disk is not None:
            shutil.copytree(one.disk.mount, one.disk.mount.with_name(f"{one.service}.kept"))


def _give_clock(database: Database, name: str) -> None:
    """The database's own `clock_timestamp()` comes before PostgreSQL's."""
    for statement in (
        f"CREATE SCHEMA {_FAKE}",
        f"CREATE TABLE {_FAKE}.clock AS SELECT interval '0' AS ahead",
        f"CREATE FUNCTION {_FAKE}.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
        f" 'SELECT pg_catalog.clock_timestamp() + ahead FROM {_FAKE}.clock'",
        f"ALTER DATABASE {name} SET search_path = {_FAKE}, pg_catalog, public",
    ):
        database._execute(statement)


def clock_of(folder: Path, service: str) -> Path:
    """The file that the process of a service on SQLite follows."""
    return folder / f"{service}.clock"


def launch(module: str, environment: dict[str, str], log: Path) -> Child:
    """As tests.support.mesh.launch, for a process that follows its clock."""
    file = str(clock_of(log.parent, log.stem))
    modules = ["tests.guards.start", module] if environment.get(switch.VARIABLE) else [module]
    command = ["-m", "tests.support.clock", file, *modules]
    return spawn(["setpriv", "--pdeathsig", "KILL", "--", sys.executable, *command], environment, log)


def following(forked: Launch) -> Launch:
    """The same for processes that tests.support.fork_server forks."""

    def start(module: str, environment: dict[str, str], log: Path) -> Child:
        told = environment | {clock.VARIABLE: str(clock_of(log.parent, log.stem))}
        return forked(module, told, log)

    return start
