"""A mesh in which each service can be told to die at a point, and the people of its stories, who come back
after every failure as a client should."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aio_pika
import grpc

from dinemesh.kit import crash
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import restaurant_pb2
from operations.audit import judge
from operations.limits import Limits
from operations.report import Report
from operations.snapshot import Snapshot, Sources, take
from tests.mesh.people import MANUAL, City, Customer, Place, Reservation, cents, kept, policy
from tests.support.forked import points_of
from tests.support.mesh import ROOT, SERVICES, RunningMesh
from tests.support.refusals import refusal

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for anything to come to its end, a restart and a hold that expires among it."""
PAUSE = 0.05
REBUILD_SECONDS = 120.0
LONGEST_RETRY = 0.3
"""A client that comes back earlier than it was told to is allowed, and harder."""
YEAR = 31_536_000
CHARGES_AT_ONCE = 2
"""Deposit refuses more."""

SETTINGS: dict[str, dict[str, str]] = {
    "every": {"DRAIN_SECONDS": "0", "STOP_GRACE_SECONDS": "2"},
    "reservation": {
        "DEPOSIT_DEADLINE_MS": "1000",
        "RETRY_AFTER_SECONDS": "0.2",
        "ATTEMPT_DEADLINE_SECONDS": "1.2",
        "HOLD_EXPIRE_SECONDS": "3",
        "SETTLE_INTERVAL_SECONDS": "0.2",
        "BREAKER_REST_SECONDS": "0.1",
        "BREAKER_LONGEST_REST_SECONDS": "0.3",
        "UNMARKED_SECONDS": "1",
    },
    "deposit": {
        "CHARGES_IN_FLIGHT_LIMIT": str(CHARGES_AT_ONCE),
        "PROVIDER_TIMEOUT_MS": "300",
        "CHARGE_TIMEOUT_MS": "1000",
        "PENDING_SETTLE_SECONDS": "1.2",
        "SETTLE_INTERVAL_SECONDS": "0.2",
        "SETTLE_LEASE_SECONDS": "1.5",
    },
}
"""Waits as short as they can be and still happen in their order: charge, attempt, reconciling, hold."""

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""The last one of a server that was told to stop and has cut off what took too long."""
AT_REST = Limits(dt.timedelta(0), dt.timedelta(0))
"""Nothing may be on its way any more."""


class NotAtRest(AssertionError):
    """The books did not agree in time."""


async def insist(attempt: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
    """Repeats one request, as it is, while it is not answered or the refusal names a retry time."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except grpc.aio.AioRpcError as error:
            said = refusal(error)
            if time.monotonic() > end or (error.code() not in _AWAY and said.retry_after is None):
                raise
            await asyncio.sleep(min(said.retry_after or PAUSE, LONGEST_RETRY))


async def sees(ask: Callable[[], Awaitable[T]], satisfied: Callable[[T], object]) -> T:
    """Asks again and again, whoever is away meanwhile, until the answer satisfies."""
    end = time.monotonic() + PATIENCE
    answer: object = None
    while time.monotonic() < end:
        try:
            answer = found = await ask()
            if satisfied(found):
                return found
        except grpc.aio.AioRpcError as error:
            answer = refusal(error)
            if error.code() not in (*_AWAY, grpc.StatusCode.NOT_FOUND) and answer.retry_after is None:
                raise
        await asyncio.sleep(PAUSE)
    raise AssertionError(f"not within {PATIENCE} s; the last answer was:\n{answer}")


