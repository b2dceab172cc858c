"""Reserve: every row of the outcome table, repeated request ids, races for seats and against the charge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    BookingState,
    DepositState,
    Failure,
    Kind,
    Policy,
    RequestRecord,
    Reservation,
    State,
)
from reservation_svc.persistence import requests, seat_inventory
from reservation_svc.usecases import event_handlers
from reservation_svc.usecases.circuit_breaker import BreakerState
from tests.reservation.conftest import (
    ALICE,
    DINNER,
    POLICY,
    RESTAURANT,
    OpenPod,
    Pod,
    new_id,
    with_time_left,
)
from tests.reservation.refusals import refused


async def test_a_captured_deposit_places_the_reservation_and_tells_the_restaurant(pod: Pod) -> None:
    placed = await pod.reserve(3)
    assert placed.state is State.PENDING_ACCEPTANCE
    assert (placed.terms.price, placed.held_total) == (3000, 3000)
    assert placed.accept_deadline == pod.clock.now + timedelta(hours=1)
    assert placed == await pod.see(placed)
    assert await pod.sold() == 3
    assert await pod.events(placed) == ["Placed"]
    assert [charge.amount for charge in pod.deposits.asked] == [3000]


async def test_a_declined_card_books_nothing_and_is_told_again_to_the_same_request(pod: Pod) -> None:
    request_id = new_id()
    for _ in range(2):
        said = await refused("CARD_DECLINED", pod.reserve(card="tok_declined", request_id=request_id))
        assert said.metadata["decline_code"] == "insufficient_funds"
    (failed,) = await pod.mine()
    assert (failed.state, failed.failure) == (State.FAILED, Failure.CARD_DECLINED)
    assert await pod.sold() == 0
    assert len(pod.deposits.asked) == 1
    assert failed.instructions == ()


async def test_an_overloaded_deposit_means_not_charged_and_a_new_attempt_next_time(pod: Pod) -> None:
    request_id = new_id()
    said = await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded", request_id=request_id))
    assert said.retry_after == 3.0
    assert await pod.sold() == 0
    (failed,) = await pod.mine()
    assert failed.failure is Failure.DEPOSIT_OVERLOADED
    assert failed.instructions == ()
    assert await pod.events(failed) == []
    await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded", request_id=request_id))
    assert len({charge.deposit_id for charge in pod.deposits.asked}) == 2


@pytest.mark.parametrize("card", ["tok_unknown", "tok_lostReply", "tok_voided"])
async def test_an_unknown_outcome_frees_the_seats_and_voids(pod: Pod, card: str) -> None:
    request_id = new_id()
    said = await refused("TRY_AGAIN_LATER", pod.reserve(card=card, request_id=request_id))
    assert said.retry_after == 2
    (failed,) = await pod.mine()
    assert failed.state is State.FAILED
    assert [(one.kind, one.deposit_id) for one in failed.instructions] == [
        (Kind.VOID, failed.deposits[0].deposit_id)
    ]
    assert await pod.events(failed) == ["Failed"]
    assert await pod.sold() == 0
    await refused("TRY_AGAIN_LATER", pod.reserve(card=card, request_id=request_id))
    assert len(await pod.mine()) == 2


async def test_the_event_of_a_capture_goes_on_where_the_reply_was_lost_with_its_process(pod: Pod) -> None:
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve())
    await pod.deposits.arrived.wait()
    (held,) = await pod.mine()
    assert held.state is State.PENDING_DEPOSIT
    await pod.on_deposit(held, pod.deposits.news(held.deposits[0].deposit_id))
    assert (await pod.see(held)).state is State.PENDING_ACCEPTANCE
    pod.deposits.gate.set()
    assert await waiting == await pod.see(held)
    assert await pod.events(held) == ["Placed"]


async def test_an_unknown_reply_after_the_event_of_the_capture_answers_with_the_reservation(pod: Pod) -> None:
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve(card="tok_lostReply"))
    await pod.deposits.arrived.wait()
    (held,) = await pod.mine()
    await pod.on_deposit(held, pod.deposits.news(held.deposits[0].deposit_id))
    pod.deposits.gate.set()
    assert (await waiting).state is State.PENDING_ACCEPTANCE


async def test_cancel_wins_against_a_charge_in_flight_and_the_waiting_caller_learns_it(pod: Pod) -> None:
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve())
    await pod.deposits.arrived.wait()
    (held,) = await pod.mine()
    cancelled = await pod.cancel(held)
    assert (cancelled.refunded, cancelled.forfeited) == (0, 0)
    pod.deposits.gate.set()
    answer = await waiting
    assert answer.state is State.CANCELLED
    assert [one.kind for one in answer.instructions] == [Kind.VOID]
    assert answer.held_total == 0
    assert await pod.sold() == 0
    assert await pod.events(held) == ["Cancelled"]


async def test_a_caller_who_hangs_up_does_not_stop_the_work(pod: Pod) -> None:
    request_id = new_id()
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve(request_id=request_id))
    await pod.deposits.arrived.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    said = await refused("REQUEST_IN_PROGRESS", pod.reserve(request_id=request_id))
    assert said.retry_after is not None
    pod.deposits.gate.set()
    await pod.ctx.background.drain(5)
    assert (await pod.reserve(request_id=request_id)).state is State.PENDING_ACCEPTANCE
    assert len(pod.deposits.asked) == 1


async def test_a_repeated_request_gets_the_reservation_as_it_stands(pod: Pod) -> None:
    request_id = new_id()
    placed = await pod.reserve(request_id=request_id)
    assert await pod.reserve(request_id=request_id) == placed
    await pod.hear_booking(placed, BookingState.ACCEPTED)
    assert (await pod.reserve(request_id=request_id)).state is State.CONFIRMED
    await refused("REQUEST_ID_REUSED", pod.reserve(3, request_id=request_id))
    await pod.reserve(request_id=request_id, customer="bob")
    assert len(pod.deposits.asked) == 2


async def test_what_cannot_be_sold_stores_nothing(pod: Pod) -> None:
    request_id = new_id()
    await pod.reserve(9)
    await refused("SLOT_UNAVAILABLE", pod.reserve(2, request_id=request_id))
    await refused("SLOT_UNAVAILABLE", pod.reserve(at=DINNER + timedelta(minutes=30)))
    await refused("RESTAURANT_CLOSED", pod.reserve(at=DINNER + timedelta(days=1)))
    await refused("NOT_FOUND", pod.reserve(restaurant_id=new_id()))
    assert len(await pod.mine()) == 1
    await pod.open_slots((DINNER, 20), version=2)
    assert (await pod.reserve(2, request_id=request_id)).state is State.PENDING_ACCEPTANCE


@pytest.mark.parametrize(
    ("shift", "told"),
    [
        (timedelta(days=-30), "past"),
        (timedelta(days=400), "366 days"),
        (timedelta(minutes=5), "1800 seconds"),
        (timedelta(microseconds=1), "1800 seconds"),
    ],
)
async def test_a_dine_time_that_cannot_be_is_named(pod: Pod, shift: timedelta, told: str) -> None:
    said = await refused("INVALID_ARGUMENT", pod.reserve(at=DINNER + shift))
    assert [one.field for one in said.violations] == ["dine_time"]
    assert told in said.message


async def test_a_table_within_the_lead_or_for_too_many_is_refused(pod: Pod) -> None:
    pod.clock.set(DINNER - timedelta(minutes=10))
    said = await refused("INVALID_ARGUMENT", pod.reserve(13))
    assert [one.field for one in said.violations] == ["dine_time", "party_size"]


CHANGED = replace(POLICY, deposit_per_person=500_000, free_cancel_window_seconds=365 * 86_400)


async def terms_become(pod: Pod, policy: Policy) -> None:
    await pod.store.write(lambda tx: event_handlers.on_restaurant(tx, replace(RESTAURANT, policy=policy)))


async def test_terms_that_were_not_shown_are_refused_before_anything_is_held(pod: Pod) -> None:
    await terms_become(pod, CHANGED)
    request_id = new_id()
    said = await refused("POLICY_CHANGED", pod.reserve(2, request_id=request_id))
    assert said.metadata == {
        "policy_etag": CHANGED.etag,
        "deposit": "10000.00",
        "currency_code": "EUR",
        "free_cancel_time": "2029-01-10T19:00:00Z",
    }
    assert "now 10000.00 EUR, not free to cancel." in said.message
    assert said.retry_after is None
    assert (await pod.mine(), await pod.sold(), pod.deposits.asked) == ([], 0, [])
    # Who agrees to them repeats with the same request id.
    agreed = await pod.reserve(2, request_id=request_id, shown=CHANGED)
    assert (agreed.terms.price, agreed.policy) == (1_000_000, CHANGED)


async def test_the_message_tells_until_when_cancelling_is_free_where_the_restaurant_is(pod: Pod) -> None:
    yen = replace(POLICY, deposit_per_person=1500, currency="JPY", free_cancel_window_seconds=3600)
    await terms_become(pod, yen)
    said = await refused("POLICY_CHANGED", pod.reserve(3))
    assert "now 4500 JPY, free to cancel until 2030-01-10 19:00 (Europe/Berlin)." in said.message
    assert said.metadata["deposit"] == "4500"


async def test_what_stands_is_answered_whatever_the_policy_is_now(pod: Pod) -> None:
    request_id, declined = new_id(), new_id()
    placed = await pod.reserve(request_id=request_id)
    await refused("CARD_DECLINED", pod.reserve(card="tok_declined", request_id=declined))
    await terms_become(pod, CHANGED)
    assert await pod.reserve(request_id=request_id) == placed
    await refused("CARD_DECLINED", pod.reserve(card="tok_declined", request_id=declined))
    await refused("REQUEST_ID_REUSED", pod.reserve(request_id=request_id, shown=CHANGED))


async def test_a_new_attempt_is_held_against_the_terms_that_were_shown(pod: Pod) -> None:
    request_id = new_id()
    await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded", request_id=request_id))
    await terms_become(pod, CHANGED)
    await refused("POLICY_CHANGED", pod.reserve(card="tok_overloaded", request_id=request_id))
    assert len(pod.deposits.asked) == 1
    await terms_become(pod, POLICY)
    await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded", request_id=request_id))
    assert len(pod.deposits.asked) == 2


@pytest.mark.parametrize("shift", [timedelta(days=-30), timedelta(days=400)])
async def test_at_a_time_that_cannot_be_there_are_no_terms_to_tell(pod: Pod, shift: timedelta) -> None:
    await terms_become(pod, CHANGED)
    said = await refused("INVALID_ARGUMENT", pod.reserve(at=DINNER + shift))
    assert [one.field for one in said.violations] == ["dine_time"]


async def test_eighty_callers_for_the_last_ten_seats_buy_exactly_ten(open_pod: OpenPod, pod: Pod) -> None:
    other = open_pod()
    pods = [pod, other]
    outcomes = await asyncio.gather(
        *(pods[n % 2].reserve(1, customer=f"guest{n}") for n in range(80)), return_exceptions=True
    )
    sold = [one for one in outcomes if isinstance(one, Reservation)]
    refusals = [one.reason for one in outcomes if isinstance(one, Refusal)]
    assert len(sold) == 10
    assert refusals == ["SLOT_UNAVAILABLE"] * 70
    assert await pod.sold() == 10


async def test_fifty_repeats_of_one_request_make_one_reservation_and_one_charge(
    open_pod: OpenPod, pod: Pod
) -> None:
    request_id = new_id()
    pods = [pod, open_pod()]

    async def patiently(number: int) -> Reservation:
        for _ in range(200):
            try:
                return await pods[number % 2].reserve(request_id=request_id)
            except Refusal as refusal:
                # Or too many attempts of this customer, as long as none of them is on record.
                assert refusal.reason in ("REQUEST_IN_PROGRESS", "TRY_AGAIN_LATER")
                assert refusal.retry_after
                await asyncio.sleep(0.01)
        raise AssertionError("never answered")

    answers = await asyncio.gather(*(patiently(number) for number in range(50)))
    assert len({one.reservation_id for one in answers}) == 1
    assert len(pod.deposits.asked) == 1
    assert await pod.sold() == 2


async def test_a_sale_beyond_the_capacity_changes_nothing(pod: Pod) -> None:
    def sell(seats: int) -> Callable[[Transaction], bool]:
        return lambda tx: seat_inventory.hold(tx, RESTAURANT.restaurant_id, DINNER, seats)

    # As a pod does that looked before another one sold: 8 of 10, then 3 more, then 2.
    assert [await pod.store.write(sell(seats)) for seats in (8, 3, 2, 1)] == [True, False, True, False]
    assert await pod.sold() == 10
    await pod.store.write(lambda tx: seat_inventory.release(tx, RESTAURANT.restaurant_id, DINNER, 10))


async def test_a_request_id_is_taken_by_one_pod_only(pod: Pod) -> None:
    first, second, third = (RequestRecord("body", new_id()) for _ in range(3))

    def point(old: RequestRecord | None, new: RequestRecord) -> Callable[[Transaction], bool]:
        return lambda tx: requests.point(tx, ALICE, "request", old, new)

    assert await pod.store.write(point(None, first))
    assert not await pod.store.write(point(None, second)), "another pod had not seen the first one"
    assert await pod.store.write(point(first, second))
    assert not await pod.store.write(point(first, third)), "another pod had seen an attempt that is over"
    assert await pod.store.read(lambda tx: requests.find(tx, ALICE, "request")) == second


async def test_a_capacity_cut_below_what_is_sold_stops_the_sale_and_breaks_nothing(pod: Pod) -> None:
    booked = await pod.book(6)
    await pod.open_slots((DINNER, 4), version=2)
    await refused("SLOT_UNAVAILABLE", pod.reserve(1))
    await pod.open_slots((DINNER, 50), version=1)  # stale
    await refused("SLOT_UNAVAILABLE", pod.reserve(1))
    await pod.cancel(booked)
    await pod.reserve(4)
    assert await pod.sold() == 4


async def test_a_hold_that_nobody_finished_ends_with_a_void(pod: Pod) -> None:
    request_id = new_id()
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve(request_id=request_id))
    await pod.deposits.arrived.wait()
    (held,) = await pod.mine()
    pod.clock.pass_by(seconds=11)
    await pod.reconcile()
    assert (await pod.see(held)).state is State.PENDING_DEPOSIT, "the hold is valid: later"
    pod.clock.pass_by(minutes=2)
    await pod.reconcile()
    failed = await pod.see(held)
    assert (failed.state, failed.failure) == (State.FAILED, Failure.DEPOSIT_UNKNOWN)
    assert await pod.sold() == 0
    pod.deposits.gate.set()
    await refused("TRY_AGAIN_LATER", waiting)
    late = await pod.see(held)
    assert [one.kind for one in late.instructions] == [Kind.VOID]
    assert (await pod.reserve(request_id=request_id)).state is State.PENDING_ACCEPTANCE


async def test_a_capture_told_after_the_hold_is_voided(pod: Pod) -> None:
    pod.deposits.gate.clear()
    waiting = asyncio.create_task(pod.reserve())
    await pod.deposits.arrived.wait()
    (held,) = await pod.mine()
    pod.clock.pass_by(minutes=3)
    await pod.on_deposit(held, pod.deposits.news(held.deposits[0].deposit_id))
    failed = await pod.see(held)
    assert failed.state is State.FAILED
    assert failed.deposits[0].captured and failed.held_total == 0
    pod.deposits.gate.set()
    await refused("TRY_AGAIN_LATER", waiting)


async def test_a_capture_after_not_charged_is_voided_all_the_same(pod: Pod) -> None:
    await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded"))
    (failed,) = await pod.mine()
    deposit_id = failed.deposits[0].deposit_id
    pod.deposits.charged[deposit_id] = 2000
    await pod.on_deposit(failed, pod.deposits.news(deposit_id))
    after = await pod.see(failed)
    assert [one.kind for one in after.instructions] == [Kind.VOID]
    assert await pod.events(failed) == ["Failed"]
    assert after.deposits[0].state is DepositState.VOIDING


async def test_too_little_time_is_refused_before_anything_is_begun(pod: Pod) -> None:
    with_time_left(0.3)
    await refused("DEADLINE_TOO_SHORT", pod.reserve())
    assert await pod.mine() == []
    assert pod.deposits.asked == []


async def test_where_our_own_work_used_up_the_time_deposit_is_neither_asked_nor_blamed(pod: Pod) -> None:
    pod.ctx = replace(pod.ctx, limits=replace(pod.ctx.limits, least=0.16))
    for _ in range(3):
        with_time_left(0.22)  # more than `least`, and too little for a charge
        await refused("TRY_AGAIN_LATER", pod.reserve())
    assert pod.deposits.asked == []
    assert pod.admission.state is BreakerState.CLOSED
    assert await pod.sold() == 0


async def test_the_charge_gets_the_smaller_of_our_time_and_the_callers(pod: Pod) -> None:
    await pod.reserve()
    with_time_left(2)
    await pod.reserve()
    with_time_left(30)
    await pod.reserve()
    first, second, third = pod.deposits.timeouts
    assert first == third == 4
    assert 1 < second <= 1.85
