"""Reconciling under trouble: rows that fail, a seat counter that is wrong, a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, text, update

from operations import __main__ as operations
from operations import audit
from operations.backlog import CLOCK_HELD, BacklogItem, everything
from operations.checks.seats import Seats
from operations.limits import Limits
from operations.snapshot import Sources, take
from reservation_svc.domain import BookingState, DeclineCause, Kind, Reservation, State
from reservation_svc.persistence import seat_inventory, tables
from reservation_svc.usecases import reconcile as reconciling
from tests.reservation.conftest import DINNER, LATER, NOW, POLICY, RULES, OpenPod, Pod
from tests.reservation.refusals import refused

ALL = tables.reservations


def measured(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"dinemesh_{name}")


async def waiting(database_url: str, kind: str) -> list[BacklogItem]:
    """What `make pending` lists of a kind."""
    seen = await take(Sources(reservation_db=database_url))
    return [one for one in everything(seen, Limits()) if one.kind == kind]


async def bookings(pod: Pod, count: int, at: datetime = DINNER) -> list[Reservation]:
    return [await pod.reserve(1, customer=f"guest-{number}", at=at) for number in range(count)]


async def states(pod: Pod, *some: Reservation) -> set[State]:
    return {(await pod.see(one)).state for one in some}


# Rows that fail


async def test_rows_that_fail_wait_longer_each_time_and_hold_up_no_other(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setattr(reconciling, "BATCH", 2)
    *broken, well = await bookings(pod, 4)
    names = [one.reservation_id for one in broken]
    await spoil(pod, *names)
    pod.clock.pass_by(hours=1)
    await pod.reconcile()
    assert (await pod.see(well)).state is State.DECLINED
    assert measured("reconcile_failing_rows") == 3
    assert measured("settling_late_seconds") == 0, "nobody is to restart a part for them"
    for tries, pause in ((2, 1), (3, 2), (4, 4)):
        pod.clock.pass_by(seconds=pause)
        await pod.reconcile()
        assert await tries_of(pod, *names) == {tries}
        pod.clock.pass_by(seconds=pause * 2 - 0.5)  # the next look comes half a second later
        await pod.reconcile()
        assert await tries_of(pod, *names) == {tries}
        pod.clock.pass_by(seconds=-pause * 2 + 0.5)
    listed = await waiting(database_url, "FAILING")
    assert {one.subject for one in listed} == set(names)
    assert all("JSONDecodeError" in one.what and "SERVICE=reservation" in one.remedy for one in listed)

    await mend(pod)
    pod.clock.pass_by(minutes=5)
    await pod.reconcile()
    assert await states(pod, *broken) == {State.DECLINED}
    await pod.reconcile()
    assert measured("reconcile_failing_rows") == 0
    assert await waiting(database_url, "FAILING") == []


async def test_a_booking_that_nobody_can_read_is_listed_and_hides_no_other(
    pod: Pod, database_url: str
) -> None:
    unreadable, other = await bookings(pod, 2)
    await pod.hear_booking(unreadable, BookingState.ACCEPTED)
    await spoil(pod, unreadable.reservation_id)
    pod.clock.pass_by(days=30)
    await pod.reconcile()
    assert await states(pod, other) == {State.DECLINED}
    (listed,) = await waiting(database_url, "FAILING")
    assert listed.subject == unreadable.reservation_id
    assert (await audit.look(Sources(reservation_db=database_url), Limits())).clean
    await mend(pod)


async def test_one_that_failed_and_was_cancelled_meanwhile_is_forgotten(pod: Pod) -> None:
    (booked,) = await bookings(pod, 1)
    await spoil(pod, booked.reservation_id)
    pod.clock.pass_by(hours=1)
    await pod.reconcile()
    assert await tries_of(pod, booked.reservation_id) == {1}
    await mend(pod)
    await pod.cancel(booked)
    await pod.reconcile()
    assert await tries_of(pod, booked.reservation_id) == set()


async def spoil(pod: Pod, *names: str) -> None:
    """Somebody's hand: nobody can read their policy."""
    change = update(ALL).where(ALL.c.reservation_id.in_(names)).values(policy="{", note="spoilt")
    await pod.store.write(lambda tx: tx.execute(change))