class World:
    """A running mesh, its people, and a hand on each of its processes."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.mesh = mesh
        self.city = City(mesh)
        self._hands = {name: asyncio.Lock() for name in (*SERVICES, "sandbox")}

    async def furnish(self) -> None:
        """The restaurants of the stories, with more seats than all of them need."""
        plenty = 100_000
        self.auto = await self.city.place(capacity=plenty)
        self.manual = await self.city.place(MANUAL, capacity=plenty)
        self.late = await self.city.place(capacity=plenty, terms=policy(free_cancel_seconds=YEAR))
        self.hasty = await self.city.place(capacity=plenty, terms=policy(MANUAL, limit_seconds=1))
        self.tonight = await self.city.place(
            times=[], terms=policy(free_cancel_seconds=0, interval_seconds=1)
        )

    def guest(self) -> Guest:
        return Guest(self, self.city.customer())

    # Points.

    def passed(self, service: str) -> list[str]:
        """Every point that a service has passed so far, in order."""
        file = self._points(service) / "passed"
        return file.read_text().splitlines() if file.exists() else []

    def arm(self, service: str, line: str) -> None:
        """The next time that `service` passes this point, it dies there."""
        draft = self._points(service) / "draft"
        draft.write_text(line)
        draft.rename(self._points(service) / "armed")

    def disarm(self, service: str) -> bool:
        """False if it was not armed any more: then it is dying, or dead."""
        try:
            (self._points(service) / "armed").unlink()
        except FileNotFoundError:
            return False
        return True

    def is_armed(self, service: str) -> bool:
        return (self._points(service) / "armed").exists()

    async def death(self, service: str, line: str) -> None:
        """Waits until an armed service has died at its point, and starts it again. Fails if it died of
        anything else."""
        while self.is_armed(service):  # noqa: ASYNC110 - the process says so by a file
            await asyncio.sleep(PAUSE / 5)
        part = self.mesh[service]
        async with self._hands[service]:
            code = await asyncio.to_thread(part.wait_for_exit)
            # Another thread may have passed a point on its own last way.
            last = next((one for one in reversed(self.passed(service)) if one.startswith(crash.DIED)), "")
            assert (code, last) == (crash.EXIT_CODE, crash.DIED + line), f"it ended by {code}, and {last!r}"
            part.spawn()
        await self.is_ready(service)

    def _points(self, service: str) -> Path:
        return points_of(self.mesh[service].log)

    # Processes.

    async def end(self, service: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends a process, unless it ends at its point first; somebody else starts that one again."""
        async with self._hands[service]:
            part = self.mesh[service]
            part.tell(how)
            await asyncio.to_thread(part.wait_for_exit)

    async def begin(self, service: str) -> None:
        """Starts a process again, unless it runs, and waits until it is ready."""
        async with self._hands[service]:
            part = self.mesh[service]
            if not part.running and part.exit_code != crash.EXIT_CODE:
                part.spawn()
        await self.is_ready(service)

    async def lose_queue(self, queue: str) -> None:
        """With all that was in it."""
        connection = await aio_pika.connect(self.mesh.amqp_url)
        async with connection, connection.channel() as channel:
            await channel.queue_delete(queue)

    async def is_ready(self, service: str) -> None:
        end = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(self.mesh[service].is_ready):
            assert time.monotonic() < end, self.mesh[service].last_words()
            await asyncio.sleep(PAUSE)

    # The books.

    @property
    def sources(self) -> Sources:
        databases = {f"{name}_db": self.mesh.databases[name] for name in SERVICES}
        return Sources(**databases, provider=self.mesh["sandbox"].address)

    async def come_to_rest(self, seconds: float = PATIENCE) -> tuple[Snapshot, Report]:
        """Waits until nothing is on its way and the books agree."""
        end = time.monotonic() + seconds
        sources = self.sources
        while True:
            snapshot = await take(sources)
            report = judge(snapshot, sources, AT_REST)
            if report.clean and not report.pending:
                return snapshot, report
            if time.monotonic() > end:
                raise NotAtRest(f"not at rest after {seconds} s\n{report}")
            await asyncio.sleep(2 * PAUSE)

    async def dead_letters(self) -> int:
        """Events that a subscriber gave up."""
        return len((await take(Sources(amqp=self.mesh.operators_amqp_url))).dead_letters)

    async def history_differs(self) -> str:
        """What is not the same after the timeline was dropped and built anew from the log of events. History
        is stopped afterwards."""
        part = self.mesh["history"]
        await asyncio.to_thread(part.stop)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DINEMESH_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "history_svc.main",
            "rebuild",
            env=kept | {f"DINEMESH_{key}": value for key, value in part.environment.items()},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await asyncio.wait_for(process.communicate(), REBUILD_SECONDS))[0].decode()
        same = said.endswith("the same as before\n") and "not the same" not in said
        return "" if process.returncode == 0 and same else said.strip()

    async def close(self) -> None:
        await self.city.close()
        await asyncio.to_thread(self.mesh.stop)


