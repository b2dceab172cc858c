"""What too much costs: bookings a second with once, twice and more of what deposit serves at once, and
what one customer costs the others.

`python -m benchmarks.overload` starts a mesh of its own, with the limits as they ship. Each guest is a
customer of their own and does as told: who is refused comes back after the time that was named.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import platform
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import uvloop

from benchmarks import own_mesh
from benchmarks.own_mesh import SETTINGS, Customer, Restaurant
from benchmarks.table import milliseconds, processor, row
from dinemesh.kit import errors
from local_mesh import tokens
from local_mesh.commands import Mesh

PLACES = 120
"""Charges that reservation has under way at once as it ships."""
CHANNELS = 4
BYSTANDERS = 5
BYSTANDER_PAUSE_SECONDS = 0.25


@dataclass
class Found:
    """What a crowd got. Times in seconds."""

    seconds: float
    answers: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.answers["OK"] / self.seconds


class Crowd:
    """Customers by number, over a few channels."""

    def __init__(self, mesh: Mesh, restaurant: Restaurant, address: str) -> None:
        self._mesh = mesh
        self._restaurant = restaurant
        self._channels = [
            Customer(address, own_mesh.token_of_customer(mesh), restaurant) for _ in range(CHANNELS)
        ]
        self._next = itertools.count()
        self._tokens: dict[str, str] = {}

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def token(self, name: str) -> str:
        if name not in self._tokens:
            self._tokens[name] = tokens.person(self._mesh.places, name, "customer")
        return self._tokens[name]

    async def book(self, name: str, card: str, found: Found) -> float:
        """One booking; how long to wait before the next try, by what was answered."""
        channel = self._channels[next(self._next) % CHANNELS]
        begun = time.perf_counter()
        try:
            await channel.reserve(card, token=self.token(name))
        except grpc.aio.AioRpcError as error:
            said = errors.from_call(error)
            found.answers[said.reason if said and said.reason else error.code().name] += 1
            return said.retry_after if said and said.retry_after is not None else 1.0
        found.answers["OK"] += 1
        found.times.append(time.perf_counter() - begun)
        return 0.0


async def guests(crowd: Crowd, count: int, card: str, seconds: float) -> Found:
    """So many guests, each of whom books again and again."""
    found = Found(seconds)
    run = uuid.uuid4().hex[:6]
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        while time.perf_counter() < end:
            wait = await crowd.book(f"guest-{run}-{number}", card, found)
            await asyncio.sleep(min(wait, max(0.0, end - time.perf_counter())))

    begun = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    found.seconds = time.perf_counter() - begun
    return found


async def bystanders(crowd: Crowd, seconds: float) -> Found:
    """A few who book now and then, and never come back for a refusal: each that is refused counts."""
    found = Found(seconds)
    run = uuid.uuid4().hex[:6]
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        while time.perf_counter() < end:
            await crowd.book(f"bystander-{run}-{number}", "tok_visa", found)
            await asyncio.sleep(BYSTANDER_PAUSE_SECONDS)

    await asyncio.gather(*(one(number) for number in range(BYSTANDERS)))
    return found


Attack = Callable[[Crowd, Found], Coroutine[Any, Any, None]]


def steadily(card: str, per_second: float) -> Attack:
    """One customer who sends at a rate and waits for no answer."""

    async def run(crowd: Crowd, found: Found) -> None:
        name = _somebody()
        async with asyncio.TaskGroup() as calls:
            while True:
                calls.create_task(crowd.book(name, card, found))
                await asyncio.sleep(1 / per_second)

    return run


def in_bursts(count: int, every_seconds: float) -> Attack:
    """One customer who sends many at one instant, again and again."""

    async def run(crowd: Crowd, found: Found) -> None:
        name = _somebody()
        while True:
            burst = (crowd.book(name, "tok_visa", found) for _ in range(count))
            await asyncio.gather(*burst, asyncio.sleep(every_seconds))

    return run


def _somebody() -> str:
    """A customer who has a name of their own, so that no attack inherits the pauses of another."""
    return f"customer-{uuid.uuid4().hex[:6]}"


ATTACKS: dict[str, Attack] = {
    "slow cards, 3.5 s, 19/s": steadily("tok_slow_3500", 19),
    "silent cards, 10/s": steadily("tok_lostReply", 10),
    "declined cards, 19/s": steadily("tok_chargeDeclined", 19),
    "good cards, 40 at once every 2 s": in_bursts(40, 2),
}


@asynccontextmanager
async def beside(attack: Attack, crowd: Crowd, found: Found) -> AsyncIterator[None]:
    running = asyncio.create_task(attack(crowd, found))
    await asyncio.sleep(1)  # it is under way
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def told(found: Found) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in found.answers.most_common())


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seconds: float
    """Of each row."""
    rounds: int = 1
    """Of all rows."""
    guests: Sequence[int] = (PLACES, 2 * PLACES, 3 * PLACES, 5 * PLACES)
    cards: Sequence[str] = ("tok_slow_50", "tok_slow_1000")
    attacks: Sequence[str] = tuple(ATTACKS)


TINY = Size(1, guests=(4,), cards=("tok_slow_50",), attacks=("declined cards, 19/s",))


async def measure(mesh: Mesh, size: Size) -> None:
    restaurant = await own_mesh.open_restaurant(mesh)
    direct = Crowd(mesh, restaurant, mesh.settings.address("reservation"))
    edge = Crowd(mesh, restaurant, mesh.settings.address("edge"))
    row("guests at once, each a customer", "OK/s", "p50", "p99")
    for number in range(size.rounds):
        for card in size.cards:
            for count in size.guests:
                found = await guests(direct, count, card, size.seconds)
                row(
                    f"round {number + 1}, {card}, {count}",
                    f"{found.per_second:.1f}",
                    milliseconds(found.times, 0.5, 0),
                    milliseconds(found.times, 0.99, 0),
                )
                print(f"    {told(found)}", flush=True)
    print()
    row("bystanders, beside one customer with ...", "OK/s", "refused", "p50", "p99")
    for number in range(size.rounds):
        for name in ("nothing", *size.attacks):
            sent, attack = Found(size.seconds), ATTACKS.get(name)
            if attack is None:
                found = await bystanders(edge, size.seconds)
            else:
                async with beside(attack, edge, sent):
                    found = await bystanders(edge, size.seconds)
            row(
                f"round {number + 1}, {name}",
                f"{found.per_second:.1f}",
                str(found.answers.total() - found.answers["OK"]),
                milliseconds(found.times, 0.5, 0),
                milliseconds(found.times, 0.99, 0),
            )
            if attack is not None:
                print(f"    the customer got: {told(sent)}", flush=True)
    await direct.close()
    await edge.close()


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=15, help="of each row (%(default)s)")
    arguments.add_argument("--rounds", type=int, default=1, help="of all rows (%(default)s)")
    arguments.add_argument("--tiny", action="store_true", help="hardly anything, to see that it runs")
    arguments.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the mesh")
    given = arguments.parse_args()
    print(f"{processor()}, Python {platform.python_version()}, SQLite; all parts and the guests on it\n")
    with own_mesh.running({**SETTINGS, **dict(one.split("=", 1) for one in given.setting)}) as mesh:
        uvloop.run(measure(mesh, TINY if given.tiny else Size(given.seconds, given.rounds)))


if __name__ == "__main__":
    main()
