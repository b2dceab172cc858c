"""Restaurant, history or the broker away: bookings are still taken, and everybody catches up."""

from __future__ import annotations

import asyncio

import pytest

from dinemesh.deposit.v1 import deposit_pb2
from dinemesh.kit.bus import EXCHANGE, Bus
from dinemesh.reservation.v1.reservation_service_pb2 import CreateReservationRequest
from dinemesh.restaurant.v1 import restaurant_pb2
from local_mesh.broker import RunningBroker, answers
from operations.broker import connected
from tests.mesh.people import (
    CONFIRMED,
    DECLINED,
    MANUAL,
    PENDING_ACCEPTANCE,
    City,
    Customer,
    cents,
    kept,
    kinds_of,
    patiently,
    policy,
    until,
)
from tests.support.broker import delete_exchange, unbind
from tests.support.mesh import RunningMesh, state_of

ACCEPTED = restaurant_pb2.BOOKING_STATE_ACCEPTED
WITHDRAWN = restaurant_pb2.BOOKING_STATE_WITHDRAWN
STORY = [
    "BOOKING_ACCEPTED",
    "BOOKING_WITHDRAWN",
    "DEPOSIT_CAPTURED",
    "DEPOSIT_REFUNDED",
    "RESERVATION_CANCELLED",
    "RESERVATION_CONFIRMED",
    "RESERVATION_PLACED",
]
"""What a booking at an AUTO restaurant that is cancelled leaves in the timeline at the least."""


async def test_restaurant_away(city: City, mesh: RunningMesh) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    manual = await city.place(capacity=10, terms=policy(MANUAL, limit_seconds=1))
    part = mesh["restaurant"]
    old = part.pid
    await asyncio.to_thread(part.stop)
    assert state_of(old) == ""

    taken = [await alice.reserve(place, party=1) for _ in range(5)]
    late = await alice.reserve(manual, party=1)
    assert {one.state for one in taken} == {PENDING_ACCEPTANCE}
    await alice.cancel(taken[0])
    # Past its limit a person cannot have answered: declined and refunded, restaurant or not.
    await alice.sees(late, DECLINED)
    await alice.sees_deposits(late, deposit_pb2.DEPOSIT_STATE_REFUNDED)

    part.start()
    assert part.pid != old
    for one in taken[1:]:
        await alice.sees(one, CONFIRMED)
        await place.sees(one, ACCEPTED, confirmed=True)
    await place.sees(taken[0], WITHDRAWN)
    await manual.sees(late, WITHDRAWN)