@dataclass(frozen=True)
class End:
    """The states of a customer's reservations, and the cents that the provider kept."""

    states: tuple[str, ...]
    kept_cents: int


NOTHING = End((), 0)


class Guest:
    """A customer who repeats what was not answered, and remembers every answer."""

    def __init__(self, world: World, customer: Customer) -> None:
        self.world = world
        self.customer = customer
        self._answered: set[str] = set()

    async def reserve(
        self, place: Place, *, party: int = 2, card: str = "tok_visa", slot: int = 0
    ) -> Reservation:
        """Under one request id until there is a reservation; asks once more, for the same answer."""
        wish = self.customer.wish(place, party=party, card=card, slot=slot)
        first = await insist(lambda: self.customer.send(wish))
        again = await insist(lambda: self.customer.send(wish))
        assert again.reservation_id == first.reservation_id, "two answers to one request id"
        self._answered.add(first.reservation_id)
        return first

    async def book(self, place: Place, *, party: int = 2, slot: int = 0) -> Reservation:
        """Reserves, and waits for CONFIRMED."""
        return await self.sees(await self.reserve(place, party=party, slot=slot), "CONFIRMED")

    async def try_once(self, place: Place, *, card: str, party: int = 2) -> str:
        """One call without a repetition: the state of its reservation, or why there is none."""
        try:
            found = await self.customer.send(self.customer.wish(place, party=party, card=card))
        except grpc.aio.AioRpcError as error:
            return refusal(error).reason or error.code().name
        return _state(found)

    async def modify(self, booked: Reservation, *, party: int, card: str = "") -> Reservation:
        request_id = str(uuid.uuid4())
        return await insist(
            lambda: self.customer.modify(booked, party=party, card=card, request_id=request_id)
        )

    async def cancel(self, booked: Reservation) -> tuple[int, int]:
        """What was given back and what was kept, in cents; the same however often it is asked."""
        first = await insist(lambda: self.customer.cancel(booked))
        again = await insist(lambda: self.customer.cancel(booked))
        assert (first.refunded, first.forfeited) == (again.refunded, again.forfeited), "two answers"
        return cents(first.refunded), cents(first.forfeited)

    async def read(self, reservation: Reservation) -> Reservation:
        return await self.customer.read(reservation)

    async def sees(self, reservation: Reservation, state: str) -> Reservation:
        return await sees(lambda: self.read(reservation), lambda found: _state(found) == state)

    async def ends(self, *states: str, kept_cents: int) -> None:
        """Waits until these are the states of all reservations that did not fail, oldest first, and the
        provider has kept exactly so much of what it charged. What was answered has to be among them."""
        await self.ends_as(End(states, kept_cents))

    async def ends_as(self, *ends: End) -> None:
        """Waits for one of several ends: who was never answered may find it done or not, but wholly."""
        await sees(self._stand, lambda found: found in ends)

    async def _stand(self) -> End:
        found = list(reversed(await self.customer.reservations()))
        charges = await self.world.city.provider.charges()
        deposits = await self.customer.deposits()
        money = sum(kept(charges[one.deposit_id]) for one in deposits if one.deposit_id in charges)
        live = {one.reservation_id: _state(one) for one in found if _state(one) != "FAILED"}
        assert self._answered <= live.keys(), "a reservation that was answered is not there"
        return End(tuple(live.values()), money)


async def says(place: Place, rpc: str, reservation: Reservation, state: str) -> restaurant_pb2.Booking:
    """Staff wait for a booking to stand so, and say something of it until they are answered."""
    wanted = restaurant_pb2.BookingState.Value(f"BOOKING_STATE_{state}")
    booking = await sees(
        lambda: place.booking(reservation), lambda found: found is not None and found.state == wanted
    )
    assert booking is not None
    return await insist(lambda: place._say(rpc, booking))


def _state(reservation: Reservation) -> str:
    return reservation_pb2.ReservationState.Name(reservation.state).removeprefix("RESERVATION_STATE_")
