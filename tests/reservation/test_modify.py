"""Modify: same, cheaper and dearer; what fails leaves the old booking as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from reservation_svc.domain import (
    Acceptance,
    BookingState,
    Caller,
    DepositState,
    Failure,
    Kind,
    Policy,
    Reservation,
    State,
)
from reservation_svc.persistence import seat_inventory
from tests.reservation.conftest import (
    DINNER,
    LATER,
    POLICY,
    RESTAURANT,
    RULES,
    OpenPod,
    Pod,
    new_id,
    with_time_left,
)
from tests.reservation.races import HEAD_STARTS, race
from tests.reservation.refusals import refused


def orders(reservation: Reservation) -> list[tuple[Kind, int, int]]:
    """Instructions as (kind, number of the deposit, amount)."""
    ids = [line.deposit_id for line in reservation.deposits]
    return [(one.kind, ids.index(one.deposit_id), one.amount) for one in reservation.instructions]


async def test_another_time_at_the_same_price_swaps_the_seats_and_asks_again(pod: Pod) -> None:
    booked = await pod.book(4)
    moved = await pod.modify(booked, at=LATER, card="")
    assert (moved.state, moved.terms.revision, moved.terms.dine_time) == (State.PENDING_ACCEPTANCE, 2, LATER)
    assert orders(moved) == []
    assert (await pod.sold(DINNER), await pod.sold(LATER)) == (0, 4)
    assert await pod.events(booked) == ["Placed", "Confirmed", "Modified"]
    assert moved == await pod.see(moved)
    assert moved.etag != booked.etag


async def test_a_cheaper_modification_gives_the_difference_back_newest_deposit_first(pod: Pod) -> None:
    booked = await pod.book(3)
    dearer = await pod.modify(booked, party=5)
    assert [line.amount for line in dearer.deposits] == [3000, 2000]
    cheaper = await pod.modify(dearer, party=2)
    assert orders(cheaper) == [(Kind.REFUND, 1, 2000), (Kind.REFUND, 0, 1000)]
    assert cheaper.held_total == cheaper.terms.price == 2000
    assert [line.state for line in cheaper.deposits] == [DepositState.CAPTURED, DepositState.REFUNDING]
    assert await pod.sold() == 2


async def test_two_deposits_one_partly_refunded_then_cancelled_gives_back_exactly_what_was_held(
    pod: Pod,
) -> None:
    booked = await pod.book(3)
    dearer = await pod.modify(booked, party=6)
    cheaper = await pod.modify(dearer, party=4)
    assert orders(cheaper) == [(Kind.REFUND, 1, 2000)]
    cancelled = await pod.cancel(cheaper)
    assert (cancelled.refunded, cancelled.forfeited) == (4000, 0)
    assert orders(cancelled.reservation)[1:] == [(Kind.REFUND, 1, 1000), (Kind.REFUND, 0, 3000)]
    assert cancelled.reservation.held_total == 0
    assert len({one.instruction_id for one in cancelled.reservation.instructions}) == 3


async def test_a_dearer_modification_charges_the_difference_and_then_swaps(pod: Pod) -> None:
    booked = await pod.book(2)
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(booked, party=5, at=LATER))
    await pod.deposits.arrived.wait()
    meanwhile = await pod.see(booked)
    assert (meanwhile.state, meanwhile.terms, meanwhile.etag) == (State.CONFIRMED, booked.terms, booked.etag)
    assert (await pod.sold(DINNER), await pod.sold(LATER)) == (2, 5)
    said = await refused("MODIFICATION_IN_PROGRESS", pod.modify(booked, party=1))
    assert said.retry_after is not None
    pod.deposits.gate.set()
    modified = await waiting
    assert (modified.terms.party_size, modified.terms.price, modified.held_total) == (5, 5000, 5000)
    assert modified.modification is None
    assert (await pod.sold(DINNER), await pod.sold(LATER)) == (0, 5)
    assert [charge.amount for charge in pod.deposits.asked] == [2000, 3000]


async def test_a_dearer_modification_at_the_same_time_holds_only_the_extra_seats(pod: Pod) -> None:
    booked = await pod.book(6)
    await refused("SLOT_UNAVAILABLE", pod.modify(booked, party=11))
    modified = await pod.modify(booked, party=10)
    assert await pod.sold() == 10
    assert modified.terms.party_size == 10


@pytest.mark.parametrize(
    ("card", "reason", "failure", "events"),
    [
        ("tok_declined", "CARD_DECLINED", Failure.CARD_DECLINED, ["ModificationFailed"]),
        ("tok_overloaded", "TRY_AGAIN_LATER", Failure.DEPOSIT_OVERLOADED, []),
        ("tok_unknown", "TRY_AGAIN_LATER", Failure.DEPOSIT_UNKNOWN, ["ModificationFailed"]),
        ("tok_lostReply", "TRY_AGAIN_LATER", Failure.DEPOSIT_UNKNOWN, ["ModificationFailed"]),
    ],
)
async def test_a_failed_modification_leaves_the_booking_as_it_was(
    pod: Pod, card: str, reason: str, failure: Failure, events: list[str]
) -> None:
    booked, request_id = await pod.book(3), new_id()
    for _ in range(2):
        await refused(reason, pod.modify(booked, party=5, at=LATER, card=card, request_id=request_id))
    after = await pod.see(booked)
    assert (after.state, after.terms, after.etag, after.held_total) == (
        State.CONFIRMED,
        booked.terms,
        booked.etag,
        3000,
    )
    assert (await pod.sold(DINNER), await pod.sold(LATER)) == (3, 0)
    attempts = 1 if failure is Failure.CARD_DECLINED else 2
    assert len(pod.deposits.asked) == 1 + attempts
    assert await pod.events(booked) == ["Placed", "Confirmed", *events * attempts]
    voids = [number for kind, number, _ in orders(after) if kind is Kind.VOID]
    assert voids == ([1, 2] if failure is Failure.DEPOSIT_UNKNOWN else [])


async def test_a_modification_that_dies_after_the_charge_is_finished_by_the_event(pod: Pod) -> None:
    booked, request_id = await pod.book(2), new_id()
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(booked, party=5, request_id=request_id))
    await pod.deposits.arrived.wait()
    open_one = await pod.see(booked)
    await refused("REQUEST_IN_PROGRESS", pod.modify(booked, party=5, request_id=request_id))
    await pod.on_deposit(open_one, pod.deposits.news(open_one.deposits[1].deposit_id))
    assert (await pod.see(booked)).terms.party_size == 5
    assert (await pod.modify(booked, party=5, request_id=request_id)).terms.party_size == 5
    pod.deposits.gate.set()
    assert (await waiting).terms.party_size == 5
    assert await pod.events(booked) == ["Placed", "Confirmed", "Modified"]


async def test_a_modification_that_dies_and_is_not_heard_of_is_voided_and_the_old_booking_stands(
    pod: Pod,
) -> None:
    booked = await pod.book(2)
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(booked, party=5))
    await pod.deposits.arrived.wait()
    pod.clock.pass_by(seconds=11)
    await pod.reconcile()
    assert (await pod.see(booked)).modification is not None
    pod.clock.pass_by(minutes=3)
    await pod.reconcile()
    after = await pod.see(booked)
    assert (after.state, after.terms, after.held_total) == (State.CONFIRMED, booked.terms, 2000)
    assert orders(after) == [(Kind.VOID, 1, 0)]
    assert await pod.sold() == 2
    # The capture that comes now changes nothing any more.
    await pod.on_deposit(after, pod.deposits.news(after.deposits[1].deposit_id))
    pod.deposits.gate.set()
    await refused("TRY_AGAIN_LATER", waiting)
    late = await pod.see(booked)
    assert (late.held_total, orders(late)) == (2000, [(Kind.VOID, 1, 0)])


@pytest.mark.parametrize("first", ["the reply", "the event"])
async def test_a_modification_paid_too_late_for_an_answer_is_given_back(pod: Pod, first: str) -> None:
    generous = replace(RESTAURANT, policy=replace(RESTAURANT.policy, free_cancel_window_seconds=0))
    await pod.store.write(lambda tx: seat_inventory.keep_restaurant(tx, generous))
    booked, request_id = await pod.book(2, shown=generous.policy), new_id()
    deadline = DINNER - timedelta(seconds=generous.policy.acceptance_lead_seconds)
    pod.clock.set(deadline - timedelta(seconds=3))
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(booked, party=5, request_id=request_id))
    await pod.deposits.arrived.wait()
    pod.clock.set(deadline)
    opened = await pod.see(booked)
    if first == "the event":
        await pod.on_deposit(opened, pod.deposits.news(opened.deposits[1].deposit_id))
    pod.deposits.gate.set()
    await refused("TRY_AGAIN_LATER", waiting)
    await refused("MODIFICATION_CLOSED", pod.modify(booked, party=5, request_id=request_id))
    await pod.reconcile()
    after = await pod.see(booked)
    assert (after.state, after.terms, after.held_total) == (State.CONFIRMED, booked.terms, 2000)
    assert orders(after) == [(Kind.VOID, 1, 0)]
    assert await pod.events(booked) == ["Placed", "Confirmed", "ModificationFailed"]
    assert await pod.sold() == 2


async def test_cancel_wins_against_a_modification_being_paid(pod: Pod) -> None:
    booked = await pod.book(2)
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(booked, party=5, at=LATER))
    await pod.deposits.arrived.wait()
    cancelled = await pod.cancel(booked)
    assert (cancelled.refunded, cancelled.forfeited) == (2000, 0)
    assert sorted(orders(cancelled.reservation)) == [(Kind.REFUND, 0, 2000), (Kind.VOID, 1, 0)]
    pod.deposits.gate.set()
    answer = await waiting
    assert answer.state is State.CANCELLED
    assert (await pod.sold(DINNER), await pod.sold(LATER)) == (0, 0)


async def test_a_decline_closes_a_modification_being_paid(pod: Pod) -> None:
    placed = await pod.reserve(2)
    pod.deposits.gate.clear()
    pod.deposits.arrived.clear()
    waiting = asyncio.create_task(pod.modify(placed, party=5))
    await pod.deposits.arrived.wait()
    await pod.hear_booking(placed, BookingState.DECLINED)
    after = await pod.see(placed)
    assert sorted(orders(after)) == [(Kind.REFUND, 0, 2000), (Kind.VOID, 1, 0)]
    pod.deposits.gate.set()
    answered = await waiting
    assert (answered.state, orders(answered)) == (State.DECLINED, orders(after))


async def test_modify_against_cancel_only_ever_ends_cancelled(open_pod: OpenPod, pod: Pod) -> None:
    other = open_pod()
    winners = set()
    for head_start in HEAD_STARTS:
        booked = await pod.book(2)
        outcomes = await race(partial(pod.modify, booked, party=1), partial(other.cancel, booked), head_start)
        winners.add(isinstance(outcomes[0], Reservation))
        after = await pod.see(booked)
        assert (after.state, after.held_total) == (State.CANCELLED, 0)
    assert winners == {True, False}, "only one side ever came first: the race is void"


async def test_the_same_modification_twice_is_one(pod: Pod) -> None:
    booked, request_id = await pod.book(4), new_id()
    cheaper = await pod.modify(booked, party=2, request_id=request_id)
    assert await pod.modify(booked, party=2, request_id=request_id) == cheaper
    await refused("REQUEST_ID_REUSED", pod.modify(booked, party=3, request_id=request_id))
    dearer_id = new_id()
    dearer = await pod.modify(cheaper, party=6, request_id=dearer_id)
    assert await pod.modify(cheaper, party=6, request_id=dearer_id) == dearer
    assert dearer.terms.revision == 3
    assert [charge.amount for charge in pod.deposits.asked] == [4000, 4000]


async def one_too_many(pod: Pod, call: Awaitable[Reservation]) -> None:
    asked = len(pod.deposits.asked)
    said = await refused("TOO_MANY_MODIFICATIONS", call)
    assert (said.metadata["limit"], said.retry_after) == (str(RULES.priced_modifications), None)
    assert len(pod.deposits.asked) == asked, "nobody is charged for what is refused"


async def test_a_reservation_is_made_dearer_or_cheaper_so_often_and_no_more(pod: Pod) -> None:
    """A card that declines, and an answer that is lost, are no way round; a deposit that is busy is nobody's
    fault."""
    booked, declined_id, cheaper_id = await pod.book(4), new_id(), new_id()
    await refused("CARD_DECLINED", pod.modify(booked, party=6, card="tok_declined", request_id=declined_id))
    await refused("TRY_AGAIN_LATER", pod.modify(booked, party=6, card="tok_unknown"))
    await refused("TRY_AGAIN_LATER", pod.modify(booked, party=6, card="tok_overloaded"))
    cheaper = await pod.modify(booked, party=3, request_id=cheaper_id)
    left = RULES.priced_modifications - 3
    at_most = cheaper
    for n in range(left):
        assert at_most.priced_modifications == 3 + n
        at_most = await pod.modify(at_most, party=5 if n % 2 == 0 else 4)
    assert await pod.see(at_most) == at_most
    for party in (9, 1):
        await one_too_many(pod, pod.modify(at_most, party=party))
    # What does not touch the price goes on, and what was asked before is answered as before.
    moved = await pod.modify(at_most, at=LATER)
    noted = await pod.modify(moved, note="window")
    assert await pod.modify(booked, party=3, request_id=cheaper_id) == noted
    await refused("CARD_DECLINED", pod.modify(booked, party=6, card="tok_declined", request_id=declined_id))
    await refused("REQUEST_ID_REUSED", pod.modify(booked, party=2, request_id=cheaper_id))
    cancelled = await pod.cancel(noted)
    assert cancelled.refunded == noted.terms.price
    assert cancelled.reservation.held_total == 0


@pytest.mark.parametrize("end", [BookingState.DECLINED, BookingState.SEATED, BookingState.NO_SHOW])
async def test_a_booking_at_the_limit_ends_like_any_other(pod: Pod, end: BookingState) -> None:
    booked = await pod.book(2)
    for n in range(RULES.priced_modifications):
        booked = await pod.modify(booked, party=3 if n % 2 == 0 else 2)
    await pod.hear_booking(booked, end)
    after = await pod.see(booked)
    assert after.state.value == end.value
    assert after.held_total == 0


async def test_the_terms_are_changed_so_often_and_no_more_whatever_the_price(pod: Pod) -> None:
    booked = await pod.book(2)
    for n in range(RULES.changes_of_terms):
        booked = await pod.modify(booked, at=LATER if n % 2 == 0 else DINNER, card="")
    said = await refused("TOO_MANY_MODIFICATIONS", pod.modify(booked, at=LATER))
    assert said.metadata["limit"] == str(RULES.changes_of_terms)
    await refused("TOO_MANY_MODIFICATIONS", pod.modify(booked, party=1))
    assert (await pod.modify(booked, note="window")).note == "window"
    events = await pod.events(booked)
    assert events.count("Modified") == RULES.changes_of_terms
    assert (await pod.cancel(booked)).refunded == 2000


async def test_a_stale_etag_is_refused(pod: Pod) -> None:
    booked = await pod.book(4)
    cheaper = await pod.modify(booked, party=3)
    noted = await pod.modify(cheaper, note="window")
    for stale in (booked, cheaper):
        await refused("ETAG_MISMATCH", pod.modify(stale, party=2))
    assert (await pod.see(booked)).terms == cheaper.terms
    await pod.modify(noted, party=2)


async def test_an_acceptance_in_between_does_not_spoil_a_modification(pod: Pod) -> None:
    placed, request_id = await pod.reserve(2), new_id()
    await refused(
        "TRY_AGAIN_LATER", pod.modify(placed, party=4, card="tok_overloaded", request_id=request_id)
    )
    await pod.hear_booking(placed, BookingState.ACCEPTED)
    await refused(
        "TRY_AGAIN_LATER", pod.modify(placed, party=4, card="tok_overloaded", request_id=request_id)
    )
    assert (await pod.modify(placed, party=3)).terms.party_size == 3


async def test_what_cannot_be_modified_says_why(pod: Pod) -> None:
    booked, request_id = await pod.book(4), new_id()
    await refused("NOT_FOUND", pod.modify(booked, party=2, customer="mallory"))
    said = await refused("INVALID_ARGUMENT", pod.modify(booked, party=6, card=""))
    assert [one.field for one in said.violations] == ["payment_token"]
    said = await refused("INVALID_ARGUMENT", pod.modify(booked, party=13))
    assert [one.field for one in said.violations] == ["party_size"]
    said = await refused("INVALID_ARGUMENT", pod.modify(booked, at=DINNER + timedelta(minutes=1)))
    assert [one.field for one in said.violations] == ["dine_time"]
    await refused("RESTAURANT_CLOSED", pod.modify(booked, at=DINNER + timedelta(days=2)))
    await refused("SLOT_UNAVAILABLE", pod.modify(booked, at=DINNER + timedelta(minutes=30)))
    pod.clock.set(booked.free_cancel_time)
    await refused("MODIFICATION_CLOSED", pod.modify(booked, party=2, request_id=request_id))
    await pod.hear_booking(booked, BookingState.SEATED)
    await refused("RESERVATION_NOT_MODIFIABLE", pod.modify(booked, party=2, request_id=request_id))
    await pod.cancel(await pod.book(1, at=LATER), Caller(restaurant_id=RESTAURANT.restaurant_id))


async def test_too_little_time_stops_what_costs_more_and_nothing_else(pod: Pod) -> None:
    booked = await pod.book(4)
    with_time_left(0.3)
    await refused("DEADLINE_TOO_SHORT", pod.modify(booked, party=6))
    assert (await pod.modify(booked, party=2)).terms.party_size == 2


async def test_the_note_alone_changes_no_revision_and_is_told_nobody(pod: Pod) -> None:
    booked = await pod.book(2)
    noted = await pod.modify(booked, note="window")
    assert (noted.note, noted.terms, noted.state) == ("window", booked.terms, State.CONFIRMED)
    assert noted.etag != booked.etag
    assert await pod.modify(noted, note="window", party=2) == noted
    assert await pod.events(booked) == ["Placed", "Confirmed"]


async def test_an_acceptance_of_old_terms_has_no_effect(pod: Pod) -> None:
    placed = await pod.reserve(4)
    modified = await pod.modify(placed, party=2)
    await pod.hear_booking(placed, BookingState.ACCEPTED, revision=1)
    await pod.hear_booking(placed, BookingState.DECLINED, revision=1)
    assert (await pod.see(placed)).state is State.PENDING_ACCEPTANCE
    await pod.hear_booking(modified, BookingState.ACCEPTED)
    assert (await pod.see(placed)).state is State.CONFIRMED


async def test_a_modification_is_held_to_the_frozen_policy_in_everything(pod: Pod) -> None:
    """Price, lead, grid, largest party, window: what the restaurant says now was never shown for this one."""
    booked = await pod.book(2)
    now = Policy(
        deposit_per_person=9900,
        currency="EUR",
        free_cancel_window_seconds=30 * 86_400,
        acceptance=Acceptance.MANUAL,
        acceptance_limit_seconds=1,
        acceptance_lead_seconds=30 * 86_400,
        no_show_grace_seconds=0,
        slot_interval_seconds=7 * 3600,
        service_duration_seconds=60,
        max_party_size=1,
    )
    other = replace(RESTAURANT, policy=now)
    await pod.store.write(lambda tx: seat_inventory.keep_restaurant(tx, other))
    modified = await pod.modify(booked, party=3, at=LATER)
    assert modified.terms.price == 3000
    assert modified.policy == POLICY
    assert modified.free_cancel_time == LATER - timedelta(days=1)
    said = await refused("INVALID_ARGUMENT", pod.modify(modified, party=13))
    assert [one.field for one in said.violations] == ["party_size"]
    said = await refused("INVALID_ARGUMENT", pod.modify(modified, at=DINNER + timedelta(minutes=7)))
    assert "1800 seconds" in said.message
