"""What a customer and a restaurant live through, over the whole running mesh."""

from __future__ import annotations

import asyncio
import datetime as dt

import grpc
from google.type.date_pb2 import Date

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2
from dinemesh.sandbox.v1 import sandbox_pb2
from dinemesh.watch.v1 import watch_pb2
from tests.mesh.conftest import on_both_engines
from tests.mesh.people import (
    CANCELLED,
    COMPLETED,
    CONFIRMED,
    DECLINED,
    MANUAL,
    NO_SHOW,
    PENDING_ACCEPTANCE,
    SEATED,
    City,
    Customer,
    Reservation,
    cents,
    euros,
    instant,
    kept,
    kinds_of,
    new_id,
    patiently,
    policy,
    soon,
    timestamp,
    until,
)
from tests.support.refusals import refused

CAPTURED = deposit_pb2.DEPOSIT_STATE_CAPTURED
REFUNDED = deposit_pb2.DEPOSIT_STATE_REFUNDED
FORFEITED = deposit_pb2.DEPOSIT_STATE_FORFEITED

RECEIVED = restaurant_pb2.BOOKING_STATE_RECEIVED
ACCEPTED = restaurant_pb2.BOOKING_STATE_ACCEPTED
WITHDRAWN = restaurant_pb2.BOOKING_STATE_WITHDRAWN

YEAR = 31_536_000


async def provider_kept(city: City, reservation: Reservation) -> list[int]:
    """Cents that the provider kept, deposit by deposit."""
    charges = await city.provider.charges()
    return [kept(charges[one.deposit_id]) for one in reservation.deposits]


async def all_came_back(city: City, customer: Customer, reservation: Reservation) -> None:
    """Every deposit is REFUNDED, and the provider has nothing of it."""
    await customer.sees_deposits(reservation, *[REFUNDED] * len(reservation.deposits))
    assert not any(await provider_kept(city, reservation))


