"""The rules, without any I/O: deadlines, prices, what is held, and what each end gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, date, datetime, time, timedelta
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinemesh.kit.refusal import Refusal
from reservation_svc.domain import (
    FINAL,
    Acceptance,
    BookingSnapshot,
    BookingState,
    CancelledBy,
    Captured,
    Cause,
    Declined,
    DepositLine,
    DepositOutcome,
    DepositState,
    EventType,
    Kind,
    Move,
    NotCharged,
    Order,
    Policy,
    RequestedChange,
    Reservation,
    Restaurant,
    State,
    Unknown,
    Voided,
    hold_table,
)
from reservation_svc.messages import to_reservation
from tests.reservation.conftest import DINNER, LATER, NOW, POLICY, RESTAURANT, RULES, new_id

AUTO = replace(POLICY, acceptance=Acceptance.AUTO)
OTHER = Policy(2000, "USD", 3600, Acceptance.AUTO, 60, 0, 60, 900, 60, 11)


@pytest.mark.parametrize("field", [field.name for field in fields(Policy)])
def test_the_etag_of_a_policy_names_each_of_its_fields(field: str) -> None:
    changed = replace(POLICY, **{field: getattr(OTHER, field)})
    assert changed.etag != POLICY.etag
    assert replace(changed, **{field: getattr(POLICY, field)}).etag == POLICY.etag


def an_attempt(party: int = 2, now: datetime = NOW) -> Reservation:
    order = Order("alice", new_id(), RESTAURANT.restaurant_id, DINNER, party, POLICY.etag, "", "tok_visa")
    return hold_table(order, RESTAURANT, reservation_id=new_id(), deposit_id=new_id(), now=now, rules=RULES)


def done(move: Move | None) -> Reservation:
    assert move is not None
    return move.after


def placed(party: int = 2) -> Reservation:
    attempt = an_attempt(party)
    return done(attempt.conclude(attempt.deposits[0].deposit_id, Captured(), NOW, RULES))


def heard(reservation: Reservation, state: BookingState, now: datetime = NOW) -> Reservation:
    moves = reservation.on_booking(BookingSnapshot(state, reservation.terms.revision), now)
    return moves[-1].after if moves else reservation


def confirmed(party: int = 2) -> Reservation:
    return heard(placed(party), BookingState.ACCEPTED)


def amended(
    reservation: Reservation,
    party: int | None = None,
    at: datetime | None = None,
    outcome: DepositOutcome = Captured(),  # noqa: B008  a frozen value
    now: datetime = NOW,
) -> Reservation:
    """After a modification, its charge included."""
    deposit_id = new_id()
    move = reservation.amend(
        RequestedChange(at, party),
        etag=reservation.etag,
        restaurant=RESTAURANT,
        modification_id=new_id(),
        deposit_id=deposit_id,
        can_pay=True,
        now=now,
        rules=RULES,
    )
    if move is None:
        return reservation
    after = move.after
    return after if after.modification is None else done(after.conclude(deposit_id, outcome, now, RULES))


def test_the_deposit_is_the_policys_price_for_each_person() -> None:
    assert an_attempt(5).terms.price == 5000
    assert an_attempt(5).deposits[0].amount == 5000


def test_auto_has_until_a_lead_before_the_meal_and_a_person_the_earlier_of_that_and_the_limit() -> None:
    lead = DINNER - timedelta(minutes=10)
    assert AUTO.accept_deadline(DINNER, NOW) == lead
    assert POLICY.accept_deadline(DINNER, NOW) == NOW + timedelta(hours=1)
    assert POLICY.accept_deadline(DINNER, DINNER - timedelta(minutes=30)) == lead


def test_cancelling_is_free_until_the_window_before_the_meal() -> None:
    assert confirmed().free_cancel_time == DINNER - timedelta(days=1)


@pytest.mark.parametrize(
    ("local", "fits"),
    [
        (time(19), True),
        (time(19, 30), True),
        (time(19, 15), False),
        (time(0), True),
        (time(19, 0, 0, 1), False),
    ],
)
def test_the_grid_is_counted_from_local_midnight(local: time, fits: bool) -> None:
    assert POLICY.is_on_grid(local) is fits


def test_a_local_day_may_have_23_or_25_hours() -> None:
    berlin = Restaurant("r", "Europe/Berlin", POLICY)
    first, end = berlin.day_bounds(date(2030, 3, 31))
    assert (first, end - first) == (datetime(2030, 3, 30, 23, tzinfo=UTC), timedelta(hours=23))
    first, end = berlin.day_bounds(date(2030, 10, 27))
    assert end - first == timedelta(hours=25)


@pytest.mark.parametrize(
    ("outcome", "state", "kinds"),
    [
        (Captured(), State.PENDING_ACCEPTANCE, []),
        (Declined(), State.FAILED, []),
        (NotCharged(), State.FAILED, []),
        (Unknown(), State.FAILED, [Kind.VOID]),
        (Voided(), State.FAILED, [Kind.VOID]),
    ],
)
def test_each_outcome_of_the_charge_has_its_move(
    outcome: DepositOutcome, state: State, kinds: list[Kind]
) -> None:
    attempt = an_attempt()
    after = done(attempt.conclude(attempt.deposits[0].deposit_id, outcome, NOW, RULES))
    assert (after.state, [one.kind for one in after.instructions]) == (state, kinds)
    assert after.held_total == (2000 if state is State.PENDING_ACCEPTANCE else 0)
    assert bool(after.seats) == (state is State.PENDING_ACCEPTANCE)
    assert after.version == attempt.version + 1
    assert (
        after.conclude(attempt.deposits[0].deposit_id, outcome, NOW, RULES) in (None,)
        or outcome == Captured()
    )


def test_a_capture_after_the_hold_is_not_taken() -> None:
    attempt = an_attempt()
    late = attempt.hold_expire_time
    after = done(attempt.conclude(attempt.deposits[0].deposit_id, Captured(), late, RULES))
    assert (after.state, after.held_total) == (State.FAILED, 0)


def test_an_open_modification_holds_what_it_needs_besides_and_no_more() -> None:
    booked = confirmed(4)

    def opened(wish: RequestedChange) -> Reservation:
        return done(
            booked.amend(
                wish,
                etag=booked.etag,
                restaurant=RESTAURANT,
                modification_id=new_id(),
                deposit_id=new_id(),
                can_pay=True,
                now=NOW,
                rules=RULES,
            )
        )

    assert opened(RequestedChange(party_size=6)).seats == {DINNER: 6}
    assert opened(RequestedChange(LATER, 6)).seats == {DINNER: 4, LATER: 6}
    assert opened(RequestedChange(LATER, 3)).seats == {LATER: 3}


def test_what_is_asked_too_late_for_an_answer_cannot_be_modified() -> None:
    generous = replace(confirmed(), policy=replace(POLICY, free_cancel_window_seconds=0))
    with pytest.raises(Refusal) as caught:
        amended(generous, 1, now=DINNER - timedelta(minutes=5))
    assert caught.value.reason == "MODIFICATION_CLOSED"


@pytest.mark.parametrize("policy", [AUTO, POLICY], ids=["auto", "manual"])
def test_what_is_paid_too_late_for_an_answer_leaves_the_booking_as_it_was(policy: Policy) -> None:
    booked = replace(confirmed(), policy=replace(policy, free_cancel_window_seconds=0))
    deadline = DINNER - timedelta(seconds=policy.acceptance_lead_seconds)
    deposit_id = new_id()
    asked = booked.amend(
        RequestedChange(party_size=5),
        etag=booked.etag,
        restaurant=RESTAURANT,
        modification_id=new_id(),
        deposit_id=deposit_id,
        can_pay=True,
        now=deadline - timedelta(seconds=3),
        rules=RULES,
    )
    in_time, late = (
        done(asked).conclude(deposit_id, Captured(), at, RULES)
        for at in (deadline - timedelta(seconds=1), deadline)
    )
    assert done(in_time).state is State.PENDING_ACCEPTANCE
    after = done(late)
    assert (after.state, after.terms, after.seats) == (State.CONFIRMED, booked.terms, {DINNER: 2})
    assert late is not None and late.event is EventType.MODIFICATION_FAILED
    assert [(one.kind, one.deposit_id) for one in after.instructions] == [(Kind.VOID, deposit_id)]
    assert after.held_total == 2000


def test_instructions_have_the_same_ids_when_the_same_move_is_made_again() -> None:
    booked = confirmed()
    first, second = (
        done(booked.cancel(CancelledBy.CUSTOMER, NOW)),
        done(booked.cancel(CancelledBy.CUSTOMER, NOW)),
    )
    assert first.instructions == second.instructions


sizes = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([Captured(), Unknown(), Declined(), NotCharged()])),
    max_size=6,
)
ENDS = {
    "cancelled": lambda one: done(one.cancel(CancelledBy.CUSTOMER, NOW)),
    "cancelled late": lambda one: done(one.cancel(CancelledBy.CUSTOMER, DINNER)),
    "called off": lambda one: done(one.cancel(CancelledBy.RESTAURANT, DINNER)),
    "declined": lambda one: heard(one, BookingState.DECLINED),
    "seated": lambda one: heard(one, BookingState.SEATED),
    "no-show": lambda one: heard(one, BookingState.NO_SHOW),
    "completed": lambda one: heard(one, BookingState.COMPLETED),
    "unmarked": lambda one: done(one.lapse(DINNER + timedelta(days=3), RULES)),
}


@given(first=st.integers(1, 12), changes=sizes, end=st.sampled_from(sorted(ENDS)), accept=st.booleans())
def test_whatever_happens_the_price_is_held_until_the_end_and_nothing_after_it(
    first: int, changes: list[tuple[int, DepositOutcome]], end: str, accept: bool
) -> None:
    reservation = confirmed(first)
    for party, outcome in changes:
        reservation = amended(reservation, party, outcome=outcome)
        if accept:
            reservation = heard(reservation, BookingState.ACCEPTED)
        assert reservation.held_total == reservation.terms.price
        assert all(reservation.held[line.deposit_id] >= 0 for line in reservation.deposits)
    before = reservation.held_total
    after = ENDS[end](reservation)
    assert after.held_total == 0
    assert after.state in FINAL | {State.SEATED}
    given = [one for one in after.instructions if one not in reservation.instructions]
    assert sum(one.amount for one in given) == before, "exactly what was held, once"
    assert len({one.kind for one in given}) == 1
    assert len({one.instruction_id for one in after.instructions}) == len(after.instructions)
    assert all(one.amount > 0 or one.kind is Kind.VOID for one in after.instructions)


def test_what_has_ended_cannot_be_cancelled_and_says_how_it_ended() -> None:
    for state in (BookingState.SEATED, BookingState.NO_SHOW, BookingState.COMPLETED):
        with pytest.raises(Refusal) as caught:
            heard(confirmed(), state).cancel(CancelledBy.CUSTOMER, NOW)
        assert caught.value.reason == "RESERVATION_NOT_CANCELLABLE"
    with pytest.raises(Refusal):
        heard(placed(), BookingState.DECLINED).cancel(CancelledBy.RESTAURANT, NOW)


def test_what_is_turned_away_by_load_counts_for_nothing_and_leaves_no_end_of_deposits() -> None:
    booking = confirmed(2)
    for _ in range(RULES.deposit_lines - 1):
        booking = amended(booking, 3, outcome=NotCharged())
    assert (booking.priced_modifications, len(booking.deposits)) == (0, RULES.deposit_lines)
    with pytest.raises(Refusal) as caught:
        amended(booking, 3)
    assert caught.value.reason == "TOO_MANY_MODIFICATIONS"
    cheaper = amended(booking, 1)  # which leaves no deposit
    assert done(cheaper.cancel(CancelledBy.CUSTOMER, NOW)).ordered(Kind.REFUND, Cause.CANCELLED) == 1000


def test_what_is_held_is_counted_once_for_all_deposits() -> None:
    """A booking from before there was a limit can have thousands: to read, pay back or keep them takes no
    time that grows with their square."""

    def counted(lines: int) -> int:
        booking = replace(
            confirmed(), deposits=tuple(DepositLine(new_id(), 10, captured=True) for _ in range(lines))
        )
        orders = [
            booking._instruction(Kind.REFUND, line.deposit_id, 4, Cause.MODIFIED) for line in booking.deposits
        ]
        booking = replace(booking, instructions=tuple(orders))
        steps = 0

        def count(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            nonlocal steps
            steps += event == "line"
            return count

        sys.settrace(count)
        try:
            assert booking.held_total == 6 * lines
            cancelled = done(booking.cancel(CancelledBy.CUSTOMER, NOW))
            kept = done(booking.cancel(CancelledBy.CUSTOMER, DINNER))
            to_reservation(booking)
        finally:
            sys.settrace(None)
        assert cancelled.held_total == kept.held_total == 0
        assert {line.state for line in cancelled.deposits} == {DepositState.REFUNDING}
        assert {line.state for line in kept.deposits} == {DepositState.FORFEITED}
        return steps

    assert counted(400) < 5 * counted(100), "four times as many, and much more than four times the work"
