"""What a booking leaves behind, and how long it takes to look through all of them:
`python -m benchmarks.growth --bookings 1000000`.

A few bookings are lived by the services' own use cases (benchmarks/stories.py), one of each kind: completed,
confirmed, cancelled, not come. Their rows are then copied under new ids, to other restaurants and days of the
last four weeks, so that a million are made in minutes and each is what the services would leave. The days are
moved in the columns, and not inside of events. Then the sizes, and what `make audit` and `make pending` say
of it, how long they take, and in how much memory; the dead letters, which need a broker, are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import Column

from benchmarks.stories import CAPACITY, SCHEMAS, Row, Story, Told, files, make_schemas, told
from benchmarks.table import processor
from dinemesh.kit.store import Instant
from operations import backlog, snapshot
from operations.audit import audit
from operations.limits import Limits
from operations.rows import HOLDING
from operations.snapshot import Sources
from operations.streams import Unreadable

BOOKINGS = 100_000
TINY = 200
DAYS = 28
"""Bookings are spread over so many: all of them are within the retention, and the audit misses each row."""
BOOKINGS_OF_A_RESTAURANT = 5000
BOOKINGS_OF_A_CUSTOMER = 10
AT_ONCE = 2000
READY_SECONDS = 20.0
MOST_LISTED = 20
PRUNED = frozenset({"outbox", "inbox", "requests"})
"""What is kept only for DINEMESH_RETENTION_DAYS; request ids for so long after the end of a reservation."""

_DAY = 86_400_000_000
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CACHE_KILOBYTES = 1_000_000


@dataclass(frozen=True)
class Copying:
    """Ids of one copy of a story, by the ids of the story, and by how much it is earlier, in microseconds."""

    ids: Mapping[str, str]
    earlier: int


class Form:
    """Rows of a table, to be copied."""

    def __init__(self, name: str, table: str, rows: Sequence[Row]) -> None:
        self.columns = list(SCHEMAS[name].tables[table].columns)
        self.table = table
        names = ", ".join(column.name for column in self.columns)
        self.insert = f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(self.columns))})"
        self._numbered = [place for place, column in enumerate(self.columns) if _is_numbered(column)]
        self._rows = [
            [self._cell(column, cell) for column, cell in zip(self.columns, row, strict=True)] for row in rows
        ]
        self.ids = {one for row in rows for cell in row for one in _ids_in(cell)}

    @staticmethod
    def _cell(column: Column[Any], cell: Any) -> Callable[[Copying], Any]:
        if _counts_itself(column):
            return lambda _: None
        if isinstance(column.type, Instant) and cell is not None:
            return lambda copying: cell - copying.earlier
        if not _ids_in(cell):
            return lambda _: cell
        raw = cell.encode() if isinstance(cell, str) else bytes(cell)
        literals, ids = _ID.split(raw), [one.decode() for one in _ID.findall(raw)]
        if isinstance(cell, str):
            if literals == [b"", b""]:
                (only,) = ids
                return lambda copying: copying.ids[only]
            form = "%s".join(one.decode().replace("%", "%%") for one in literals)
            return lambda copying: form % tuple(copying.ids[one] for one in ids)
        pattern = b"%b".join(one.replace(b"%", b"%%") for one in literals)
        return lambda copying: pattern % tuple(copying.ids[one].encode() for one in ids)

    def copies(self, copying: Copying, next_number: Callable[[], int]) -> Iterator[list[Any]]:
        for row in self._rows:
            made = [cell(copying) for cell in row]
            for place in self._numbered:
                made[place] = next_number()
            yield made


def _counts_itself(column: Column[Any]) -> bool:
    """SQLite numbers a row by its only key, if that is a number."""
    return column.primary_key and column.type.python_type is int and len(column.table.primary_key) == 1


def _is_numbered(column: Column[Any]) -> bool:
    return bool(column.unique) and column.type.python_type is int


def _ids_in(cell: Any) -> list[str]:
    if isinstance(cell, str):
        cell = cell.encode()
    return [one.decode() for one in _ID.findall(cell)] if isinstance(cell, bytes) else []


class Copier:
    """Fills databases that are there, with their schemas, by copies of stories."""

    def __init__(self, folder: Path, bookings: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._bookings = bookings
        self._databases = {name: _opened_to_fill(path) for name, path in files(folder).items()}
        self._number = 0
        self._customers = [self._id() for _ in range(max(1, bookings // BOOKINGS_OF_A_CUSTOMER))]

    def fill(self, lived: Told) -> None:
        """Also drops what the stories themselves left: their slots hold no copies."""
        for name, database in self._databases.items():
            for table in reversed(SCHEMAS[name].sorted_tables):
                if table.name not in ("arrivals", "reconcile_clock"):
                    _empty(database, table.name)
        opening = _forms(lived.opening)
        restaurants = [self._id() for _ in range(max(1, self._bookings // BOOKINGS_OF_A_RESTAURANT))]
        for restaurant in restaurants:
            self._copy(opening, [self._copying(opening, {lived.restaurant_id: restaurant}, DAYS)])
        _empty(self._databases["reservation"], "slots")
        for table in ("slots", "slot_days"):
            _empty(self._databases["restaurant"], table)
        stories = [_forms(story.rows) for story in lived.stories]
        counts = [count for _, count in shares(lived.stories, self._bookings)]
        plan = [number for number, count in enumerate(counts) for _ in range(count)]
        self._random.shuffle(plan)
        # As time went by: ids of events, and whatever counts itself, grow with it.
        for begin in range(0, self._bookings, AT_ONCE):
            some: dict[int, list[Copying]] = {}
            for place, number in enumerate(plan[begin : begin + AT_ONCE], begin):
                given = {
                    lived.restaurant_id: self._random.choice(restaurants),
                    lived.customer_id: self._random.choice(self._customers),
                }
                days = DAYS * (1 - (place + 1) / self._bookings)
                some.setdefault(number, []).append(self._copying(stories[number], given, days))
            for number, copyings in some.items():
                self._copy(stories[number], copyings)
        self._sell_seats()
        if "arrivals" in SCHEMAS["history"].tables:
            self._databases["history"].execute("UPDATE arrivals SET last_position = ?", (self._number,))
        for database in self._databases.values():
            database.commit()
            database.execute("PRAGMA journal_mode=WAL")
            database.close()

    def _copying(
        self, forms: Mapping[tuple[str, str], Form], given: Mapping[str, str], days: float
    ) -> Copying:
        """So many days earlier: whole ones in the columns, since a slot is at its hour."""
        ids = dict(given)
        for one in {one for form in forms.values() for one in form.ids} - given.keys():
            # The 15th character of an id is its version: those of events begin with their time.
            ids[one] = self._id_of(days, int(one[:8] + one[9:13], 16)) if one[14] == "7" else self._id()
        return Copying(ids, int(days) * _DAY)

    def _id(self) -> str:
        made = f"{self._random.getrandbits(128):032x}"
        return f"{made[:8]}-{made[8:12]}-4{made[13:16]}-a{made[17:20]}-{made[20:]}"

    def _id_of(self, days: float, milliseconds: int) -> str:
        first = f"{milliseconds - int(days * _DAY / 1000):012x}"
        made = f"{self._random.getrandbits(80):020x}"
        return f"{first[:8]}-{first[8:]}-7{made[:3]}-a{made[3:6]}-{made[6:18]}"

    def _copy(self, forms: Mapping[tuple[str, str], Form], copyings: Sequence[Copying]) -> None:
        for (name, _), form in forms.items():
            rows = (row for copying in copyings for row in form.copies(copying, self._next))
            self._databases[name].executemany(form.insert, rows)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _sell_seats(self) -> None:
        """Slots are what bookings need them to be, with some room."""
        reservation, restaurant = self._databases["reservation"], self._databases["restaurant"]
        holding = ", ".join(f"'{state}'" for state in sorted(HOLDING))
        reservation.execute(
            "INSERT INTO slots (restaurant_id, dine_time, capacity, sold, version)"
            f" SELECT restaurant_id, dine_time, {CAPACITY}, SUM(party_size * (state IN ({holding}))), 1"
            " FROM reservations GROUP BY restaurant_id, dine_time"
        )
        slots = [
            (
                restaurant_id,
                dine_time,
                datetime.fromtimestamp(dine_time / 1e6, UTC).date().isoformat(),
                capacity,
            )
            for restaurant_id, dine_time, capacity in reservation.execute(
                "SELECT restaurant_id, dine_time, capacity FROM slots"
            )
        ]
        restaurant.executemany(
            "INSERT INTO slots (restaurant_id, dine_time, local_date, capacity, version)"
            " VALUES (?, ?, ?, ?, 1)",
            slots,
        )
        days = sorted({(restaurant_id, day) for restaurant_id, _, day, _ in slots})
        restaurant.executemany("INSERT INTO slot_days VALUES (?, ?, 1)", days)


def _forms(rows: Mapping[tuple[str, str], Sequence[Row]]) -> dict[tuple[str, str], Form]:
    """Those whose rows others refer to come first."""
    return {
        (name, table.name): Form(name, table.name, found)
        for name, schema in SCHEMAS.items()
        for table in schema.sorted_tables
        if (found := rows[name, table.name])
    }


def _opened_to_fill(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KILOBYTES}"):
        database.execute(f"PRAGMA {pragma}")
    return database


def _empty(database: sqlite3.Connection, table: str) -> None:
    """Whatever its triggers forbid."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
    triggers = database.execute(query, (table,)).fetchall()
    for name, _ in triggers:
        database.execute(f"DROP TRIGGER {name}")
    database.execute(f"DELETE FROM {table}")
    for _, made in triggers:
        database.execute(made)