@on_both_engines
async def test_a_table_is_reserved_paid_confirmed_read_and_cancelled(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()

    reserved = await alice.reserve(place, party=4, note="window, please")
    assert reserved.state in (PENDING_ACCEPTANCE, CONFIRMED)
    assert (reserved.customer_id, reserved.restaurant_id) == (alice.name, place.id)
    assert (reserved.party_size, reserved.revision, reserved.note) == (4, 1, "window, please")
    assert instant(reserved.dine_time) == place.slots[0]
    assert reserved.policy == place.policy
    assert [(cents(one.amount), cents(one.held)) for one in reserved.deposits] == [(4000, 4000)]
    assert instant(reserved.free_cancel_time) == place.slots[0] - dt.timedelta(hours=1)

    confirmed = await alice.sees(reserved, CONFIRMED)
    booking = await place.sees(reserved, ACCEPTED, revision=1, confirmed=True)
    assert (booking.customer_id, booking.party_size) == (alice.name, 4)
    assert [one.reservation_id for one in await alice.reservations()] == [reserved.reservation_id]
    await place.sees_seats(0, 6)

    (deposit,) = await alice.deposits(reserved)
    assert deposit == await alice.deposit(confirmed.deposits[0].deposit_id)
    assert (deposit.state, cents(deposit.captured), cents(deposit.held)) == (CAPTURED, 4000, 4000)
    charge = await city.provider.charge(deposit.deposit_id)
    assert charge is not None and charge.amount == euros(40)

    answer = await alice.cancel(confirmed)
    assert (cents(answer.refunded), cents(answer.forfeited)) == (4000, 0)
    assert answer.reservation.state == CANCELLED
    assert answer.reservation.cancelled_by == reservation_pb2.CANCELLED_BY_CUSTOMER
    await place.sees(reserved, WITHDRAWN, confirmed=False)
    await all_came_back(city, alice, reserved)
    await place.sees_seats(0, 10)

    entries = await alice.sees_in_timeline(
        reserved,
        "DEPOSIT_CAPTURED",
        "RESERVATION_PLACED",
        "BOOKING_ACCEPTED",
        "RESERVATION_CONFIRMED",
        "RESERVATION_CANCELLED",
        "BOOKING_WITHDRAWN",
        "DEPOSIT_REFUNDED",
    )
    order = [kind for kind in kinds_of(entries) if kind.startswith("RESERVATION")]
    assert order == ["RESERVATION_PLACED", "RESERVATION_CONFIRMED", "RESERVATION_CANCELLED"]
    assert [instant(one.occur_time) for one in entries] == sorted(instant(one.occur_time) for one in entries)
    told = dict(zip(kinds_of(entries), entries, strict=True))
    assert cents(told["DEPOSIT_CAPTURED"].amount) == cents(told["DEPOSIT_REFUNDED"].amount) == 4000
    assert cents(told["RESERVATION_CANCELLED"].refunded) == 4000
    assert all(entry.summary for entry in entries)
    # The customer's words went to nobody.
    assert "window" not in str(entries)


@on_both_engines
async def test_a_watch_shows_the_confirmation_and_ends_with_the_reservation(city: City) -> None:
    place, alice = await city.place(MANUAL), city.customer()
    reserved = await alice.reserve(place)
    states: list[int] = []
    end: watch_pb2.End | None = None

    async def watch() -> None:
        nonlocal end
        async for message in alice.watch(reserved):
            if message.WhichOneof("kind") == "reservation":
                states.append(message.reservation.state)
            elif message.WhichOneof("kind") == "end":
                end = message.end

    async def heard(state: int) -> None:
        async def so_far() -> list[int]:
            return states

        await until(so_far, lambda seen: state in seen)

    watching = asyncio.create_task(watch())
    await heard(PENDING_ACCEPTANCE)
    await place.accept(await place.sees(reserved, RECEIVED))
    await heard(CONFIRMED)
    await alice.cancel(reserved)
    await asyncio.wait_for(watching, 15)
    assert states[-1] == CANCELLED
    assert end is not None and end.reason == watch_pb2.END_REASON_FINISHED


@on_both_engines
async def test_a_dearer_modification_charges_the_difference_and_asks_the_restaurant_again(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)

    dearer = await alice.modify(booked, party=5, card="tok_visa")
    assert (dearer.party_size, dearer.revision) == (5, 2)
    assert [cents(one.amount) for one in dearer.deposits] == [2000, 3000]
    await alice.sees(booked, CONFIRMED)
    await place.sees(booked, ACCEPTED, revision=2, confirmed=True)
    await alice.sees_deposits(booked, CAPTURED, CAPTURED)
    await place.sees_seats(0, 5)
    await alice.sees_in_timeline(booked, "RESERVATION_MODIFIED", "DEPOSIT_CAPTURED", "DEPOSIT_CAPTURED")
    assert await provider_kept(city, dearer) == [2000, 3000]


@on_both_engines
async def test_a_cheaper_modification_gives_the_difference_back(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=5)

    cheaper = await alice.modify(booked, party=3)
    assert (cheaper.party_size, cheaper.revision, len(cheaper.deposits)) == (3, 2, 1)
    await alice.sees(booked, CONFIRMED)
    await place.sees(booked, ACCEPTED, revision=2, confirmed=True)
    await place.sees_seats(0, 7)

    async def deposit() -> deposit_pb2.Deposit:
        return await alice.deposit(cheaper.deposits[0].deposit_id)

    given_back = await until(deposit, lambda one: cents(one.refunded) == 2000)
    assert (given_back.state, cents(given_back.held)) == (CAPTURED, 3000)
    assert await provider_kept(city, cheaper) == [3000]
    await alice.sees_in_timeline(booked, "RESERVATION_MODIFIED", "DEPOSIT_REFUNDED")


async def test_another_time_at_the_same_price_moves_the_seats_and_no_money(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, slot=0, party=4)

    moved = await alice.modify(booked, dine_time=place.slots[2])
    assert (instant(moved.dine_time), moved.revision) == (place.slots[2], 2)
    assert instant(moved.free_cancel_time) == place.slots[2] - dt.timedelta(hours=1)
    await alice.sees(booked, CONFIRMED)
    await place.sees_seats(0, 10)
    await place.sees_seats(2, 6)
    (deposit,) = await alice.deposits(booked)
    assert (cents(deposit.held), len(deposit.refunds)) == (4000, 0)


async def test_a_new_note_alone_changes_no_terms(city: City) -> None:
    place, alice = await city.place(), city.customer()
    booked = await alice.book(place)
    noted = await alice.modify(booked, note="a cake, please")
    assert (noted.note, noted.revision, noted.state) == ("a cake, please", 1, CONFIRMED)
    assert noted.etag != booked.etag


async def test_a_modification_that_cannot_be_seated_leaves_the_booking_as_it_was(city: City) -> None:
    place, alice = await city.place(capacity=4), city.customer()
    booked = await alice.book(place, party=2)
    said = await refused(alice.modify(booked, party=5, card="tok_visa"))
    assert (said.reason, said.code) == ("SLOT_UNAVAILABLE", grpc.StatusCode.FAILED_PRECONDITION)
    assert await alice.read(booked) == booked
    assert [cents(one.held) for one in await alice.deposits(booked)] == [2000]
    await place.sees_seats(0, 2)


async def test_a_modification_whose_card_is_declined_leaves_the_booking_as_it_was(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    said = await refused(alice.modify(booked, party=5, card="tok_chargeDeclined"))
    assert said.reason == "CARD_DECLINED"
    now = await alice.read(booked)
    assert (now.party_size, now.revision, now.state) == (2, 1, CONFIRMED)
    await place.sees_seats(0, 8)
    held = [cents(one.held) for one in await alice.deposits(booked)]
    assert sum(held) == 2000


async def test_a_modification_repeated_under_its_request_id_changes_once(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    wish = new_id()
    first = await alice.modify(booked, party=3, card="tok_visa", request_id=wish)
    again = await alice.modify(booked, party=3, card="tok_visa", request_id=wish)
    assert (first.revision, again.revision) == (2, 2)
    assert [cents(one.held) for one in await alice.deposits(booked)] == [2000, 1000]


async def test_a_stale_etag_is_refused(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    await alice.modify(booked, party=1)
    said = await refused(alice.modify(booked, party=3, card="tok_visa"))
    assert (said.reason, said.code) == ("ETAG_MISMATCH", grpc.StatusCode.ABORTED)


async def test_two_deposits_one_partly_refunded_then_cancelled_give_exactly_what_was_held(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    await alice.modify(booked, party=5, card="tok_visa")
    dearer = await alice.sees(booked, CONFIRMED)
    await alice.modify(dearer, party=4)
    fewer = await alice.sees(booked, CONFIRMED)
    # Newest first: the second deposit of 30 gives 10 back.
    assert [cents(one.held) for one in fewer.deposits] == [2000, 2000]

    answer = await alice.cancel(fewer)
    assert (cents(answer.refunded), cents(answer.forfeited)) == (4000, 0)
    await all_came_back(city, alice, fewer)
    first, second = await alice.deposits(booked)
    assert [cents(refund.amount) for refund in first.refunds] == [2000]
    assert [cents(refund.amount) for refund in second.refunds] == [1000, 2000]
    again = await alice.cancel(fewer)
    assert (cents(again.refunded), cents(again.forfeited)) == (4000, 0)
    assert await alice.deposits(booked) == [first, second]


@on_both_engines
async def test_a_person_accepts(city: City) -> None:
    place, alice = await city.place(MANUAL), city.customer()
    reserved = await alice.reserve(place)
    booking = await place.sees(reserved, RECEIVED, confirmed=False)
    assert (await alice.read(reserved)).state == PENDING_ACCEPTANCE
    accepted = await place.accept(booking)
    assert accepted.state == ACCEPTED
    await alice.sees(reserved, CONFIRMED)
    await place.sees(reserved, ACCEPTED, confirmed=True)


async def test_a_person_declines_and_the_deposit_comes_back(city: City) -> None:
    place, alice = await city.place(MANUAL, capacity=10), city.customer()
    reserved = await alice.reserve(place)
    await place.decline(await place.sees(reserved, RECEIVED))
    declined = await alice.sees(reserved, DECLINED)
    assert declined.decline_cause == reservation_pb2.DECLINE_CAUSE_RESTAURANT
    await all_came_back(city, alice, reserved)
    await place.sees_seats(0, 10)
    await alice.sees_in_timeline(reserved, "BOOKING_DECLINED", "RESERVATION_DECLINED", "DEPOSIT_REFUNDED")
    said = await refused(alice.cancel(reserved))
    assert said.reason == "RESERVATION_NOT_CANCELLABLE"


async def test_a_restaurant_that_does_not_answer_in_time_has_declined(city: City) -> None:
    place = await city.place(capacity=10, terms=policy(MANUAL, limit_seconds=1))
    alice = city.customer()
    reserved = await alice.reserve(place)
    assert instant(reserved.accept_deadline) < place.slots[0]
    declined = await alice.sees(reserved, DECLINED)
    assert declined.decline_cause == reservation_pb2.DECLINE_CAUSE_DEADLINE
    assert instant(declined.update_time) >= instant(reserved.accept_deadline)
    booking = await place.sees(reserved, WITHDRAWN, confirmed=False)
    await all_came_back(city, alice, reserved)
    await place.sees_seats(0, 10)
    said = await refused(place.accept(booking))
    assert said.reason in ("BOOKING_STATE", "ACCEPTANCE_EXPIRED")


async def test_a_restaurant_that_declines_what_it_had_accepted_has_cancelled(city: City) -> None:
    # Too late to cancel free of charge, for the customer: but it is the restaurant that cancels.
    place = await city.place(terms=policy(free_cancel_seconds=YEAR))
    alice = city.customer()
    booked = await alice.book(place)
    await place.decline(await place.sees(booked, ACCEPTED, confirmed=True))
    cancelled = await alice.sees(booked, CANCELLED)
    assert cancelled.cancelled_by == reservation_pb2.CANCELLED_BY_RESTAURANT
    await all_came_back(city, alice, booked)


async def test_staff_who_cancel_give_everything_back(city: City) -> None:
    place = await city.place(terms=policy(free_cancel_seconds=YEAR))
    alice = city.customer()
    booked = await alice.book(place, party=3)
    answer = await place.cancel(booked)
    assert (cents(answer.refunded), cents(answer.forfeited)) == (3000, 0)
    assert answer.reservation.cancelled_by == reservation_pb2.CANCELLED_BY_RESTAURANT
    await all_came_back(city, alice, booked)
    await place.sees(booked, WITHDRAWN)


async def test_a_late_cancel_forfeits_and_a_modification_is_closed(city: City) -> None:
    place = await city.place(capacity=10, terms=policy(free_cancel_seconds=YEAR))
    alice = city.customer()
    booked = await alice.book(place, party=3)
    said = await refused(alice.modify(booked, party=2))
    assert said.reason == "MODIFICATION_CLOSED"

    answer = await alice.cancel(booked)
    assert (cents(answer.refunded), cents(answer.forfeited)) == (0, 3000)
    (deposit,) = await alice.sees_deposits(booked, FORFEITED)
    assert [cents(one.amount) for one in deposit.forfeits] == [3000]
    assert await provider_kept(city, booked) == [3000]
    await place.sees(booked, WITHDRAWN)
    await place.sees_seats(0, 10)
    entries = await alice.sees_in_timeline(booked, "RESERVATION_CANCELLED", "DEPOSIT_FORFEITED")
    assert "DEPOSIT_REFUNDED" not in kinds_of(entries)


async def test_a_late_cancel_before_it_is_confirmed_is_free(city: City) -> None:
    place = await city.place(terms=policy(MANUAL, free_cancel_seconds=YEAR))
    alice = city.customer()
    reserved = await alice.reserve(place)
    answer = await alice.cancel(reserved)
    assert (cents(answer.refunded), cents(answer.forfeited)) == (2000, 0)
    await all_came_back(city, alice, reserved)


async def test_guests_who_do_not_come_forfeit_and_guests_who_come_get_it_back(city: City) -> None:
    dine_time = soon(4)
    place = await city.place(
        times=[dine_time], capacity=10, terms=policy(free_cancel_seconds=0, interval_seconds=1)
    )
    alice, bob = city.customer(), city.customer()
    absent, present = await alice.book(place, party=2), await bob.book(place, party=3)

    too_early = await refused(place.mark_no_show(await place.sees(absent, ACCEPTED, confirmed=True)))
    assert too_early.reason == "TOO_EARLY"
    assert too_early.retry_after is not None

    booking = await place.sees(absent, ACCEPTED, confirmed=True)
    await patiently(lambda: place.mark_no_show(booking))
    await alice.sees(absent, NO_SHOW)
    (deposit,) = await alice.sees_deposits(absent, FORFEITED)
    assert cents(deposit.forfeited) == 2000
    await alice.sees_in_timeline(
        absent, "BOOKING_NO_SHOW_MARKED", "RESERVATION_NO_SHOW_RECORDED", "DEPOSIT_FORFEITED"
    )

    there = await place.seat(await place.sees(present, ACCEPTED, confirmed=True))
    await bob.sees(present, SEATED)
    await all_came_back(city, bob, present)
    await place.complete(there)
    await bob.sees(present, COMPLETED)
    await bob.sees_in_timeline(present, "RESERVATION_SEATED", "DEPOSIT_REFUNDED", "RESERVATION_COMPLETED")
    assert (await refused(bob.cancel(present))).reason == "RESERVATION_NOT_CANCELLABLE"


async def test_an_acceptance_of_old_terms_has_no_effect(city: City) -> None:
    place, alice = await city.place(MANUAL, capacity=10), city.customer()
    reserved = await alice.reserve(place, party=4)
    old = await place.sees(reserved, RECEIVED, revision=1)
    await alice.modify(reserved, party=2)
    new = await place.sees(reserved, RECEIVED, revision=2)

    said = await refused(place.accept(old))
    assert (said.reason, said.info.get("revision")) == ("BOOKING_REVISION", "2")
    assert (await alice.read(reserved)).state == PENDING_ACCEPTANCE
    await place.accept(new)
    await alice.sees(reserved, CONFIRMED)


async def test_new_terms_that_the_restaurant_declines_end_the_booking_with_a_full_refund(city: City) -> None:
    place, alice = await city.place(MANUAL), city.customer()
    reserved = await alice.reserve(place, party=2)
    await place.accept(await place.sees(reserved, RECEIVED))
    confirmed = await alice.sees(reserved, CONFIRMED)
    dearer = await alice.modify(confirmed, party=4, card="tok_visa")
    assert dearer.state == PENDING_ACCEPTANCE
    await place.decline(await place.sees(reserved, RECEIVED, revision=2))
    await until(lambda: alice.read(reserved), lambda seen: seen.state in (DECLINED, CANCELLED))
    await all_came_back(city, alice, dearer)


async def test_a_refund_that_the_provider_refuses_is_retried_by_an_operator(city: City) -> None:
    place, alice = await city.place(), city.customer()
    reserved = await alice.reserve(place, card="tok_refundFail")
    await alice.cancel(reserved)
    (failed,) = await alice.sees_deposits(reserved, deposit_pb2.DEPOSIT_STATE_REFUND_FAILED)
    (refund,) = failed.refunds
    await alice.sees_in_timeline(reserved, "DEPOSIT_REFUND_FAILED")
    assert await provider_kept(city, reserved) == [2000]

    await city.doors.sandbox.LiftRefundBlock(
        sandbox_pb2.LiftRefundBlockRequest(charge_key=failed.deposit_id), timeout=5
    )
    await city.doors.deposit.RetryRefund(
        deposit_service_pb2.RetryRefundRequest(deposit_id=failed.deposit_id, refund_id=refund.refund_id),
        metadata=city.operator,
        timeout=5,
    )
    await all_came_back(city, alice, reserved)
    assert [one.attempt for one in (await alice.deposits(reserved))[0].refunds] == [2]


async def test_a_dearer_modification_killed_after_the_charge_ends_whole(city: City) -> None:
    """kill -9 of reservation between the charge of the difference and its own second transaction."""
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    reservation = city.mesh["reservation"]
    old_pid = reservation.pid

    modifying = asyncio.create_task(
        alice.modify(booked, party=5, card="tok_slow_700", timeout=10)  # long enough to stop it in between
    )

    async def in_flight() -> list[deposit_pb2.Deposit]:
        return await alice.deposits(booked)

    # The intent stands, the charge is under way: now reservation hangs and cannot hear the answer.
    pending = await until(in_flight, lambda found: len(found) == 2)
    assert pending[1].state == deposit_pb2.DEPOSIT_STATE_PENDING, "void: the charge was over too soon"
    reservation.pause()
    try:
        await until(in_flight, lambda found: found[1].state == CAPTURED)
        assert not modifying.done(), "void: reservation had answered already"
    finally:
        reservation.kill()
    said = await refused(modifying)
    assert said.code == grpc.StatusCode.UNAVAILABLE
    reservation.start()
    assert reservation.pid != old_pid

    def whole(seen: Reservation) -> bool:
        held = sum(cents(one.held) for one in seen.deposits)
        return (seen.state, held) in ((CONFIRMED, 2000), (CONFIRMED, 5000)) and (
            seen.party_size == held // 1000
        )

    async def at_rest() -> tuple[Reservation, int]:
        seen = await alice.read(booked)
        charges = await city.provider.charges()
        return seen, sum(kept(charges[one.deposit_id]) for one in await alice.deposits(booked))

    seen, money = await until(
        at_rest, lambda found: whole(found[0]) and found[1] == found[0].party_size * 1000
    )
    await place.sees_seats(0, 10 - seen.party_size)
    # And it is still a booking like any other.
    answer = await alice.cancel(seen)
    assert cents(answer.refunded) == money


async def test_the_slots_of_a_day_show_price_time_zone_and_who_fits(city: City) -> None:
    place, alice = await city.place(capacity=4), city.customer()
    await alice.book(place, slot=1, party=3)
    await place.sees_seats(1, 1)
    two = [await place.offered(moment, party=2) for moment in place.slots]
    assert [slot.available if slot else None for slot in two] == [True, False, True]
    assert [slot.deposit if slot else None for slot in two] == [euros(20)] * 3
    assert two[0] is not None and two[0].free_cancel_time == timestamp(place.slots[0] - dt.timedelta(hours=1))


async def test_closed_slots_sell_no_more_and_keep_what_was_sold(city: City) -> None:
    place, alice = await city.place(), city.customer()
    booked = await alice.book(place)
    local = place.slots[0].astimezone(place.zone)
    day = Date(year=local.year, month=local.month, day=local.day)
    await city.doors.restaurant.CloseSlots(
        restaurant_service_pb2.CloseSlotsRequest(
            restaurant_id=place.id, first_date=day, last_date=day, all_times=True
        ),
        metadata=place.metadata,
        timeout=5,
    )
    await until(lambda: place.has_seats(0, 1), lambda open_: not open_)
    said = await refused(alice.reserve(place))
    assert said.reason in ("SLOT_UNAVAILABLE", "RESTAURANT_CLOSED")
    assert (await alice.read(booked)).state == CONFIRMED


async def test_a_day_without_slots_is_closed(city: City) -> None:
    place, alice = await city.place(), city.customer()
    wish = alice.wish(place)
    wish.dine_time.FromDatetime(place.slots[0] + dt.timedelta(days=1))
    said = await refused(alice.send(wish))
    assert (said.reason, said.code) == ("RESTAURANT_CLOSED", grpc.StatusCode.FAILED_PRECONDITION)
    wish.dine_time.FromDatetime(place.slots[2] + dt.timedelta(minutes=30))
    assert (await refused(alice.send(wish))).reason == "SLOT_UNAVAILABLE"
