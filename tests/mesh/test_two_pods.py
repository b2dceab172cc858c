"""Two processes of reservation on one PostgreSQL: every move is a guarded update; neither minds the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from dinemesh.watch.v1 import watch_pb2
from tests.mesh.people import (
    CANCELLED,
    CONFIRMED,
    City,
    Customer,
    Doors,
    Place,
    Reservation,
    cents,
    kept,
    patiently,
    until,
)
from tests.support.mesh import Part, RunningMesh
from tests.support.ports import free_ports
from tests.support.refusals import Refused

pytestmark = pytest.mark.parametrize("mesh", ["mixed"], indirect=True)

CALLERS = 80
SEATS = 10


@asynccontextmanager
async def second_pod(mesh: RunningMesh) -> AsyncIterator[tuple[Part, Doors]]:
    """A second reservation process, and doors that lead to it, else to the same services."""
    port, metrics_port = free_ports(2)
    environment = mesh["reservation"].environment | {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
    }
    assert environment["DATABASE_URL"].startswith("postgresql")
    pod = Part("reservation-2", "reservation_svc.main", port, environment, mesh.folder / "reservation-2.log")
    pod.start()
    doors = Doors(mesh, reservation=pod.address)
    try:
        yield pod, doors
    finally:
        await doors.close()
        await asyncio.to_thread(pod.stop)


def at(doors: Doors, customer: Customer, mesh: RunningMesh) -> Customer:
    """The same customer, at another pod's door."""
    return Customer(doors, mesh, customer.name)


async def attempt(customer: Customer, place: Place) -> Reservation | Refused:
    wish = customer.wish(place, party=1)
    said: list[Refused] = []
    try:
        return await patiently(lambda: customer.send(wish, timeout=20), refusals=said)
    except grpc.aio.AioRpcError:
        return said[-1]


async def test_eighty_callers_at_two_pods_buy_exactly_the_last_ten_seats(
    city: City, mesh: RunningMesh
) -> None:
    sellers: set[int] = set()
    async with second_pod(mesh) as (_, other):
        for _ in range(3):
            place = await city.place(capacity=SEATS)
            callers = [city.customer() for _ in range(CALLERS)]
            callers = [
                caller if number % 2 else at(other, caller, mesh) for number, caller in enumerate(callers)
            ]
            await asyncio.gather(*(caller.reservations() for caller in callers[:2]))  # both doors are open
            outcomes = await asyncio.gather(*(attempt(caller, place) for caller in callers))
            reasons = Counter(one.reason for one in outcomes if isinstance(one, Refused))
            sold = [number for number, one in enumerate(outcomes) if isinstance(one, Reservation)]
            assert (len(sold), reasons) == (SEATS, {"SLOT_UNAVAILABLE": CALLERS - SEATS})
            await place.sees_seats(0, 0)
            sellers |= {number % 2 for number in sold}
    assert sellers == {0, 1}, "void: only one pod ever sold"


async def test_one_request_at_two_pods_makes_one_reservation_and_one_charge(
    city: City, mesh: RunningMesh
) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    before = set(await city.provider.charges())
    async with second_pod(mesh) as (_, other):
        twin = at(other, alice, mesh)
        wish = alice.wish(place, party=2, card="tok_slow_300")
        said: list[Refused] = []
        answers = await asyncio.gather(
            *(
                patiently(lambda who=who: who.send(wish, timeout=10), refusals=said)  # type: ignore[misc]
                for who in [alice, twin] * 10
            )
        )
        assert len({one.reservation_id for one in answers}) == 1
        assert any(one.reason == "REQUEST_IN_PROGRESS" for one in said), "void: none met another"
        await twin.sees(answers[0], CONFIRMED)
        cancelled = await asyncio.gather(*(who.cancel(answers[0]) for who in [alice, twin] * 5))
    assert {cents(one.refunded) for one in cancelled} == {2000}

    async def money() -> list[int]:
        charges = await city.provider.charges()
        return [kept(charge) for key, charge in charges.items() if key not in before]

    await until(money, lambda left: left == [0])
    await place.sees_seats(0, 10)


async def test_a_watch_at_one_pod_sees_what_happens_at_the_other_and_ends_when_its_pod_stops(
    city: City, mesh: RunningMesh
) -> None:
    place, alice = await city.place(), city.customer()
    booked, stays = await alice.book(place), await alice.book(place)
    states: list[int] = []
    ends: list[watch_pb2.End] = []
    heard = asyncio.Event()

    async def watch(who: Customer, reservation: Reservation) -> None:
        async for message in who.watch(reservation):
            heard.set()
            if message.WhichOneof("kind") == "reservation":
                states.append(message.reservation.state)
            elif message.WhichOneof("kind") == "end":
                ends.append(message.end)

    async with second_pod(mesh) as (pod, other):
        twin = at(other, alice, mesh)
        watching = asyncio.create_task(watch(twin, booked))
        await asyncio.wait_for(heard.wait(), 10)
        await alice.cancel(booked)
        await asyncio.wait_for(watching, 10)
        assert states[-1] == CANCELLED
        assert ends.pop().reason == watch_pb2.END_REASON_FINISHED

        heard.clear()
        watching = asyncio.create_task(watch(twin, stays))
        await asyncio.wait_for(heard.wait(), 10)
        await asyncio.to_thread(pod.stop)
        await asyncio.wait_for(watching, 10)
    assert [end.reason for end in ends] == [watch_pb2.END_REASON_SERVER_STOPPING]