def shares(stories: Sequence[Story], bookings: int) -> list[tuple[Story, int]]:
    """How many bookings go which way; at least one goes each."""
    whole = sum(story.share for story in stories)
    counts = [max(1, bookings * story.share // whole) for story in stories]
    counts[0] += bookings - sum(counts)
    return list(zip(stories, counts, strict=True))


# What it is then.


@dataclass(frozen=True)
class Size:
    """Of a table: its rows, and the bytes of it and of its indexes."""

    service: str
    table: str
    rows: int
    table_bytes: int
    index_bytes: int


def sizes(folder: Path) -> list[Size]:
    """Of those that have rows. The sandbox is the provider's."""
    found = []
    for name, path in files(folder).items():
        with sqlite3.connect(path) as database:
            pages = dict(database.execute("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name"))
            for table in SCHEMAS[name].sorted_tables if name != "sandbox" else ():
                (rows,) = database.execute(f"SELECT COUNT(*) FROM {table.name}").fetchone()
                indexes = database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (table.name,)
                ).fetchall()
                if rows:
                    in_indexes = sum(pages.get(index, 0) for (index,) in indexes)
                    found.append(Size(name, table.name, rows, pages[table.name], in_indexes))
        database.close()
    return found


@dataclass(frozen=True)
class Reading:
    """One command: what it says, its seconds by the clock and of processor, and its peak of memory in
    megabytes. The provider and a busy machine are in the first, and not in the second."""

    said: str
    seconds: float
    processor: float
    megabytes: float
    clean: bool


def measured(command: Callable[[Sources], tuple[str, bool]], sources: Sources) -> Reading:
    """In a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    process = context.Process(target=_measure, args=(command, sources, answers), daemon=True)
    process.start()
    while True:
        try:
            answer = answers.get(timeout=1)
            break
        except Exception:
            if not process.is_alive():
                raise SystemExit("growth: the command ended without an answer") from None
    process.join()
    if isinstance(answer, str):
        raise SystemExit(f"growth: {answer}")
    found: Reading = answer
    return found


def _measure(command: Callable[[Sources], tuple[str, bool]], sources: Sources, answers: Any) -> None:
    start, spent = time.perf_counter(), time.process_time()
    try:
        said, clean = command(sources)
    except Unreadable as error:
        answers.put(str(error))
        return
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    answers.put(Reading(said, seconds, spent, _peak_megabytes(), clean))


def _peak_megabytes() -> float:
    """Not of rusage: that one remembers the process which this was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def audited(sources: Sources) -> tuple[str, bool]:
    report = asyncio.run(audit(sources))
    return str(report), report.clean


def looked_for_pending(sources: Sources) -> tuple[str, bool]:
    async def look() -> backlog.Listing:
        async with snapshot.opened(sources) as reader:
            return await asyncio.to_thread(backlog.listed, reader, Limits(), MOST_LISTED)

    listing = asyncio.run(look())
    return str(listing), listing.is_empty


@contextmanager
def sandbox(folder: Path) -> Iterator[str]:
    """The provider, over its file in the folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told_ = {"DINEMESH_PORT": str(port), "DINEMESH_DATABASE_URL": f"sqlite:///{files(folder)['sandbox']}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "deposit_svc.sandbox"],
        env=os.environ | told_ | {"DINEMESH_LOG_LEVEL": "WARNING"},
        stdout=subprocess.DEVNULL,
    )
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=READY_SECONDS)
        yield address
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    arguments.add_argument("--bookings", type=_bookings, default=BOOKINGS, help="how many (%(default)s)")
    arguments.add_argument(
        "--folder", type=Path, help="where the databases are made, and stay (a temporary one)"
    )
    given = arguments.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="dinemesh-growth-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"growth: {folder} is not empty")
    try:
        run(folder, given.bookings)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, bookings: int) -> None:
    print(f"{processor()}, Python {platform.python_version()}, SQLite; {bookings} bookings\n")
    start = time.perf_counter()
    make_schemas(folder)
    with sandbox(folder) as address:
        lived = asyncio.run(told(folder, address))
    Copier(folder, bookings).fill(lived)
    for story, count in shares(lived.stories, bookings):
        print(f"{count:>10} {story.name}")
    print(f"made in {time.perf_counter() - start:.0f} s\n")
    show_sizes(sizes(folder), bookings)
    with sandbox(folder) as address:
        databases = {
            f"{name}_db": f"sqlite:///{path}" for name, path in files(folder).items() if name != "sandbox"
        }
        sources = Sources(provider=address, **databases)
        readings = {
            "audit": measured(audited, sources),
            "pending": measured(looked_for_pending, sources),
        }
    for reading in readings.values():
        print(f"\n{reading.said}")
    print()
    for name, reading in readings.items():
        print(
            f"{name:<8} {reading.seconds:8.1f} s, {reading.processor:.1f} s of processor,"
            f" {reading.megabytes:.0f} MB at most"
        )
    if not all(reading.clean for reading in readings.values()):
        raise SystemExit("growth: something is wrong with what was made, or with who says so")


def show_sizes(found: Sequence[Size], bookings: int) -> None:
    """Bytes for one booking."""
    print(f"{'for one booking':<34}{'rows':>8}{'bytes':>10}{'of indexes':>12}  kept")
    for one in sorted(found, key=lambda one: -one.table_bytes - one.index_bytes):
        kept = "for the retention" if one.table in PRUNED else "for ever"
        print(
            f"{one.service + '.' + one.table:<34}{one.rows / bookings:>8.2f}"
            f"{one.table_bytes / bookings:>10.0f}{one.index_bytes / bookings:>12.0f}  {kept}"
        )
    for what, some in (
        ("all", found),
        ("beyond the retention", [one for one in found if one.table not in PRUNED]),
    ):
        in_tables, in_indexes = sum(one.table_bytes for one in some), sum(one.index_bytes for one in some)
        print(f"{what:<42}{in_tables / bookings:>10.0f}{in_indexes / bookings:>12.0f}", end="")
        print(f"  {(in_tables + in_indexes) / bookings / 1000:.1f} kB together")


def _bookings(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= TINY):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {TINY} or more")
    return int(text)


if __name__ == "__main__":
    main()
