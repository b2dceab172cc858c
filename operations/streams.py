"""Tables read in the order of a key and held side by side, part by part: however many rows there are, only a
few thousand of them are in memory."""

from __future__ import annotations

import itertools
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, bindparam, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from dinemesh.kit.instants import from_micros

CONNECT_SECONDS = 5
BUSY_SECONDS = 10
PART = 2000
"""Rows of a table that are held at once, or somewhat more."""
_PAGE = 1000
_CACHE_KILOBYTES = 16_384

T = TypeVar("T")
Keyed = tuple[Any, T]
"""A row and its key. Text is ordered by code points, on both engines."""


class Unreadable(Exception):
    """A source that was named cannot be read: nothing can be said."""


class Database:
    """A service's database, read-only: all that is asked is answered out of the moment it was opened at.

    On SQLite the write-ahead log grows until it is closed, by what the service writes meanwhile.
    """

    def __init__(self, url: str, tables: Sequence[str] = ()) -> None:
        """Blocks. Raises Unreadable, also if one of `tables` is not there."""
        self._name = make_url(url).render_as_string(hide_password=True)
        with self._readable():
            self._engine = _engine(url)
        try:
            with self._readable():
                self._connection = self._engine.connect()
                if self._engine.dialect.name == "postgresql":
                    # A million bookings take minutes, and one database waits while others are read.
                    for timeout in ("statement_timeout", "idle_in_transaction_session_timeout"):
                        self._connection.execute(text(f"SET LOCAL {timeout} = 0"))
                for table in tables:
                    self._connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).all()
        except Unreadable:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Ends the transaction of the snapshot, so that SQLite's write-ahead log can shrink again."""
        self._connection.close()
        self._engine.dispose()

    def ordered(
        self, kind: type[T], tables: str, key: str, *, where: str = "", **given: str
    ) -> Iterator[Keyed[T]]:
        """One value for each row of `tables`, by their key: a column of text. The columns are the fields of
        the value, those of the table that is called t; `given` has the SQL of others. What is asked for must
        be read to its end, or be dropped with the database."""
        made = maker(kind)
        return (
            (ordered_by, made(cells))
            for ordered_by, cells in self.cells(kind, tables, key, where=where, **given)
        )

    def cells(
        self, kind: type[Any], tables: str, key: str, *, where: str = "", **given: str
    ) -> Iterator[Keyed[Sequence[Any]]]:
        """The same, before values are made of it: much cheaper, where few are needed."""
        names = ", ".join(given.get(column.name, f"t.{column.name}") for column in fields(kind))
        condition = f" WHERE {where}" if where else ""
        query = f"SELECT {key}, {names} FROM {tables}{condition} ORDER BY {key}{self._by_code_points}"
        return ((row[0], row[1:]) for row in self.rows(query))

    def rows(self, query: str, **parameters: Any) -> Iterator[Row[Any]]:
        """The answer, as it is read."""
        with self._readable():
            statement = text(query.replace("{C}", self._by_code_points))
            streaming = {"stream_results": True, "max_row_buffer": _PAGE}
            answer = self._connection.execute(statement, parameters, execution_options=streaming)
            for page in answer.partitions(_PAGE):
                yield from page

    def of(self, kind: type[T], table: str, column: str, values: Iterable[str]) -> list[T]:
        """The rows that have one of these values there: few."""
        wanted = sorted(set(values))
        if not wanted:
            return []
        names = ", ".join(one.name for one in fields(kind))  # type: ignore[arg-type]
        query = text(f"SELECT {names} FROM {table} WHERE {column} IN :wanted")
        query = query.bindparams(bindparam("wanted", expanding=True))
        made = maker(kind)
        with self._readable():
            return [made(row) for row in self._connection.execute(query, {"wanted": wanted})]

    def all(self, kind: type[T], table: str, **parameters: Any) -> list[T]:
        """All rows of a small table, or of a condition that few meet."""
        names = ", ".join(one.name for one in fields(kind))  # type: ignore[arg-type]
        made = maker(kind)
        return [made(row) for row in self.rows(f"SELECT {names} FROM {table}", **parameters)]

    @property
    def _by_code_points(self) -> str:
        return "" if self._engine.dialect.name == "sqlite" else ' COLLATE "C"'

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{self._name}: {getattr(error, 'orig', error)}") from error