async def mend(pod: Pod) -> None:
    change = update(ALL).values(policy=seat_inventory.policy_text(POLICY), note="")
    await pod.store.write(lambda tx: tx.execute(change))


async def tries_of(pod: Pod, *names: str) -> set[int]:
    found = select(tables.failures.c.tries).where(tables.failures.c.subject.in_(names))
    return set(await pod.store.read(lambda tx: tx.execute(found).scalars().all()))


# The seat counter


async def cancelled(pod: Pod, booked: Reservation) -> None:
    await pod.cancel(booked)


async def declined(pod: Pod, booked: Reservation) -> None:
    await pod.hear_booking(booked, BookingState.DECLINED)


async def expired(pod: Pod, booked: Reservation) -> None:
    pod.clock.pass_by(hours=1)
    await pod.reconcile()


async def made_smaller(pod: Pod, booked: Reservation) -> None:
    await pod.modify(booked, party=1)


async def moved_and_made_smaller(pod: Pod, booked: Reservation) -> None:
    await pod.modify(booked, party=1, at=LATER)


@pytest.mark.parametrize("end", [cancelled, declined, expired, made_smaller, moved_and_made_smaller])
async def test_money_goes_back_whatever_the_seat_counter_says_and_the_audit_mends_it(
    pod: Pod, end: Callable[[Pod, Reservation], Awaitable[None]], database_url: str
) -> None:
    other = await pod.reserve(1, customer="bob")
    booked = await pod.reserve(3)
    await set_sold(pod, 1)
    await end(pod, booked)
    after = await pod.see(booked)
    assert [one.kind for one in after.instructions] == [Kind.REFUND]
    assert await pod.sold() == 0
    stays = await pod.see(other)
    drift = stays.state is not State.DECLINED or after.seats.get(DINNER, 0) > 0
    # What the audit says, to the letter.
    found = await violations(database_url)
    assert len(found) == drift
    for one in found:
        (statement,) = re.findall(r"UPDATE slots .* dine_time = \d+", one)
        await pod.store.write(lambda tx, one=statement: tx.execute(text(one)))  # type: ignore[misc]
    assert await violations(database_url) == []


async def violations(database_url: str) -> list[str]:
    seen = await take(Sources(reservation_db=database_url))
    check = Seats(Limits())
    check.look(seen)
    return [one.remedy for one in check.finding().violations]


async def set_sold(pod: Pod, sold: int) -> None:
    change = update(tables.slots).where(tables.slots.c.dine_time == DINNER).values(sold=sold)
    await pod.store.write(lambda tx: tx.execute(change))


# The clock


@pytest.fixture
def small(pod: Pod) -> Pod:
    """Of a house in which more than two at once, and more than two of five, are many."""
    pod.ctx = replace(pod.ctx, rules=replace(RULES, lapse_floor=2, lapse_share=0.4))
    return pod


async def let_lapse(database_url: str) -> None:
    """What `make pending` says, to the letter."""
    (held,) = await waiting(database_url, CLOCK_HELD)
    (until,) = re.findall(r"make let-lapse UNTIL=(\S+)", held.remedy)
    words = ["let-lapse", f"--reservation-db={database_url}", f"--until={until}"]
    assert await asyncio.to_thread(operations.main, words) == 0