async def test_history_away(city: City, mesh: RunningMesh) -> None:
    place, alice = await city.place(), city.customer()
    part = mesh["history"]
    old = part.pid
    part.kill()
    assert state_of(old) == ""
    booked = await alice.book(place)
    await alice.cancel(booked)
    await alice.sees_deposits(booked, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    await place.sees(booked, WITHDRAWN)

    part.start()
    assert part.pid != old
    entries = await alice.sees_in_timeline(booked, *STORY)
    assert len({one.event_id for one in entries}) == len(entries)


async def test_broker_away(city: City, mesh: RunningMesh, broker: RunningBroker) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    many = await city.place(capacity=1000)
    before = await alice.book(place, party=1)
    old = broker.pid
    await asyncio.to_thread(broker.stop_broker_only)
    assert state_of(old) == ""
    assert not answers(broker.ports.amqp)
    try:
        taken = [await alice.reserve(place, party=1) for _ in range(5)]
        assert {one.state for one in taken} == {PENDING_ACCEPTANCE}
        answer = await alice.cancel(before)
        assert cents(answer.refunded) == 1000
        # Planned or not, a service that starts now takes bookings too.
        reservation = mesh["reservation"]
        reservation.kill()
        reservation.start()
        taken.append(await alice.reserve(place, party=1))
        # Measured by a clock: bookings go on, so that the relay is never idle.
        while await unsent(mesh) < 1:
            taken.append(await alice.reserve(many, party=1))
        assert await age(mesh) > 0
    finally:
        broker.start()
    assert broker.pid != old

    for one in taken:
        await alice.sees(one, CONFIRMED, seconds=60)
    for one in taken[:6]:
        await place.sees(one, ACCEPTED, confirmed=True)
        await alice.sees_in_timeline(one, "DEPOSIT_CAPTURED", "RESERVATION_PLACED", "RESERVATION_CONFIRMED")
    await place.sees(before, WITHDRAWN)
    await alice.sees_deposits(before, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    entries = await alice.sees_in_timeline(before, *STORY)
    assert len({one.event_id for one in entries}) == len(entries)


async def test_broker_killed_with_work_in_flight(city: City, broker: RunningBroker) -> None:
    place, alice = await city.place(capacity=60), city.customer()
    taken = []
    old = broker.pid

    async def keep_booking() -> None:
        for _ in range(30):
            taken.append(await alice.reserve(place, party=1))

    await asyncio.to_thread(broker.write_queue_directory)
    booking = asyncio.create_task(keep_booking())

    async def so_far() -> int:
        return len(taken)

    await until(so_far, lambda count: count >= 5)
    broker.kill()
    assert not booking.done(), "void: nothing was in flight"
    assert state_of(old) == ""
    try:
        await booking
    finally:
        broker.start()
    assert broker.pid != old
    assert len(taken) == 30
    for one in taken:
        await alice.sees(one, CONFIRMED, seconds=60)
    entries = await until(
        alice.timeline, lambda found: kinds_of(found).count("RESERVATION_CONFIRMED") == 30, seconds=60
    )
    assert len({one.event_id for one in entries}) == len(entries)


async def test_a_deleted_queue_heals_and_misses_nothing(city: City, mesh: RunningMesh) -> None:
    place, alice = await city.place(), city.customer()
    bus = Bus(mesh.amqp_url, "test")
    running = asyncio.ensure_future(bus.run())
    try:
        for queue in ("restaurant.bookings", "history.timeline", "reservation.restaurants"):
            async with bus.channel(1) as channel:
                await channel.queue_delete(queue)
        booked = await alice.reserve(place)
        await alice.sees(booked, CONFIRMED)
        await alice.cancel(booked)
        await place.sees(booked, WITHDRAWN)
        await alice.sees_in_timeline(booked, *STORY)
        for queue in ("restaurant.bookings", "history.timeline", "reservation.restaurants"):
            assert await bus.has_queue(queue)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("what", ["a binding", "the exchange"])
async def test_what_the_broker_loses_while_all_runs_is_mended_and_what_was_said_meanwhile_is_heard(
    city: City, mesh: RunningMesh, broker: RunningBroker, what: str
) -> None:
    place, alice = await city.place(), city.customer()
    booked, before = await alice.book(place), await losses(mesh)
    if what == "a binding":
        unbind(broker, mesh.amqp_url, "deposit.instructions")
    else:
        delete_exchange(broker, mesh.amqp_url)
    await alice.cancel(booked)
    await alice.sees_deposits(booked, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    await place.sees(booked, WITHDRAWN)
    await alice.sees_in_timeline(booked, *STORY)
    await until(lambda: losses(mesh), lambda count: count > before)
    await alice.book(place)


async def losses(mesh: RunningMesh) -> float:
    """Of bindings and exchanges, as deposit has counted them."""
    return await asyncio.to_thread(mesh.measured, "deposit", "dinemesh_topology_losses_total")


async def test_a_full_queue_that_a_guest_has_bound_holds_up_no_booking(city: City, mesh: RunningMesh) -> None:
    place, alice = await city.place(capacity=40), city.customer()
    async with connected(mesh.amqp_url) as bus, bus.channel(1) as channel:
        full = await channel.declare_queue(
            "subscriber.full", durable=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"}
        )
        await full.bind(EXCHANGE, routing_key="#")
        try:
            taken = [await alice.reserve(place, party=1) for _ in range(20)]
            for one in taken:
                await alice.sees(one, CONFIRMED)
            answer = await channel.declare_queue("subscriber.full", passive=True)
            assert answer.declaration_result.message_count == 5, "void: it was not full"
            refused = await until(lambda: unsent(mesh), lambda count: count >= 20)
            assert refused >= 20
        finally:
            await channel.queue_delete("subscriber.full")
    await until(lambda: unsent(mesh), lambda count: count == 0, seconds=30)


async def unsent(mesh: RunningMesh) -> float:
    """What reservation's metric says."""
    return await asyncio.to_thread(mesh.measured, "reservation", "dinemesh_outbox_unsent_events")


async def age(mesh: RunningMesh) -> float:
    """The same of the oldest of them."""
    return await asyncio.to_thread(mesh.measured, "reservation", "dinemesh_outbox_oldest_unsent_seconds")


async def test_all_services_killed_at_once_with_bookings_in_flight_lose_none(
    city: City, mesh: RunningMesh
) -> None:
    place = await city.place(capacity=60)
    customers = [city.customer() for _ in range(20)]
    wishes = [customer.wish(place, party=1, card="tok_slow_300") for customer in customers]
    sending = [asyncio.create_task(c.send(w, timeout=5)) for c, w in zip(customers, wishes, strict=True)]

    async def charges_begun() -> int:
        return len(await customers[0].deposits())

    await until(charges_begun, bool)
    old = {name: mesh[name].pid for name in ("reservation", "deposit", "restaurant", "history")}
    for name in old:
        mesh[name].kill()
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert any(isinstance(one, BaseException) for one in outcomes), "void: nothing was in flight"
    for name in old:
        mesh[name].spawn()
    for name, pid in old.items():
        await asyncio.to_thread(mesh[name].wait_until_ready)
        assert mesh[name].pid != pid

    async def ask_again(customer: Customer, wish: CreateReservationRequest) -> None:
        booked = await patiently(lambda: customer.send(wish, timeout=5), seconds=60)
        await customer.sees(booked, CONFIRMED)

    await asyncio.gather(*(ask_again(c, w) for c, w in zip(customers, wishes, strict=True)))
    await place.sees_seats(0, 40)

    async def money() -> list[int]:
        charges = await city.provider.charges()
        return [
            sum(
                kept(charges[one.deposit_id])
                for one in await customer.deposits()
                if one.deposit_id in charges
            )
            for customer in customers
        ]

    await until(money, lambda held: held == [1000] * 20)