class Sorted:
    """Values of one key each, sorted on disk: in a file of SQLite's own that is gone when it is closed."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", check_same_thread=False)
        self._file.execute("CREATE TABLE kept (key TEXT, value BLOB)")

    def add(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Takes pairs of key and value in any order; a key may come more than once."""
        self._file.executemany("INSERT INTO kept VALUES (?, ?)", values)

    def __iter__(self) -> Iterator[Keyed[bytes]]:
        return iter(self._file.execute("SELECT key, value FROM kept ORDER BY key"))

    def close(self) -> None:
        """Deletes the file, and with it all that was added."""
        self._file.close()


class _Stream:
    def __init__(self, rows: Iterable[Keyed[Any]]) -> None:
        self._rows = iter(rows)
        self.buffer: list[Keyed[Any]] = []
        self.ended = False

    def fill(self, size: int) -> None:
        missing = size - len(self.buffer)
        if missing > 0 and not self.ended:
            self.buffer += itertools.islice(self._rows, missing)
            self.ended = len(self.buffer) < size

    def take_before(self, bound: Any) -> list[Any]:
        """Those whose key is lower; all, if there is no bound."""
        end = (
            len(self.buffer) if bound is None else bisect_left(self.buffer, bound, key=lambda keyed: keyed[0])
        )
        taken = [value for _, value in self.buffer[:end]]
        del self.buffer[:end]
        return taken


def in_step(
    streams: Mapping[str, Iterable[Keyed[Any]]], size: int | None = None
) -> Iterator[Mapping[str, list[Any]]]:
    """All streams, each in the order of its keys, in parts: what has one key, in whichever streams, comes in
    the same part. A part has about `size` values of each stream (PART), more only if one key has more."""
    size = size or PART
    opened = {name: _Stream(rows) for name, rows in streams.items()}
    want = size
    while True:
        for stream in opened.values():
            stream.fill(want)
        bound = min((one.buffer[-1][0] for one in opened.values() if not one.ended), default=None)
        part = {name: stream.take_before(bound) for name, stream in opened.items()}
        if any(part.values()):
            yield part
            want = size
        elif bound is None:
            return
        else:
            want *= 2  # one key has them all


def instant(microseconds: int) -> datetime:
    """Times are microseconds since 1970 in every database."""
    return from_micros(microseconds)


def place(kind: type[Any], name: str) -> int:
    """Where a field is among the cells of a row."""
    return [column.name for column in fields(kind)].index(name)


def maker(kind: type[T]) -> Callable[[Sequence[Any]], T]:
    """Makes a value of the cells of a row. SQLite has no booleans; times are numbers."""
    # Annotations are strings here.
    kinds = [str(column.type).partition(" ")[0] for column in fields(kind)]  # type: ignore[arg-type]
    readers: dict[str, Callable[[Any], Any]] = {"bool": bool, "datetime": instant}
    read = [(place, readers[name]) for place, name in enumerate(kinds) if name in readers]

    def made(cells: Sequence[Any]) -> T:
        values = list(cells)
        for place, reader in read:
            if values[place] is not None:
                values[place] = reader(values[place])
        return kind(*values)

    return made


def _engine(url: str) -> Engine:
    """Read-only, and every query of one reading on the same snapshot."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    if not Path(parsed.database or "").is_file():
        raise Unreadable(f"{url}: there is no such file")
    # Opened by one thread and read by another, one after the other.
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA temp_store=FILE")  # what is sorted is sorted on disk
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KILOBYTES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN DEFERRED")

    return engine
