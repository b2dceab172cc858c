"""Events arrive more than once and in any order, and some cannot be read: the result is the same."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from dinemesh.deposit.v1 import deposit_pb2
from dinemesh.event.v1 import envelope_pb2
from dinemesh.history.v1 import history_pb2
from dinemesh.kit import dead_letters
from dinemesh.kit.batches import bodies_in
from dinemesh.kit.bus import Bus
from dinemesh.restaurant.v1 import restaurant_pb2
from dinemesh.sandbox.v1 import sandbox_pb2
from tests.mesh.people import (
    CANCELLED,
    CONFIRMED,
    DECLINED,
    MANUAL,
    Booking,
    City,
    Customer,
    Deposit,
    Place,
    Reservation,
    cents,
    policy,
    until,
)
from tests.support.mesh import ROOT, RunningMesh
from tests.support.refusals import refused

WITHDRAWN = restaurant_pb2.BOOKING_STATE_WITHDRAWN
REFUNDED = deposit_pb2.DEPOSIT_STATE_REFUNDED
QUEUES = (
    "reservation.restaurants",
    "reservation.deposits",
    "deposit.instructions",
    "restaurant.bookings",
    "history.timeline",
)
"""Of every subscriber; history's is the last."""


@asynccontextmanager
async def on_the_bus(mesh: RunningMesh) -> AsyncIterator[Bus]:
    bus = Bus(mesh.amqp_url, "test")
    running = asyncio.create_task(bus.run())
    assert await bus.wait_connected(15)
    try:
        yield bus
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def whole_log(bus: Bus) -> list[bytes]:
    """Every event that was ever published on this mesh."""
    mark = str(uuid.uuid4())
    await bus.mark_log(mark)
    return [body async for body in bus.read_log(mark)]


async def waiting_in(bus: Bus, queue: str) -> int:
    async with bus.channel(1) as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def drained(bus: Bus, queues: Sequence[str] = QUEUES) -> None:
    """Waits until nothing waits in `queues`."""

    async def left() -> int:
        return sum([await waiting_in(bus, queue) for queue in queues])

    await until(left, lambda count: count == 0)


@dataclass(frozen=True)
class World:
    """All that some people can see, to be compared."""

    reservations: list[Reservation]
    deposits: list[Deposit]
    bookings: list[Booking]
    timeline: list[history_pb2.TimelineEntry]
    charges: dict[str, sandbox_pb2.Charge]


async def world(city: City, place: Place, customers: Sequence[Customer]) -> World:
    return World(
        [one for customer in customers for one in await customer.reservations()],
        [one for customer in customers for one in await customer.deposits()],
        await place.bookings(),
        [one for customer in customers for one in await customer.timeline()],
        await city.provider.charges(),
    )


async def at_rest(city: City, place: Place, customers: Sequence[Customer]) -> World:
    """What there is to see once it does not change any more."""
    before = await world(city, place, customers)
    while True:
        await asyncio.sleep(0.3)
        now = await world(city, place, customers)
        if now == before:
            return now
        before = now


async def live_through_everything(city: City) -> tuple[Place, list[Customer]]:
    """One restaurant at which each kind of thing has happened."""
    place = await city.place(capacity=60, terms=policy(MANUAL, limit_seconds=600))
    people = [city.customer() for _ in range(6)]
    cancels, changes, stays, is_declined, late, is_refused = people

    async def accepted(customer: Customer) -> Reservation:
        reserved = await customer.reserve(place)
        await place.accept(await place.sees(reserved, restaurant_pb2.BOOKING_STATE_RECEIVED))
        return await customer.sees(reserved, CONFIRMED)

    cancelled = await accepted(cancels)
    await cancels.cancel(cancelled)

    changed = await changes.modify(await accepted(changes), party=4, card="tok_visa")
    fewer = await changes.modify(changed, party=3)
    await changes.cancel(fewer)

    await accepted(stays)

    declined = await is_declined.reserve(place)
    await place.decline(await place.sees(declined, restaurant_pb2.BOOKING_STATE_RECEIVED))
    await is_declined.sees(declined, DECLINED)

    # A charge that never answers: failed, voided, refunded.
    assert (await refused(late.reserve(place, card="tok_lostReply"))).reason == "TRY_AGAIN_LATER"
    assert (await refused(is_refused.reserve(place, card="tok_chargeDeclined"))).reason == "CARD_DECLINED"
    return place, people


