"""People who book and cancel while databases fail, and what they were told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from dinemesh.deposit.v1 import deposit_pb2
from tests.mesh.people import CANCELLED, CONFIRMED, City, Customer, Place, Reservation, until
from tests.support.mesh import ROOT, SERVICES, RunningMesh
from tests.support.refusals import refusal
from tests.support.small_disk import SmallDisk

T = TypeVar("T")

CALL_SECONDS = 10.0
"""What an app gives a booking."""
BACK_SECONDS = 60.0
"""Everything works again long before this."""


@dataclass
class Refusal:
    """One call that was not answered with what it asked for."""

    code: grpc.StatusCode
    retry_after: float | None
    seconds: float


@dataclass
class Crowd:
    """`booked` and `cancelled` hold what was acknowledged."""

    city: City
    place: Place
    people: list[Customer]
    booked: list[tuple[Customer, Reservation]] = field(default_factory=list)
    cancelled: list[tuple[Customer, Reservation]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When bookings were acknowledged, by the monotonic clock."""

    async def keep_coming(self) -> None:
        """Each books, cancels every second booking, and repeats what was refused, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in self.people:
                group.create_task(self._keep_booking(one))

    async def _keep_booking(self, one: Customer) -> None:
        number = 0
        while True:
            wish = one.wish(self.place, slot=number % 3, party=1)
            made = await self._insist(lambda wish=wish: one.send(wish, timeout=CALL_SECONDS))  # type: ignore[misc]
            self.booked.append((one, made))
            self.times.append(time.monotonic())
            if number % 2:
                await self._insist(lambda made=made: one.cancel(made))  # type: ignore[misc]
                self.cancelled.append((one, made))
            number += 1

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            begun = time.monotonic()
            try:
                return await attempt()
            except grpc.aio.AioRpcError as error:
                said = refusal(error)
                self.refused.append(Refusal(said.code, said.retry_after, time.monotonic() - begun))
                await asyncio.sleep(min(said.retry_after or 0.2, 1.0))

    async def back(self, since: float) -> float:
        """Waits until bookings are taken again after a moment; how many seconds after it they were."""

        async def first() -> float | None:
            return next((moment for moment in self.times if moment > since), None)

        found = await until(first, lambda moment: moment is not None, BACK_SECONDS)
        assert found is not None
        return found - since

    async def cancel_some(self, most: int = 20) -> int:
        """Cancels bookings that are left to stand; how many."""
        ended = {made.reservation_id for _, made in self.cancelled}
        standing = [(one, made) for one, made in self.booked[:-10] if made.reservation_id not in ended]
        for one, made in standing[:most]:
            await self._insist(lambda one=one, made=made: one.cancel(made))  # type: ignore[misc]
            self.cancelled.append((one, made))
        assert standing
        return len(standing[:most])

    def were_refused_in_time(self, since: int, longest: float = 4.0) -> None:
        """Of the refusals from that number on: each came soon, and with a time to come again."""
        refused = self.refused[since:]
        assert refused, "void: nobody was refused"
        assert max(one.seconds for one in refused) < longest
        assert [one for one in refused if one.retry_after is None] == []

    async def everything_acknowledged_stands(self) -> None:
        """Each booking that was answered is there, and each one cancelled has its money back."""
        ended = {made.reservation_id for _, made in self.cancelled}
        for one, made in self.cancelled:
            await one.sees(made, CANCELLED, BACK_SECONDS)
            await one.sees_deposits(made, deposit_pb2.DEPOSIT_STATE_REFUNDED, seconds=BACK_SECONDS)
        for one, made in self.booked:
            if made.reservation_id not in ended:
                seen = await until(
                    lambda one=one, made=made: one.read(made),  # type: ignore[misc]
                    lambda seen: seen.state in (CONFIRMED, CANCELLED),
                    BACK_SECONDS,
                )
                assert seen.reservation_id == made.reservation_id

    def told(self) -> str:
        codes = Counter(one.code.name for one in self.refused)
        slowest = max((one.seconds for one in self.refused), default=0.0)
        return (
            f"{len(self.booked)} booked, {len(self.cancelled)} cancelled, refused {dict(codes)},"
            f" the slowest after {slowest:.1f} s"
        )


@asynccontextmanager
async def crowd(city: City, people: int = 4) -> AsyncIterator[Crowd]:
    """People who keep coming until the end of the block."""
    place = await city.place(capacity=100_000)
    gathered = Crowd(city, place, [city.customer() for _ in range(people)])
    coming = asyncio.create_task(gathered.keep_coming())
    try:
        await until(lambda: _count(gathered), lambda number: number >= 3 * people, BACK_SECONDS)
        yield gathered
        assert not coming.done(), coming.result()
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _count(gathered: Crowd) -> int:
    return len(gathered.cancelled)


async def ready(mesh: RunningMesh, name: str, *, wanted: bool, seconds: float) -> float:
    """Waits until a part's readiness is so; after how many seconds it was."""
    begun = time.monotonic()

    async def ask() -> bool:
        return await asyncio.to_thread(mesh[name].is_ready)

    await until(ask, lambda found: found is wanted, seconds)
    assert await asyncio.to_thread(mesh[name].is_ready, "live")
    return time.monotonic() - begun


async def stays_so(mesh: RunningMesh, name: str, seconds: float) -> None:
    """Not ready, without coming and going."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not await asyncio.to_thread(mesh[name].is_ready)
        await asyncio.sleep(0.1)


def tell(figures: str) -> None:
    """Shown by `pytest -rP`."""
    print(figures)  # noqa: T201


async def all_is_well(people: Crowd, inside: SmallDisk | None = None) -> None:
    """Nothing that was acknowledged is lost, every book agrees, and there are no dead letters. A database on
    a small disk is read from inside."""
    await people.everything_acknowledged_stands()
    mesh = people.city.mesh
    command = [sys.executable, "-m", "operations", "audit", "--patience", "1"]
    databases = {f"--{name}-db": mesh.databases[name] for name in SERVICES}
    for name, value in (databases | {"--provider": mesh["sandbox"].address, "--amqp": mesh.amqp_url}).items():
        command += [name, value]
    if inside is not None:
        command = inside.inside(command)

    async def look() -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False
        )

    await until(look, lambda done: done.returncode == 0, BACK_SECONDS)
