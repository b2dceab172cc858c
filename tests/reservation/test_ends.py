"""How a booking ends: cancelled, declined, expired, seated, no-show, completed; whatever order it is heard
in."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import func, select

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import wire
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from dinemesh.restaurant.v1 import restaurant_pb2
from reservation_svc import handlers
from reservation_svc.domain import (
    Acceptance,
    BookingSnapshot,
    BookingState,
    Caller,
    CancelledBy,
    Cause,
    DeclineCause,
    DepositSnapshot,
    DepositState,
    Kind,
    Reservation,
    State,
)
from reservation_svc.persistence import reservations, seat_inventory, tables
from reservation_svc.usecases import event_handlers
from tests.reservation.conftest import DINNER, RESTAURANT, OpenPod, Pod, new_id
from tests.reservation.races import HEAD_STARTS, race
from tests.reservation.refusals import refused

STAFF = Caller(restaurant_id=RESTAURANT.restaurant_id)


def returned(reservation: Reservation) -> list[tuple[Kind, int, Cause]]:
    return [(one.kind, one.amount, one.cause) for one in reservation.instructions]


async def test_a_free_cancel_gives_everything_back_and_says_so_again(pod: Pod) -> None:
    booked = await pod.book(3)
    first = await pod.cancel(booked)
    assert (first.reservation.state, first.reservation.cancelled_by) == (
        State.CANCELLED,
        CancelledBy.CUSTOMER,
    )
    assert (first.refunded, first.forfeited) == (3000, 0)
    assert await pod.cancel(booked) == first
    assert await pod.cancel(booked, STAFF) == first
    assert await pod.sold() == 0
    assert await pod.events(booked) == ["Placed", "Confirmed", "Cancelled"]


async def test_a_late_cancel_forfeits_unless_the_restaurant_does_it_or_it_was_not_confirmed(pod: Pod) -> None:
    late, by_staff, unconfirmed = await pod.book(1), await pod.book(1), await pod.reserve(1)
    pod.clock.set(DINNER - timedelta(hours=1))
    assert (await pod.cancel(late)).forfeited == 1000
    assert (await pod.cancel(by_staff, STAFF)).refunded == 1000
    assert (await pod.see(by_staff)).cancelled_by is CancelledBy.RESTAURANT
    assert (await pod.cancel(unconfirmed)).refunded == 1000
    assert returned(await pod.see(late)) == [(Kind.FORFEIT, 1000, Cause.CANCELLED)]
    assert await pod.sold() == 0


async def test_someone_elses_reservation_cannot_be_told_from_none(pod: Pod) -> None:
    booked = await pod.book()
    for who in (Caller(customer_id="mallory"), Caller(restaurant_id=new_id()), Caller()):
        await refused("NOT_FOUND", pod.cancel(booked, who))
    assert (await pod.see(booked)).state is State.CONFIRMED


async def test_a_decline_gives_everything_back(pod: Pod) -> None:
    placed = await pod.reserve(2)
    await pod.hear_booking(placed, BookingState.DECLINED)
    after = await pod.see(placed)
    assert (after.state, after.decline_cause) == (State.DECLINED, DeclineCause.RESTAURANT)
    assert returned(after) == [(Kind.REFUND, 2000, Cause.DECLINED)]
    assert await pod.sold() == 0
    await refused("RESERVATION_NOT_CANCELLABLE", pod.cancel(placed))


async def test_a_decline_after_accept_is_a_cancel_by_the_restaurant(pod: Pod) -> None:
    booked = await pod.book(2)
    pod.clock.set(DINNER - timedelta(hours=1))
    await pod.hear_booking(booked, BookingState.DECLINED)
    after = await pod.see(booked)
    assert (after.state, after.cancelled_by) == (State.CANCELLED, CancelledBy.RESTAURANT)
    assert returned(after) == [(Kind.REFUND, 2000, Cause.CANCELLED)]


async def test_a_move_and_its_event_are_one_transaction(pod: Pod) -> None:
    placed = await pod.reserve()

    def accepted_and_rolled_back(tx: Transaction) -> None:
        news = BookingSnapshot(BookingState.ACCEPTED, placed.terms.revision)
        event_handlers.on_booking(pod.ctx, tx, placed.reservation_id, news)
        tx.flush()
        assert tx.execute(select(func.count()).select_from(tables.outbox)).scalar_one() == 2
        raise Refusal("NO", "this transaction is not committed")

    with pytest.raises(Refusal):
        await pod.store.write(accepted_and_rolled_back)
    assert (await pod.see(placed)).state is State.PENDING_ACCEPTANCE
    assert await pod.events(placed) == ["Placed"]


async def test_without_an_answer_the_booking_is_declined_at_its_deadline(pod: Pod) -> None:
    placed = await pod.reserve(2)
    pod.clock.pass_by(seconds=3599)
    await pod.reconcile()
    assert (await pod.see(placed)).state is State.PENDING_ACCEPTANCE
    pod.clock.pass_by(seconds=1)
    await pod.reconcile()
    after = await pod.see(placed)
    assert (after.state, after.decline_cause) == (State.DECLINED, DeclineCause.DEADLINE)
    assert returned(after) == [(Kind.REFUND, 2000, Cause.DECLINED)]


async def test_an_acceptance_that_arrives_after_the_deadline_is_too_late(pod: Pod) -> None:
    placed = await pod.reserve(2)
    pod.clock.pass_by(hours=1)
    await pod.hear_booking(placed, BookingState.ACCEPTED)
    assert (await pod.see(placed)).decline_cause is DeclineCause.DEADLINE


async def test_guests_who_come_get_their_deposit_back(pod: Pod) -> None:
    booked = await pod.book(2)
    await pod.hear_booking(booked, BookingState.SEATED)
    seated = await pod.see(booked)
    assert returned(seated) == [(Kind.REFUND, 2000, Cause.SEATED)]
    await refused("RESERVATION_NOT_CANCELLABLE", pod.cancel(booked))
    await pod.hear_booking(booked, BookingState.COMPLETED)
    assert (await pod.see(booked)).state is State.COMPLETED
    assert await pod.events(booked) == ["Placed", "Confirmed", "Seated", "Completed"]


async def test_guests_who_do_not_come_forfeit_it(pod: Pod) -> None:
    booked = await pod.book(2)
    await pod.hear_booking(booked, BookingState.NO_SHOW)
    after = await pod.see(booked)
    assert (after.state, returned(after)) == (State.NO_SHOW, [(Kind.FORFEIT, 2000, Cause.NO_SHOW)])
    assert await pod.events(booked) == ["Placed", "Confirmed", "NoShowRecorded"]


async def test_what_nobody_marked_is_completed_a_day_after_the_service(pod: Pod) -> None:
    forgotten, seated = await pod.book(2), await pod.book(2)
    await pod.hear_booking(seated, BookingState.SEATED)
    pod.clock.set(DINNER + timedelta(hours=2 + 24) - timedelta(seconds=1))
    await pod.reconcile()
    assert (await pod.see(forgotten)).state is State.CONFIRMED
    pod.clock.pass_by(seconds=1)
    await pod.reconcile()
    after = await pod.see(forgotten)
    assert (after.state, returned(after)) == (State.COMPLETED, [(Kind.REFUND, 2000, Cause.COMPLETED)])
    assert (await pod.see(seated)).state is State.COMPLETED


async def test_what_was_seen_before_another_pod_moved_it_is_decided_anew(pod: Pod) -> None:
    seen = await pod.reserve(1)
    await pod.cancel(seen)  # the other pod was faster
    accepted = BookingSnapshot(BookingState.ACCEPTED, 1)
    await pod.store.write(
        lambda tx: pod.ctx.transition(
            tx,
            seen.reservation_id,
            lambda current: current.on_booking(accepted, tx.now),
            seen=seen,
        )
    )
    after = await pod.see(seen)
    assert (after.state, returned(after)) == (State.CANCELLED, [(Kind.REFUND, 1000, Cause.CANCELLED)])


@pytest.mark.parametrize("engine_name", ["postgresql"])
async def test_of_two_pods_that_saw_the_same_the_later_one_decides_anew(open_pod: OpenPod, pod: Pod) -> None:
    other = open_pod()
    placed = await pod.reserve(1)
    accepted = BookingSnapshot(BookingState.ACCEPTED, 1)
    has_seen, go_on = threading.Event(), threading.Event()

    def accept(tx: Transaction) -> None:
        seen = reservations.find(tx, placed.reservation_id)
        has_seen.set()
        assert go_on.wait(10)
        pod.ctx.transition(
            tx,
            placed.reservation_id,
            lambda current: current.on_booking(accepted, tx.now),
            seen=seen,
        )

    accepting = asyncio.ensure_future(pod.store.write(accept))
    assert await asyncio.to_thread(has_seen.wait, 10)
    await other.cancel(placed)
    go_on.set()
    await accepting
    after = await pod.see(placed)
    assert (after.state, returned(after)) == (State.CANCELLED, [(Kind.REFUND, 1000, Cause.CANCELLED)])


async def test_no_show_against_late_cancel_forfeits_once(open_pod: OpenPod, pod: Pod) -> None:
    other = open_pod()
    ends = set()
    pod.clock.set(DINNER - timedelta(days=2))
    booked = [await pod.book(1) for _ in HEAD_STARTS]
    pod.clock.set(DINNER + timedelta(hours=1))
    for one, head_start in zip(booked, HEAD_STARTS, strict=True):
        await race(
            partial(pod.hear_booking, one, BookingState.NO_SHOW), partial(other.cancel, one), head_start
        )
        after = await pod.see(one)
        assert [(kind, amount) for kind, amount, _ in returned(after)] == [(Kind.FORFEIT, 1000)]
        ends.add(after.state)
    assert ends == {State.NO_SHOW, State.CANCELLED}, "only one side ever won: the race is void"


R, A, D = BookingState.RECEIVED, BookingState.ACCEPTED, BookingState.DECLINED
S, C, N = BookingState.SEATED, BookingState.COMPLETED, BookingState.NO_SHOW
STORIES = [
    (Acceptance.MANUAL, (R, A, S, C), State.COMPLETED),
    (Acceptance.MANUAL, (R, A, S), State.SEATED),
    (Acceptance.MANUAL, (R, A, N), State.NO_SHOW),
    (Acceptance.MANUAL, (R, D), State.DECLINED),
    (Acceptance.MANUAL, (R, A, D), State.CANCELLED),
    (Acceptance.AUTO, (A, D), State.CANCELLED),
    (Acceptance.AUTO, (A, S, C), State.COMPLETED),
]


@pytest.mark.parametrize(("acceptance", "story", "end"), STORIES)
async def test_every_order_of_the_restaurants_events_comes_to_the_same_end(
    pod: Pod, acceptance: Acceptance, story: tuple[BookingState, ...], end: State
) -> None:
    place = replace(RESTAURANT, policy=replace(RESTAURANT.policy, acceptance=acceptance))
    await pod.store.write(lambda tx: event_handlers.on_restaurant(tx, place))
    versions = [
        (version, BookingSnapshot(state, 1, accepted=A in story[: version + 1]))
        for version, state in enumerate(story)
    ]
    for order in itertools.permutations(versions):
        placed = await pod.reserve(1, shown=place.policy)
        await _heard(pod, placed, order)
        after = await pod.see(placed)
        assert after.state is end, order
        assert after.held_total == 0
        assert len(after.instructions) == 1, "given back or forfeited once"
        again = await pod.see(placed)
        await _heard(pod, placed, [*order, *order], seen=len(story) - 1)
        assert await pod.see(placed) == again, "duplicates change nothing"
        await pod.open_slots((DINNER, 1000), version=2)


async def _heard(pod: Pod, reservation: Reservation, order: object, seen: int = -1) -> None:
    """As the inbox does it: a version that is not higher than the highest seen has no effect."""
    for version, news in order:  # type: ignore[attr-defined]
        if version > seen:
            seen = version
            await pod.store.write(
                lambda tx, heard=news: event_handlers.on_booking(
                    pod.ctx, tx, reservation.reservation_id, heard
                )  # type: ignore[misc]
            )


async def test_every_order_of_a_deposits_events_comes_to_the_same_end(pod: Pod) -> None:
    states = [
        (1, DepositState.CAPTURED),
        (2, DepositState.REFUNDING),
        (3, DepositState.REFUND_FAILED),
        (4, DepositState.REFUNDED),
    ]
    for order in itertools.permutations(states):
        booked = await pod.book(1)
        deposit_id = booked.deposits[0].deposit_id
        await pod.cancel(booked)
        seen = 0
        for version, state in [*order, *order]:
            if version > seen:
                seen = version
                await pod.on_deposit(booked, DepositSnapshot(deposit_id, state, captured=True))
        after = await pod.see(booked)
        assert (after.state, after.deposits[0].state) == (State.CANCELLED, DepositState.REFUNDED)
        assert len(after.instructions) == 1


async def test_a_tombstone_that_names_no_reservation_is_found_by_its_deposit(pod: Pod) -> None:
    await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_unknown"))
    (failed,) = await pod.mine()
    deposit_id = failed.deposits[0].deposit_id
    news = DepositSnapshot(deposit_id, DepositState.VOIDED, captured=False)
    await pod.store.write(lambda tx: event_handlers.on_deposit(pod.ctx, tx, "", news))
    await pod.store.write(
        lambda tx: event_handlers.on_deposit(
            pod.ctx, tx, "", DepositSnapshot(new_id(), DepositState.VOIDED, captured=False)
        )
    )
    assert (await pod.see(failed)).deposits[0].state is DepositState.VOIDED


async def test_news_of_reservations_that_are_not_known_have_no_effect(pod: Pod) -> None:
    stranger = await pod.reserve(1)
    unknown = new_id()
    await pod.store.write(
        lambda tx: event_handlers.on_booking(pod.ctx, tx, unknown, BookingSnapshot(BookingState.ACCEPTED, 1))
    )
    assert (await pod.see(stranger)).state is State.PENDING_ACCEPTANCE


def slots_changed(number: int, *slots: tuple[datetime, int, int]) -> bytes:
    """An event about slots of one day, as restaurant publishes it: dine time, capacity, version."""
    message = restaurant_events.SlotsChanged(
        restaurant_id=RESTAURANT.restaurant_id,
        slots=[
            restaurant_pb2.Slot(dine_time=wire.to_timestamp(at), capacity=capacity, version=version)
            for at, capacity, version in slots
        ],
    )
    return envelope_pb2.Envelope(
        event_id=new_id(),
        type=message.DESCRIPTOR.full_name,
        source="restaurant",
        aggregate_id=f"{RESTAURANT.restaurant_id}/{slots[0][0].date()}",
        aggregate_version=number,
        payload=message.SerializeToString(),
    ).SerializeToString()


async def test_each_event_about_slots_counts_for_the_slots_that_it_names_in_any_order(pod: Pod) -> None:
    inbox = Inbox(pod.store, tables.inbox, handlers.restaurants(pod.ctx))
    for number in range(24):
        at = DINNER + timedelta(days=number + 20)
        six, seven, eight = (at + timedelta(hours=hour) for hour in range(3))
        events = [
            slots_changed(1, (six, 10, 1), (seven, 10, 1)),
            slots_changed(2, (seven, 0, 2)),
            slots_changed(3, (eight, 5, 1)),
            slots_changed(4, (six, 7, 2), (seven, 4, 3)),
        ]
        order = list(itertools.permutations(events))[number]
        for body in (*order, *order):
            await inbox.take(inbox.decode(body))
        now = [await pod.capacity(when) for when in (six, seven, eight)]
        assert now == [7, 4, 5]


async def test_slots_are_set_in_any_order_and_the_newest_version_stands(pod: Pod) -> None:
    changes = [(1, 10), (2, 0), (3, 7)]
    for number, order in enumerate(itertools.permutations(changes)):
        at = DINNER + timedelta(days=number + 20)
        for version, capacity in [*order, *order]:
            await pod.open_slots((at, capacity), version=version)
        slot = await pod.store.read(
            lambda tx, when=at: seat_inventory.slot(tx, RESTAURANT.restaurant_id, when)  # type: ignore[misc]
        )
        assert slot is not None and slot.capacity == 7