async def test_a_duplicate_of_each_event_in_any_order_changes_nothing(city: City, mesh: RunningMesh) -> None:
    place, people = await live_through_everything(city)
    async with on_the_bus(mesh) as bus:
        await drained(bus)
        before = await at_rest(city, place, people)
        log = await whole_log(bus)
        envelopes = [envelope_pb2.Envelope.FromString(body) for body in log]
        kinds = {envelope.type for envelope in envelopes}
        copies = [(queue, envelope) for envelope in envelopes for queue in QUEUES]
        # The same news under a new id, as from a publisher that forgot: its version tells. History keeps each
        # event by its id, and nobody else's copy of a state goes backwards.
        for envelope in envelopes:
            renamed = envelope_pb2.Envelope()
            renamed.CopyFrom(envelope)
            renamed.event_id = str(uuid.uuid4())
            copies += [(queue, renamed) for queue in QUEUES[:-1]]
        random.Random(7).shuffle(copies)
        for begin in range(0, len(copies), 200):
            await asyncio.gather(
                *(
                    bus.publish_to_queue(envelope.SerializeToString(), queue, event_id=envelope.event_id)
                    for queue, envelope in copies[begin : begin + 200]
                )
            )
        assert {kind.rpartition(".")[2] for kind in kinds} >= {
            "BookingAccepted",
            "BookingDeclined",
            "BookingReceived",
            "BookingWithdrawn",
            "DepositCaptured",
            "DepositDeclined",
            "DepositRefunded",
            "ReservationCancelled",
            "ReservationConfirmed",
            "ReservationDeclined",
            "ReservationFailed",
            "ReservationModified",
            "ReservationPlaced",
            "RestaurantCreated",
            "SlotsChanged",
        }, "void: too little has happened"
        await drained(bus)
        assert await at_rest(city, place, people) == before
        for queue in QUEUES:
            assert await dead_letters.count_dead(bus, queue) == 0, queue


async def take_all(bus: Bus, queue: str, count: int) -> list[bytes]:
    """The events that wait in `queue`, taken out of it, as soon as there are so many."""
    bodies: list[bytes] = []

    async def taken() -> int:
        async with bus.channel(1) as channel:
            declared = await channel.declare_queue(queue, passive=True)
            while (message := await declared.get(fail=False)) is not None:
                bodies.extend(bodies_in(message.body))
                await message.ack()
        return len(bodies)

    await until(taken, lambda found: found >= count)
    return bodies


async def in_every_order(bus: Bus, queue: str, reservations: Sequence[Reservation], events: int) -> None:
    """Takes out of `queue` what waits for each reservation, and puts it back in another order for each."""
    bodies = await take_all(bus, queue, events * len(reservations))
    by_reservation: dict[str, list[bytes]] = {one.reservation_id: [] for one in reservations}
    rest: list[bytes] = []
    for body in bodies:
        by_reservation.get(envelope_pb2.Envelope.FromString(body).reservation_id, rest).append(body)
    orders = itertools.cycle(itertools.permutations(range(events)))
    for told, order in zip(by_reservation.values(), orders, strict=False):
        assert len(told) == events, "void: not every event waited in the queue"
        rest += [told[position] for position in order]
    for body in rest:
        await bus.publish_to_queue(body, queue, event_id=envelope_pb2.Envelope.FromString(body).event_id)


async def test_the_restaurant_ends_the_same_way_in_every_order_of_a_reservations_events(
    city: City, mesh: RunningMesh
) -> None:
    """Placed, modified, modified, cancelled: 24 orders, each for a reservation of its own."""
    place, alice = await city.place(capacity=100), city.customer()
    await asyncio.to_thread(mesh["restaurant"].stop)
    taken = [await alice.reserve(place, party=3) for _ in range(24)]
    for one in taken:
        other_time = await alice.modify(one, dine_time=place.slots[1])
        await alice.modify(other_time, party=2)
        await alice.cancel(one)
    async with on_the_bus(mesh) as bus:
        await in_every_order(bus, "restaurant.bookings", taken, 4)
    mesh["restaurant"].start()
    bookings = await until(
        place.bookings, lambda found: len(found) == 24 and {one.state for one in found} == {WITHDRAWN}
    )
    assert not any(one.confirmed for one in bookings)
    for one in await alice.reservations():
        assert one.state == CANCELLED
    await until(alice.deposits, lambda found: {one.state for one in found} == {REFUNDED})
    await place.sees_seats(0, 100)