async def test_a_clock_that_jumps_ends_nothing_before_an_operator_says_so_and_each_jump_anew(
    small: Pod, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    placed = await bookings(small, 3)
    answered = await small.reserve(1)
    await small.reconcile()
    small.clock.pass_by(days=1)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await small.reconcile()
    assert await states(small, *placed, answered) == {State.PENDING_ACCEPTANCE}
    assert measured("lapses_held_reservations") == 4
    (line,) = [one.getMessage() for one in caplog.records if "let-lapse" in one.getMessage()]
    assert "4 of 4" in line
    # An answer is not late by a clock that nobody trusts; what is new has a time of its own.
    await small.hear_booking(answered, BookingState.ACCEPTED)
    assert (await small.see(answered)).state is State.CONFIRMED
    # So many that those held would be within the share: they were made by the wrong clock.
    new = await bookings(small, 8, LATER)
    await small.reconcile()
    assert await states(small, *placed) == {State.PENDING_ACCEPTANCE}

    await let_lapse(database_url)
    await small.reconcile()
    assert await states(small, *placed) == {State.DECLINED}
    assert measured("lapses_held_reservations") == 0
    assert await waiting(database_url, CLOCK_HELD) == []
    assert await states(small, *new) == {State.PENDING_ACCEPTANCE}

    small.clock.pass_by(days=1)
    await small.reconcile()
    assert await states(small, *new) == {State.PENDING_ACCEPTANCE}
    assert measured("lapses_held_reservations") == len(new)


async def test_a_clock_that_is_put_right_lets_all_go_on_and_its_next_jump_is_seen(
    small: Pod, database_url: str, open_pod: OpenPod
) -> None:
    placed = await bookings(small, 3)
    await small.reconcile()
    for _ in range(2):
        small.clock.pass_by(days=1)
        await small.reconcile()
        assert measured("lapses_held_reservations") == 3
        # A process that starts then has seen no jump.
        successor = open_pod()
        successor.ctx = replace(successor.ctx, rules=small.ctx.rules)
        await successor.reconcile()
        assert await states(small, *placed) == {State.PENDING_ACCEPTANCE}
        small.clock.set(NOW + timedelta(minutes=1))
        await small.reconcile()
        assert measured("lapses_held_reservations") == 0
        assert await waiting(database_url, CLOCK_HELD) == []
        await let_nothing_lapse(database_url)


async def let_nothing_lapse(database_url: str) -> None:
    """A word about a jump that is over, or about a time that nobody has seen, is good for nothing."""
    words = ["let-lapse", f"--reservation-db={database_url}", "--until=2031-01-01T00:00:00Z"]
    assert await asyncio.to_thread(operations.main, words) == 0


async def test_a_word_for_a_time_that_nobody_has_seen_is_refused(small: Pod, database_url: str) -> None:
    placed = await bookings(small, 3)
    small.clock.pass_by(days=1)
    await small.reconcile()
    words = ["let-lapse", f"--reservation-db={database_url}", "--until=2031-01-01T00:00:00Z"]
    assert await asyncio.to_thread(operations.main, words) == operations.EXIT_CANNOT
    await small.reconcile()
    assert await states(small, *placed) == {State.PENDING_ACCEPTANCE}


async def test_attempts_end_whatever_the_clock_did_since_their_money_must_not_wait(small: Pod) -> None:
    placed = await bookings(small, 3)
    small.deposits.gate.clear()
    small.deposits.arrived.clear()
    attempt = asyncio.ensure_future(small.reserve(1))
    await small.deposits.arrived.wait()
    await small.reconcile()
    small.clock.pass_by(days=1)
    await small.reconcile()
    assert await states(small, *placed) == {State.PENDING_ACCEPTANCE}
    (failed,) = await small.mine()
    assert failed.state is State.FAILED
    small.deposits.gate.set()
    await refused("TRY_AGAIN_LATER", attempt)


async def test_an_evening_that_ends_under_the_eyes_of_a_process_is_no_jump(small: Pod) -> None:
    placed = await bookings(small, 4)
    small.clock.pass_by(minutes=59)
    await small.reconcile()
    small.clock.pass_by(minutes=1)
    await small.reconcile()
    assert {(await small.see(one)).decline_cause for one in placed} == {DeclineCause.DEADLINE}


async def test_what_is_within_the_share_or_the_floor_ends_after_a_restart(
    small: Pod, open_pod: OpenPod
) -> None:
    early = await bookings(small, 2)
    small.clock.pass_by(minutes=30)
    await bookings(small, 8, LATER)
    small.clock.pass_by(minutes=31)
    successor = open_pod()
    successor.ctx = replace(successor.ctx, rules=replace(RULES, lapse_floor=1))
    await successor.reconcile()
    assert await states(small, *early) == {State.DECLINED}
