"""Many callers at once: a slot is never oversold, a request is never done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import TypeVar

import grpc

from dinemesh.restaurant.v1 import restaurant_pb2
from dinemesh.sandbox.v1 import sandbox_pb2
from tests.mesh.conftest import on_both_engines
from tests.mesh.people import (
    CANCELLED,
    CONFIRMED,
    MANUAL,
    PENDING_ACCEPTANCE,
    SEATED,
    Booking,
    City,
    Customer,
    Place,
    Reservation,
    cents,
    kept,
    patiently,
    policy,
    soon,
    until,
)
from tests.support.refusals import Refused, refusal, refused

T = TypeVar("T")
WITHDRAWN = restaurant_pb2.BOOKING_STATE_WITHDRAWN
ACCEPTED = restaurant_pb2.BOOKING_STATE_ACCEPTED
SEATED_BOOKING = restaurant_pb2.BOOKING_STATE_SEATED
CALLERS = 80
SEATS = 10


async def attempt(customer: Customer, place: Place) -> Reservation | Refused:
    """A reservation, or the refusal after which a client would not come back."""
    wish = customer.wish(place, party=1)
    said: list[Refused] = []
    try:
        return await patiently(lambda: customer.send(wish, timeout=20), refusals=said)
    except grpc.aio.AioRpcError:
        return said[-1]


@on_both_engines
async def test_eighty_callers_for_the_last_ten_seats_buy_exactly_ten(city: City) -> None:
    place = await city.place(capacity=SEATS)
    callers = [city.customer() for _ in range(CALLERS)]
    outcomes = await asyncio.gather(*(attempt(caller, place) for caller in callers))

    reasons = Counter(one.reason for one in outcomes if isinstance(one, Refused))
    sold = [one for one in outcomes if isinstance(one, Reservation)]
    assert (len(sold), reasons) == (SEATS, {"SLOT_UNAVAILABLE": CALLERS - SEATS})
    await place.sees_seats(0, 0)
    live = await until(place.bookings, lambda found: len(found) >= SEATS)
    assert {one.reservation_id for one in live} == {one.reservation_id for one in sold}
    charges = await city.provider.charges()
    paid = [one for sale in sold for one in sale.deposits]
    assert len(paid) == SEATS
    assert all(kept(charges[one.deposit_id]) == 1000 for one in paid)


@on_both_engines
async def test_fifty_repeats_of_one_request_make_one_reservation_and_one_charge(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    before = set(await city.provider.charges())
    # Slow enough that most repeats find the first one still at work.
    wish = alice.wish(place, party=2, card="tok_slow_300")
    said: list[Refused] = []
    answers = await asyncio.gather(
        *(patiently(lambda: alice.send(wish, timeout=10), refusals=said) for _ in range(50))
    )

    assert len({one.reservation_id for one in answers}) == 1
    assert {one.reason for one in said} <= {"REQUEST_IN_PROGRESS", "TRY_AGAIN_LATER"}
    assert any(one.reason == "REQUEST_IN_PROGRESS" for one in said), "void: none met another"
    assert all(one.retry_after is not None for one in said)
    new = [one for key, one in (await city.provider.charges()).items() if key not in before]
    assert [(one.state, cents(one.amount)) for one in new] == [(sandbox_pb2.CHARGE_STATE_CAPTURED, 2000)]
    await alice.sees(answers[0], CONFIRMED)
    final = await asyncio.gather(*(alice.send(wish) for _ in range(50)))
    assert len({one.SerializeToString(deterministic=True) for one in final}) == 1
    await place.sees_seats(0, 8)
    assert len(await alice.reservations()) == 1


@on_both_engines
async def test_the_same_request_id_with_another_body_is_refused(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    wish = alice.wish(place, party=2)
    reserved = await alice.send(wish)
    for change in ({"party_size": 3}, {"note": "other"}, {"payment_token": "tok_slow_1"}):
        other = type(wish)()
        other.CopyFrom(wish)
        for name, value in change.items():
            setattr(other, name, value)
        said = await refused(alice.send(other))
        assert (said.reason, said.code) == ("REQUEST_ID_REUSED", grpc.StatusCode.ALREADY_EXISTS), change
    assert [one.reservation_id for one in await alice.reservations()] == [reserved.reservation_id]
    await place.sees_seats(0, 8)


@on_both_engines
async def test_who_books_while_the_terms_change_is_held_to_those_that_they_were_shown_or_not_at_all(
    city: City,
) -> None:
    place = await city.place(capacity=1000)
    before, shown = place.policy, place.policy_etag
    booked: list[Reservation] = []
    refusals: list[Refused] = []

    async def books() -> None:
        while not refusals:
            alice = city.customer()
            wish = alice.wish(place, party=1)
            wish.policy_etag = shown
            try:
                booked.append(await alice.send(wish))
            except grpc.aio.AioRpcError as error:
                refusals.append(refusal(error))
                assert await alice.reservations() == []

    async def changes() -> None:
        await until(lambda: asyncio.sleep(0, len(booked) > 3), bool)
        await place.change_policy(policy(per_person=5000, free_cancel_seconds=365 * 86_400))

    async with asyncio.timeout(30):
        await asyncio.gather(changes(), *(books() for _ in range(4)))
    assert {one.reason for one in refusals} == {"POLICY_CHANGED"}
    assert {one.info["deposit"] for one in refusals} == {"5000.00"}
    assert {one.info["policy_etag"] for one in refusals} == {place.policy_etag}
    assert len(booked) > 3
    for one in booked:
        assert one.policy == before
        assert [cents(line.amount) for line in one.deposits] == [1000]
    # Who was shown the new ones is booked on them.
    agreed = await city.customer().reserve(place, party=1)
    assert (agreed.policy, cents(agreed.deposits[0].amount)) == (place.policy, 500_000)


async def test_the_same_request_id_of_another_customer_is_another_request(city: City) -> None:
    place, alice, bob = await city.place(), city.customer(), city.customer()
    wish = alice.wish(place)
    mine, other = await alice.send(wish), await bob.send(wish)
    assert mine.reservation_id != other.reservation_id
    assert (mine.customer_id, other.customer_id) == (alice.name, bob.name)


async def test_a_capacity_cut_below_what_is_sold_breaks_nothing_and_sells_nothing(city: City) -> None:
    place, alice, bob = await city.place(capacity=10), city.customer(), city.customer()
    four, three = await alice.book(place, party=4), await bob.book(place, party=3)
    await place.set_capacity(0, 5)
    await until(lambda: place.has_seats(0, 3), lambda free: not free)

    assert (await refused(alice.reserve(place, party=1))).reason == "SLOT_UNAVAILABLE"
    assert (await alice.read(four)).state == (await bob.read(three)).state == CONFIRMED
    assert (await refused(bob.modify(three, party=4, card="tok_visa"))).reason == "SLOT_UNAVAILABLE"
    await bob.modify(three, party=2)
    await alice.cancel(four)
    # Two of five are sold now.
    await place.sees_seats(0, 3)


async def test_twenty_cancels_at_once_give_one_refund_and_one_answer(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    booked = await alice.book(place, party=2)
    answers = await asyncio.gather(*(alice.cancel(booked) for _ in range(20)))
    assert {(cents(one.refunded), cents(one.forfeited)) for one in answers} == {(2000, 0)}

    async def refunds() -> list[int]:
        (deposit,) = await alice.deposits(booked)
        return [cents(one.amount) for one in deposit.refunds]

    assert await until(refunds, bool) == [2000]
    await place.sees_seats(0, 10)


async def test_a_cancel_against_a_charge_in_flight_wins(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    creating = asyncio.create_task(alice.send(alice.wish(place, party=2, card="tok_slow_1000"), timeout=10))
    (pending,) = await until(alice.reservations, lambda found: len(found) == 1)
    assert not creating.done(), "void: the charge was over too soon"
    answer = await alice.cancel(pending)
    assert answer.reservation.state == CANCELLED
    created = await creating
    assert (created.reservation_id, created.state) == (pending.reservation_id, CANCELLED)

    async def money() -> int:
        charges = await city.provider.charges()
        return sum(kept(charges[one.deposit_id]) for one in created.deposits if one.deposit_id in charges)

    await until(alice.deposits, lambda found: all(cents(one.held) == 0 for one in found))
    await until(money, lambda left: left == 0)
    await place.sees_seats(0, 10)
    assert (await alice.read(pending)).state == CANCELLED


async def accepts(place: Place, booking: Booking) -> bool:
    """Whether the restaurant came first."""
    try:
        await place.accept(booking)
    except grpc.aio.AioRpcError:
        return False
    return True


async def after(seconds: float, call: Awaitable[T]) -> T:
    await asyncio.sleep(seconds)
    return await call


async def test_cancel_against_accept_ends_in_one_way_for_both(city: City) -> None:
    """Both sides win now and then; whoever loses changes nothing."""
    place = await city.place(MANUAL, capacity=40)
    states: Counter[bool] = Counter()
    for turn in range(20):
        alice = city.customer()
        reserved = await alice.reserve(place, party=1)
        booking = await until(lambda r=reserved: place.booking(r), lambda found: found is not None)  # type: ignore[misc]
        assert booking is not None

        accepted, cancelled = await asyncio.gather(
            accepts(place, booking),
            # Later in every turn but each fifth, so that each side comes first at times.
            after(0.002 * (turn % 5), alice.cancel(reserved)),
        )
        states[accepted] += 1
        assert cancelled.reservation.state == CANCELLED
        assert cents(cancelled.refunded) == 1000
        final = await alice.read(reserved)
        assert final.state == CANCELLED
    assert states[True], "void: the restaurant never came first"
    # Whatever was accepted in between is withdrawn.
    await until(place.bookings, lambda found: all(one.state == WITHDRAWN for one in found))
    await place.sees_seats(0, 40)


async def seats(place: Place, booking: Booking) -> bool:
    """Whether staff were told that their guests are seated."""
    try:
        seated = await place.seat(booking)
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason in ("BOOKING_REVISION", "BOOKING_STATE")
        return False
    assert seated.state == restaurant_pb2.BOOKING_STATE_SEATED
    return True


async def has_modified(customer: Customer, booked: Reservation) -> bool:
    """Whether the customer was told that one guest less comes."""
    try:
        await customer.modify(booked, party=1)
    except grpc.aio.AioRpcError as error:
        assert refusal(error).reason == "RESERVATION_NOT_MODIFIABLE"
        return False
    return True


async def test_guests_who_were_seated_stay_seated_whatever_their_host_modifies(city: City) -> None:
    """Staff are told that they are, while the customer is told of new terms: both stands."""
    # Nobody else sits down where they sit, so what is free at the end tells who does.
    place = await city.place(
        capacity=60, times=[soon(3600)], terms=policy(free_cancel_seconds=0, interval_seconds=1)
    )
    ends: Counter[tuple[bool, bool]] = Counter()
    parties = 0
    for turn in range(20):
        alice = city.customer()
        booked = await alice.book(place, party=2)
        booking = await place.sees(booked, ACCEPTED, confirmed=True)

        head_start = (-0.2, -0.01, 0.0, 0.01, 0.2)[turn % 5]
        end = tuple(
            await asyncio.gather(
                after(max(0.0, -head_start), seats(place, booking)),
                after(max(0.0, head_start), has_modified(alice, booked)),
            )
        )
        seated, modified = end
        assert seated or modified, "somebody came first"
        ends[seated, modified] += 1
        parties += 1 if modified else 2
        final = await until(
            lambda who=alice, what=booked: who.read(what),  # type: ignore[misc]
            lambda seen, wanted=SEATED if seated else CONFIRMED: seen.state == wanted,  # type: ignore[misc]
        )
        assert (final.revision, final.party_size) == ((2, 1) if modified else (1, 2))
        assert sum(cents(one.held) for one in final.deposits) == (0 if seated else 1000)
        await place.sees(
            booked, SEATED_BOOKING if seated else ACCEPTED, revision=final.revision, confirmed=True
        )
    assert ends[True, True] and ends[True, False] and ends[False, True], f"void: {ends}"
    await place.sees_seats(0, 60 - parties)


async def test_two_modifications_at_once_make_one(city: City) -> None:
    place, alice = await city.place(capacity=20), city.customer()
    booked = await alice.book(place, party=2)

    async def attempt_modify(party: int) -> str:
        try:
            await alice.modify(booked, party=party, card="tok_slow_200", timeout=10)
        except grpc.aio.AioRpcError as error:
            return refusal(error).reason
        return "OK"

    outcomes = Counter(await asyncio.gather(*(attempt_modify(3 + n) for n in range(4))))
    assert outcomes["OK"] == 1
    assert set(outcomes) <= {"OK", "MODIFICATION_IN_PROGRESS", "ETAG_MISMATCH"}
    now = await until(lambda: alice.read(booked), lambda seen: seen.state in (CONFIRMED, PENDING_ACCEPTANCE))
    assert now.revision == 2
    assert sum(cents(one.held) for one in now.deposits) == now.party_size * 1000
    await place.sees_seats(0, 20 - now.party_size)