async def test_deposit_returns_the_same_amounts_in_every_order_of_a_reservations_events(
    city: City, mesh: RunningMesh
) -> None:
    """Cheaper, cheaper, cancelled: 6 orders; each refund once, all of it in the end."""
    place, alice = await city.place(MANUAL, capacity=100), city.customer()
    taken = [await alice.reserve(place, party=4) for _ in range(6)]
    async with on_the_bus(mesh) as bus:
        await drained(bus)
        await asyncio.to_thread(mesh["deposit"].stop)
        for one in taken:
            fewer = await alice.modify(one, party=3)
            await alice.modify(fewer, party=1)
            await alice.cancel(one)
        await in_every_order(bus, "deposit.instructions", taken, 3)
    mesh["deposit"].start()
    deposits = await until(
        alice.deposits, lambda found: len(found) == 6 and {one.state for one in found} == {REFUNDED}
    )
    for deposit in deposits:
        assert sorted(cents(refund.amount) for refund in deposit.refunds) == [1000, 1000, 2000]
        assert cents(deposit.refunded) == cents(deposit.captured) == 4000
    charges = await city.provider.charges()
    for deposit in deposits:
        assert sorted(cents(one.amount) for one in charges[deposit.deposit_id].refunds) == [1000, 1000, 2000]


async def test_a_version_that_cannot_be_withholds_no_refund_and_mutes_nobody(
    city: City, mesh: RunningMesh
) -> None:
    place, alice = await city.place(), city.customer()
    booked = await alice.book(place)
    async with on_the_bus(mesh) as bus:
        envelope = next(
            one
            for one in map(envelope_pb2.Envelope.FromString, await whole_log(bus))
            if one.reservation_id == booked.reservation_id and one.type.endswith(".ReservationConfirmed")
        )
        envelope.event_id = str(uuid.uuid4())
        envelope.aggregate_version = 2**31
        # To those alone whom it could harm: history would keep what reservation never said.
        for queue in ("restaurant.bookings", "deposit.instructions"):
            await bus.publish_to_queue(envelope.SerializeToString(), queue, event_id=envelope.event_id)
        try:

            async def letters() -> list[dead_letters.DeadLetter]:
                return await dead_letters.list_dead(bus, "restaurant.bookings")

            assert [one.event_id for one in await until(letters, bool)] == [envelope.event_id]
            await alice.cancel(booked)
            await place.sees(booked, WITHDRAWN)
            await until(alice.deposits, lambda found: {one.state for one in found} == {REFUNDED})
        finally:
            async with bus.channel(1) as channel:
                dead = await channel.declare_queue("restaurant.bookings.dead", passive=True)
                await dead.purge()


@pytest.mark.parametrize("queue", QUEUES)
async def test_an_unreadable_message_blocks_nothing_is_listed_and_can_be_redriven(
    city: City, mesh: RunningMesh, queue: str
) -> None:
    place, alice = await city.place(), city.customer()
    async with on_the_bus(mesh) as bus:
        try:
            await bus.publish_to_queue(b"\xff\xffjunk", queue, event_id="junk")

            async def letters() -> list[dead_letters.DeadLetter]:
                return await dead_letters.list_dead(bus, queue)

            (letter,) = await until(letters, bool)
            assert (letter.queue, letter.event_id, letter.type) == (queue, "junk", "")
            booked = await alice.book(place)
            await alice.cancel(booked)
            await alice.sees_in_timeline(
                booked, "RESERVATION_CANCELLED", "DEPOSIT_REFUNDED", "BOOKING_WITHDRAWN"
            )
            assert await dead_letters.redrive(bus, queue) == 1
            await until(letters, lambda found: len(found) == 1)  # no more readable than before, and not lost
        finally:
            async with bus.channel(1) as channel:
                dead = await channel.declare_queue(f"{queue}.dead", passive=True)
                await dead.purge()


async def test_history_dropped_and_rebuilt_equals_the_live_one(city: City, mesh: RunningMesh) -> None:
    place, people = await live_through_everything(city)
    await at_rest(city, place, people)
    before = [await one.timeline() for one in people]
    assert all(before[:-1]), "void: there is nothing to rebuild"
    history = mesh["history"]
    await asyncio.to_thread(history.stop)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DINEMESH_")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "history_svc.main", "rebuild"],
        env=kept | {f"DINEMESH_{key}": value for key, value in history.environment.items()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    history.start()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same as before\n"), done.stdout
    assert "not the same" not in done.stdout
    assert [await one.timeline() for one in people] == before
