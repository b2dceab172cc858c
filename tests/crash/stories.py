"""What people and clocks do to a mesh, one story for each way to go. Each knows how it has to end, whatever
dies meanwhile."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
from collections.abc import Awaitable, Callable

import grpc
from google.type.date_pb2 import Date
from sqlalchemy import create_engine, func, select, text

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2
from dinemesh.sandbox.v1 import sandbox_pb2
from operations.events import replay
from tests.crash.world import CHARGES_AT_ONCE, NOTHING, End, Guest, World, insist, says, sees
from tests.mesh.people import CONFIRMED, DECLINED, FAILED, SHORT, Place, Reservation, new_id, policy, soon
from tests.support.mesh import SERVICES
from tests.support.refusals import refusal

Story = Callable[[World], Awaitable[None]]

_A_QUEUE_OF = (
    ("reservation", "reservation.restaurants"),
    ("deposit", "deposit.instructions"),
    ("restaurant", "restaurant.bookings"),
    ("history", "history.timeline"),
)
BOOKED = End(("CONFIRMED",), 2000)

REFUND_FAILED = deposit_pb2.REFUND_STATE_FAILED
_VOIDING = deposit_pb2.DEPOSIT_STATE_VOIDING


async def reserve(world: World) -> None:
    guest = world.guest()
    await guest.book(world.auto)
    await guest.ends("CONFIRMED", kept_cents=2000)


async def cancel_in_time(world: World) -> None:
    guest = world.guest()
    assert await guest.cancel(await guest.book(world.auto)) == (2000, 0)
    await guest.ends("CANCELLED", kept_cents=0)


async def cancel_late(world: World) -> None:
    guest = world.guest()
    assert await guest.cancel(await guest.book(world.late)) == (0, 2000)
    await guest.ends("CANCELLED", kept_cents=2000)


async def staff_cancel(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.late)
    await insist(lambda: world.late.cancel(booked))
    await guest.ends("CANCELLED", kept_cents=0)


async def accept(world: World) -> None:
    guest = world.guest()
    reserved = await guest.reserve(world.manual)
    await says(world.manual, "AcceptBooking", reserved, "RECEIVED")
    await guest.ends("CONFIRMED", kept_cents=2000)


async def decline(world: World) -> None:
    guest = world.guest()
    reserved = await guest.reserve(world.manual)
    await says(world.manual, "DeclineBooking", reserved, "RECEIVED")
    await guest.ends("DECLINED", kept_cents=0)


async def decline_after_accept(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.late)
    await says(world.late, "DeclineBooking", booked, "ACCEPTED")
    await guest.ends("CANCELLED", kept_cents=0)


async def acceptance_expires(world: World) -> None:
    guest = world.guest()
    await guest.reserve(world.hasty)
    await guest.ends("DECLINED", kept_cents=0)


async def modify_dearer(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.auto)
    dearer = await guest.modify(booked, party=5, card="tok_visa")
    assert (dearer.party_size, dearer.revision) == (5, 2)
    await guest.ends("CONFIRMED", kept_cents=5000)


async def modify_cheaper(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.auto, party=5)
    cheaper = await guest.modify(booked, party=3)
    assert (cheaper.party_size, cheaper.revision) == (3, 2)
    await guest.ends("CONFIRMED", kept_cents=3000)


async def modify_with_a_card_that_declines(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.auto)
    await _refused(guest.modify(booked, party=5, card="tok_chargeDeclined"), "CARD_DECLINED")
    assert (await sees(lambda: guest.read(booked), bool)).party_size == 2
    await guest.ends("CONFIRMED", kept_cents=2000)


async def modify_and_the_reply_is_lost(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.auto)
    try:
        await guest.customer.modify(booked, party=5, card="tok_lostReply")
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason in ("TRY_AGAIN_LATER", ""), error
    await guest.ends_as(End(("CONFIRMED",), 2000), End(("CONFIRMED",), 5000))


async def a_card_that_declines(world: World) -> None:
    guest = world.guest()
    await _refused(guest.reserve(world.auto, card="tok_chargeDeclined"), "CARD_DECLINED")
    await guest.ends(kept_cents=0)


async def the_reply_is_lost(world: World) -> None:
    guest = world.guest()
    assert await guest.try_once(world.auto, card="tok_lostReply") != "PENDING_ACCEPTANCE"
    await guest.ends_as(NOTHING, BOOKED)


async def the_provider_is_down(world: World) -> None:
    guest = world.guest()
    assert await guest.try_once(world.auto, card="tok_unavailable") != "PENDING_ACCEPTANCE"
    await guest.ends(kept_cents=0)


async def deposit_has_too_much_to_do(world: World) -> None:
    """It refuses before it has written anything: a reservation, and a modification that gets dearer."""
    booked_guest, late = world.guest(), world.guest()
    booked = await booked_guest.book(world.auto)
    sandbox = world.mesh["sandbox"]
    sandbox.pause()
    try:
        first = [world.guest() for _ in range(CHARGES_AT_ONCE)]
        sending = [asyncio.create_task(one.try_once(world.auto, card="tok_visa")) for one in first]
        for one, task in zip(first, sending, strict=True):
            await sees(one.customer.deposits, lambda found, task=task: found or task.done())  # type: ignore[misc]
        modifying = _ignored(booked_guest.customer.modify(booked, party=5, card="tok_visa"))
        await asyncio.gather(late.try_once(world.auto, card="tok_visa"), modifying)
    finally:
        sandbox.resume()
    await asyncio.gather(*sending)
    for one in (*first, late):
        await one.ends_as(NOTHING, BOOKED)
    await booked_guest.ends_as(BOOKED, End(("CONFIRMED",), 5000))


async def deposit_is_down(world: World) -> None:
    """Its void is the first that deposit hears of it."""
    guest = world.guest()
    await world.end("deposit")
    await guest.try_once(world.auto, card="tok_visa")
    await world.begin("deposit")
    await guest.ends(kept_cents=0)


async def cancel_while_the_card_is_charged(world: World) -> None:
    guest = world.guest()
    sending = asyncio.create_task(guest.try_once(world.auto, card="tok_slow_400"))
    (pending,) = await sees(guest.customer.reservations, lambda found: len(found) == 1)
    await guest.cancel(pending)
    await sending
    await guest.ends("CANCELLED", kept_cents=0)


async def no_show(world: World) -> None:
    guest, booked = await _booked_for_tonight(world)
    await says(world.tonight, "MarkNoShow", booked, "ACCEPTED")
    await guest.ends("NO_SHOW", kept_cents=2000)


async def guests_come(world: World) -> None:
    guest, booked = await _booked_for_tonight(world)
    await says(world.tonight, "MarkSeated", booked, "ACCEPTED")
    await guest.ends("SEATED", kept_cents=0)
    await says(world.tonight, "CompleteBooking", booked, "SEATED")
    await guest.ends("COMPLETED", kept_cents=0)


async def nobody_marks_what_became_of_it(world: World) -> None:
    """The clock completes it, some time after the meal."""
    brief = await insist(
        lambda: world.city.place(
            times=[], terms=policy(free_cancel_seconds=0, interval_seconds=1, service_seconds=1)
        )
    )
    guest, _ = await _booked_for_tonight(world, brief)
    await guest.ends("COMPLETED", kept_cents=0)


async def a_refund_is_refused_and_retried(world: World) -> None:
    guest = world.guest()
    reserved = await guest.reserve(world.auto, card="tok_refundFail")
    await guest.cancel(reserved)
    deposits = await sees(
        guest.customer.deposits, lambda found: any(r.state == REFUND_FAILED for d in found for r in d.refunds)
    )
    deposit, refund = next((d, r) for d in deposits for r in d.refunds if r.state == REFUND_FAILED)
    sandbox, operator = world.city.doors.sandbox, world.city.operator
    await sandbox.LiftRefundBlock(
        sandbox_pb2.LiftRefundBlockRequest(charge_key=deposit.deposit_id), timeout=5
    )
    again = deposit_service_pb2.RetryRefundRequest(deposit_id=deposit.deposit_id, refund_id=refund.refund_id)
    retry = world.city.doors.deposit.RetryRefund
    try:
        await insist(lambda: retry(again, metadata=operator, timeout=5))
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason == "REFUND_NOT_RETRYABLE", error  # the first time was heard
    await guest.ends("CANCELLED", kept_cents=0)


async def a_hold_expires(world: World) -> None:
    """Reservation dies between its transactions, and deposit cannot find out what became of the charge."""
    guest = world.guest()
    world.mesh["sandbox"].pause()
    try:
        sending = asyncio.create_task(guest.try_once(world.auto, card="tok_visa"))
        await sees(guest.customer.deposits, bool)
        await world.end("reservation")
        await sending
        await world.begin("reservation")
        await sees(guest.customer.reservations, lambda found: [one.state for one in found] == [FAILED])
    finally:
        world.mesh["sandbox"].resume()
    await guest.ends(kept_cents=0)


async def a_hold_of_a_modification_expires(world: World) -> None:
    guest = world.guest()
    booked = await guest.book(world.auto)
    world.mesh["sandbox"].pause()
    try:
        sending = asyncio.create_task(_ignored(guest.customer.modify(booked, party=5, card="tok_visa")))
        await sees(guest.customer.deposits, lambda found: len(found) == 2)
        await world.end("reservation")
        await sending
        await world.begin("reservation")
        await sees(
            lambda: guest.read(booked), lambda found: [one.state for one in found.deposits[1:]] == [_VOIDING]
        )
    finally:
        world.mesh["sandbox"].resume()
    await guest.ends("CONFIRMED", kept_cents=2000)


async def reservation_dies_while_the_card_is_charged(world: World) -> None:
    """The event of the capture comes before anybody who waits for the reply."""
    guest = world.guest()
    sending = asyncio.create_task(guest.try_once(world.auto, card="tok_slow_300"))
    await sees(guest.customer.deposits, bool)
    await world.end("reservation")
    await sending
    await world.begin("reservation")
    await guest.ends_as(BOOKED, NOTHING)


async def both_die_while_the_card_is_charged(world: World) -> None:
    """Nobody who is left knows, but the provider."""
    guest = world.guest()
    sending = asyncio.create_task(guest.try_once(world.auto, card="tok_lostReply"))
    await sees(lambda: _charged(guest), bool)
    await world.end("reservation")
    await world.end("deposit")
    await sending
    await world.begin("deposit")
    await world.begin("reservation")
    await guest.ends_as(BOOKED, NOTHING)


async def both_die_before_the_card_is_charged(world: World) -> None:
    """The provider has not heard of it, and is told never to."""
    guest = world.guest()
    sandbox = world.mesh["sandbox"]
    sandbox.pause()
    try:
        sending = asyncio.create_task(guest.try_once(world.auto, card="tok_slow_2000"))
        await sees(guest.customer.deposits, bool)
        await world.end("reservation")
        await world.end("deposit")
        await sending
    finally:
        sandbox.resume()
    await world.begin("deposit")
    await world.begin("reservation")
    await guest.ends_as(NOTHING, BOOKED)


async def _a_queue_is_lost(world: World, service: str, queue: str) -> None:
    """Its subscriber reads the whole log, and finds there what it has missed."""
    guest = world.guest()
    await world.end(service)
    await world.lose_queue(queue)
    booking = asyncio.create_task(guest.reserve(world.auto))
    await world.begin(service)
    await guest.cancel(await booking)
    await guest.ends("CANCELLED", kept_cents=0)


async def _says_it_again(world: World, service: str) -> None:
    """An operator has the events published again: the relay finds them in the table."""
    guest = world.guest()
    await guest.book(world.auto)
    database = world.mesh.databases[service]
    assert (await replay(database, since_seconds=10)).events > 0

    await sees(lambda: asyncio.to_thread(_unsent, database), lambda count: count == 0)
    await guest.ends("CONFIRMED", kept_cents=2000)


def _unsent(database: str) -> int:
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            left = select(func.count()).select_from(text("outbox")).where(text("sent_time IS NULL"))
            return connection.execute(left).scalar_one()
    finally:
        engine.dispose()


async def _is_told_to_stop(world: World, service: str) -> None:
    """With a reservation on its way."""
    guest = world.guest()
    booking = asyncio.create_task(guest.reserve(world.auto, card="tok_slow_200"))
    await sees(guest.customer.reservations, bool)
    await world.end(service, signal.SIGTERM)
    await world.begin(service)
    await booking
    await guest.ends("CONFIRMED", kept_cents=2000)


async def a_restaurant_opens(world: World) -> None:
    doors, operator = world.city.doors.restaurant, world.city.operator
    create = restaurant_service_pb2.CreateRestaurantRequest(
        request_id=new_id(), name="Chez Nous", time_zone="Europe/Berlin", policy=policy()
    )
    made = (await insist(lambda: doors.CreateRestaurant(create, metadata=operator, timeout=SHORT))).restaurant
    again = (
        await insist(lambda: doors.CreateRestaurant(create, metadata=operator, timeout=SHORT))
    ).restaurant
    assert again.restaurant_id == made.restaurant_id
    update = restaurant_service_pb2.UpdateRestaurantRequest(
        restaurant_id=made.restaurant_id, etag=made.etag, name="Chez Vous"
    )
    try:
        await insist(lambda: doors.UpdateRestaurant(update, metadata=operator, timeout=SHORT))
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason == "ETAG_MISMATCH", error  # the first time was heard
    place = Place(world.city.doors, world.mesh, made)
    moment = world.auto.slots[0]
    await insist(lambda: place.open([moment], 3))
    await sees(lambda: place.has_seats(0, 3), bool)
    local = moment.astimezone(place.zone)
    day = Date(year=local.year, month=local.month, day=local.day)
    close = restaurant_service_pb2.CloseSlotsRequest(
        restaurant_id=place.id, first_date=day, last_date=day, all_times=True
    )
    await insist(lambda: doors.CloseSlots(close, metadata=place.metadata, timeout=SHORT))
    await sees(lambda: place.has_seats(0, 1), lambda open_: not open_)


def _of(tell: Callable[..., Awaitable[None]], service: str, *more: str) -> Story:
    async def story(world: World) -> None:
        await tell(world, service, *more)

    story.__name__ = f"{service}{tell.__name__}"
    return story


STORIES: tuple[Story, ...] = (
    reserve,
    cancel_in_time,
    cancel_late,
    staff_cancel,
    accept,
    decline,
    decline_after_accept,
    modify_dearer,
    modify_cheaper,
    modify_with_a_card_that_declines,
    a_card_that_declines,
    a_restaurant_opens,
    a_refund_is_refused_and_retried,
    deposit_is_down,
    the_provider_is_down,
    cancel_while_the_card_is_charged,
    acceptance_expires,
    the_reply_is_lost,
    modify_and_the_reply_is_lost,
    reservation_dies_while_the_card_is_charged,
    both_die_while_the_card_is_charged,
    both_die_before_the_card_is_charged,
    guests_come,
    no_show,
    nobody_marks_what_became_of_it,
    deposit_has_too_much_to_do,
    a_hold_expires,
    a_hold_of_a_modification_expires,
    *(_of(_a_queue_is_lost, service, queue) for service, queue in _A_QUEUE_OF),
    *(_of(_says_it_again, service) for service in ("reservation", "deposit", "restaurant")),
    *(_of(_is_told_to_stop, service) for service in SERVICES),
)
"""The cheapest first: a point that several pass is exercised in the first of them."""


async def _booked_for_tonight(world: World, place: Place | None = None) -> tuple[Guest, Reservation]:
    """A confirmed booking for in a moment; for a later one if it took longer to be confirmed."""
    for seconds in (1.5, 4, 10):
        guest, booked = await _reserved_for(world, place or world.tonight, soon(seconds))
        if booked.state == CONFIRMED:
            return guest, booked
    raise AssertionError("no booking was confirmed before its time")


async def _reserved_for(world: World, place: Place, moment: dt.datetime) -> tuple[Guest, Reservation]:
    """A reservation that the restaurant has confirmed, or that its time has overtaken."""
    guest = world.guest()
    if moment not in place.slots:
        await insist(lambda: place.open([moment], 100))
    reserved = await guest.reserve(place, slot=place.slots.index(moment))
    stands = await sees(lambda: guest.read(reserved), lambda found: found.state in (CONFIRMED, DECLINED))
    if stands.state == CONFIRMED:
        await sees(lambda: place.booking(reserved), lambda found: found is not None and found.confirmed)
    return guest, stands


async def _refused(call: Awaitable[object], reason: str) -> None:
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason == reason, error
    else:
        raise AssertionError(f"this should have been refused: {answer}")


async def _ignored(call: Awaitable[object]) -> None:
    try:
        await call
    except grpc.aio.AioRpcError:
        return


async def _charged(guest: Guest) -> bool:
    """Whether the provider has charged this guest, whatever deposit knows of it."""
    charges = await guest.world.city.provider.charges()
    return any(deposit.deposit_id in charges for deposit in await guest.customer.deposits())
