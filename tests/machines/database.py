"""A service's database in memory, with the schema of its migrations, and a store that runs each transaction
at once. Commits fail, and processes die at them, when a machine says so."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.pool import StaticPool

from dinemesh.kit import migrate
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable, Transaction, _Moment

T = TypeVar("T")


class Fault(Enum):
    """What befalls a transaction that writes."""

    AWAY = auto()  # the database cannot be reached
    IN_DOUBT_LOST = auto()  # the commit fails and nothing of it is there
    IN_DOUBT_DONE = auto()  # the commit fails and all of it is there
    DIES_BEFORE = auto()  # the process dies before the commit
    DIES_AFTER = auto()  # and after it, before anybody is told


class Database:
    """One SQLite database in memory. Its engine outlives the examples of a machine, and with it the compiled
    statements; the contents are put back."""

    def __init__(self, package: str) -> None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

        @event.listens_for(engine, "connect")
        def set_up(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # BEGIN is ours, below
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        self.connection = engine.connect()
        self._driver = cast(sqlite3.Connection, self.connection.connection.driver_connection)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "template.db"
            migrate.upgrade(f"sqlite:///{path}", package)
            self.load(sqlite3.connect(path))

    def load(self, contents: sqlite3.Connection) -> None:
        contents.backup(self._driver)

    def copy(self) -> sqlite3.Connection:
        """The contents as they are now."""
        taken = sqlite3.connect(":memory:", check_same_thread=False)
        self._driver.backup(taken)
        return taken

    def save(self, path: Path) -> None:
        with sqlite3.connect(path) as file:
            self._driver.backup(file)
        file.close()


class InlineStore(Store):
    """The store of one process: the same promises as the real one, without its threads and its groups."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], die: Callable[[], None] = lambda: None
    ) -> None:
        self._one = database.connection
        self._now = clock
        self._die = die
        self.faults: list[Fault] = []
        self.dead = False

    async def write(
        self, change: Callable[[Transaction], T], *, shed: bool = False, on: Sequence[str] = ()
    ) -> T:
        await asyncio.sleep(0)  # others may be first, as with the real one
        self._must_live()
        fault = self.faults.pop(0) if self.faults else None
        if fault is Fault.AWAY:
            raise StoreUnavailable("the database is away")
        with self._one.begin() as transaction:
            tx = self._transaction()
            value = contextvars.copy_context().run(change, tx)
            tx.flush()
            if fault is Fault.IN_DOUBT_LOST or fault is Fault.DIES_BEFORE:
                transaction.rollback()
        if fault is Fault.DIES_BEFORE or fault is Fault.DIES_AFTER:
            self._die()
            self._must_live()
        if fault is not None:
            raise CommitInDoubt("the outcome of a commit is unknown")
        for call in tx._after_commit:
            call()
        return value

    async def read(self, query: Callable[[Transaction], T]) -> T:
        await asyncio.sleep(0)
        self._must_live()
        return self.look(query)

    def look(self, query: Callable[[Transaction], T]) -> T:
        """A read at once, for whoever checks."""
        with self._one.begin() as transaction:
            try:
                return query(self._transaction(read_only=True))
            finally:
                transaction.rollback()

    def at_once(self, change: Callable[[Transaction], T]) -> T:
        """A write that nothing befalls, for what the machine does itself."""
        with self._one.begin():
            return change(self._transaction())

    async def close(self) -> None:
        pass

    def _transaction(self, *, read_only: bool = False) -> Transaction:
        moment = _Moment(self._one, lambda _: self._now())
        return Transaction(self._one, moment, read_only=read_only)

    def _must_live(self) -> None:
        if self.dead:
            raise asyncio.CancelledError


@cache
def database(package: str) -> Database:
    """The one database of a service in this test process."""
    return Database(package)


@cache
def empty(package: str) -> sqlite3.Connection:
    """What a fresh database of a service holds."""
    return database(package).copy()
