"""Each check goes red on what it is there for, and stays green on what is allowed."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dinemesh.kit.currency import text
from operations import snapshot, streams
from operations.audit import CHECKS, audit, judge, look
from operations.limits import Limits
from operations.report import Report
from operations.snapshot import Sources
from operations.streams import Database, Unreadable
from operations.text import indented
from tests.operations.world import PARTY, POLICY, PRICE, SERVICES, Kept, Record, World, micros
from tests.support.postgres import PostgresServer


def new() -> Kept:
    return Kept(str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has everything about one reservation, deposit, slot or event: a small world has several."""
    monkeypatch.setattr(streams, "PART", 1)


async def seen(world: World, limits: Limits | None = None) -> Report:
    return await look(world.sources, limits or Limits())


async def as_a_whole(world: World) -> Report:
    """The same, not in parts."""
    return judge(await snapshot.take(world.sources), world.sources, Limits())


async def test_a_world_in_order_is_in_order(world: World) -> None:
    report = await seen(world)
    assert report.clean, report
    assert report.pending == ()
    assert {finding.check: finding.looked_at for finding in report.findings} == {
        "ledger": "3 deposits; all entries sum to 0.00 EUR",
        "provider": f"3 charges of {text(3 * PRICE, 'EUR')} and 1 refunds of {text(PRICE, 'EUR')}",
        "captures": f"3 reservations; {text(PRICE, 'EUR')} held for them",
        "pending": "0 wait within their time",
        "seats": f"1 slots, {2 * PARTY} seats sold",
        "bookings": "3 bookings",
        "requests": "3 requests",
        "outbox": "9 events, 0 of them unsent",
        "inboxes": "12 events taken",
        "history": "9 entries",
    }
    assert report.skipped == ("dead letters",)


async def test_yen_and_euros_make_no_sum(world: World) -> None:
    deposit_id = str(uuid.uuid4())
    world.deposit(deposit_id, str(uuid.uuid4()), currency="JPY", amount_minor=4500, captured_minor=4500)
    world.charge(deposit_id, 4500, "JPY")
    world.post("CHARGE_CAPTURED", deposit_id, deposit_id, 4500, "JPY")
    # Together they would come to nothing.
    world.entry("CHARGE_CAPTURED", "x", world.confirmed.deposit_id, "PROVIDER_CLEARING", 7)
    world.entry("REFUND_SUCCEEDED", "y", deposit_id, "PROVIDER_CLEARING", -7, "JPY")
    report = await seen(world)
    told = {finding.check: finding.looked_at for finding in report.findings}
    assert told["ledger"] == "4 deposits; all entries sum to 0.07 EUR + -7 JPY"
    assert f"4 charges of {text(3 * PRICE, 'EUR')} + 4500 JPY" in told["provider"]
    assert f"{text(PRICE, 'EUR')} + 4500 JPY held" in told["captures"]
    wrong = {one.subject: one.what for one in report.violations if one.check == "ledger"}
    assert wrong["EUR"] == "the ledger sums to 0.07 EUR instead of zero"
    assert wrong["JPY"] == "the ledger sums to -7 JPY instead of zero"


# The ledger


def one_sided_entry(world: World) -> None:
    world.entry("CHARGE_CAPTURED", "x", world.confirmed.deposit_id, "PROVIDER_CLEARING", 1)


def deposit_and_ledger_differ(world: World) -> None:
    world.execute(
        "deposit", "UPDATE deposits SET refunded_minor = refunded_minor - 1 WHERE refunded_minor > 0"
    )


def refund_and_deposit_differ(world: World) -> None:
    world.execute("deposit", "UPDATE refunds SET amount_minor = amount_minor - 1")


def ledger_in_another_currency(world: World) -> None:
    """Than the deposit says of itself."""
    kept = new()
    world.deposit(kept.deposit_id, kept.reservation_id, currency="USD")
    world.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)


# The provider


def charged_in_another_currency(world: World) -> None:
    kept = new()
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)
    world.charge(kept.deposit_id, currency="USD")


def paid_back_in_another_currency(world: World) -> None:
    charge = next(charge for charge in world.provider.charges if charge.refunds)
    charge.refunds[0].amount.currency_code = "USD"


def charged_under_an_unknown_key(world: World) -> None:
    world.charge(str(uuid.uuid4()))


def captured_without_the_provider(world: World) -> None:
    kept = new()
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)


def charged_and_declined(world: World) -> None:
    kept = new()
    world.deposit(kept.deposit_id, kept.reservation_id, "DECLINED")
    world.charge(kept.deposit_id)


def refund_paid_twice(world: World) -> None:
    kept = new()
    world.charge(kept.deposit_id, 2 * PRICE)
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.refund_row(kept, "PENDING")
    world.pay_back(kept.return_id, kept.deposit_id)
    world.pay_back(f"{kept.return_id}/1", kept.deposit_id)


def refund_that_deposit_does_not_know(world: World) -> None:
    world.pay_back(str(uuid.uuid4()), world.confirmed.deposit_id, 100)


def refund_that_the_provider_does_not_know(world: World) -> None:
    kept = Kept("", world.confirmed.deposit_id, str(uuid.uuid4()))
    world.refund_row(kept, "SUCCEEDED", 100)
    world.post("REFUND_ORDERED", kept.return_id, kept.deposit_id, 100)
    world.post("REFUND_SUCCEEDED", kept.return_id, kept.deposit_id, 100)


# Captures


def captured_for_no_reservation(world: World) -> None:
    kept = new()
    world.deposit(kept.deposit_id, kept.reservation_id)


def captured_for_somebody_else(world: World) -> None:
    world.execute("deposit", "UPDATE deposits SET customer_id = 'bob' WHERE forfeited_minor = 0")


def held_for_a_cancelled_reservation(world: World) -> None:
    kept = new()
    world.reservation(kept.reservation_id, "CANCELLED", cancelled_by="CUSTOMER")
    world.line(kept.deposit_id, kept.reservation_id)
    world.deposit(kept.deposit_id, kept.reservation_id)


def refund_ordered_and_never_made(world: World) -> None:
    kept = new()
    world.reservation(kept.reservation_id, "CANCELLED", cancelled_by="CUSTOMER")
    world.line(kept.deposit_id, kept.reservation_id)
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.order("REFUND", kept, heard=False)


def void_ordered_and_never_made(world: World) -> None:
    kept = new()
    world.reservation(kept.reservation_id, "FAILED", failure="DEPOSIT_UNKNOWN")
    world.line(kept.deposit_id, kept.reservation_id, captured=False, state="VOIDING")
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.order("VOID", kept, 0, heard=False)


def captured_for_an_attempt_that_was_given_up(world: World) -> None:
    kept = new()
    world.reservation(kept.reservation_id, "FAILED", failure="DEPOSIT_OVERLOADED")
    world.line(kept.deposit_id, kept.reservation_id, captured=False, state="VOIDED")
    world.deposit(kept.deposit_id, kept.reservation_id)


def booked_without_a_deposit(world: World) -> None:
    kept = new()
    world.reservation(kept.reservation_id, "CONFIRMED")
    world.line(kept.deposit_id, kept.reservation_id)
    world.deposit(kept.deposit_id, kept.reservation_id, "DECLINED")


def booked_for_less_than_its_price(world: World) -> None:
    world.execute(
        "reservation",
        "UPDATE reservations SET price = price + 1 WHERE reservation_id = :id",
        id=world.confirmed.reservation_id,
    )


def booked_on_money_that_is_gone(world: World) -> None:
    world.execute(
        "deposit",
        "UPDATE deposits SET refunding_minor = 1 WHERE deposit_id = :id",
        id=world.confirmed.deposit_id,
    )


def refund_that_nobody_ordered(world: World) -> None:
    world.refund_row(Kept("", world.confirmed.deposit_id, str(uuid.uuid4())), "SUCCEEDED", 100)


def voided(world: World, minor: int, refund_id: str = "") -> Kept:
    """A deposit that reservation had voided after its capture, and a refund of it."""
    kept = new()
    kept = replace(kept, return_id=refund_id or str(uuid.uuid5(uuid.UUID(kept.deposit_id), "void")))
    world.reservation(kept.reservation_id, "FAILED", failure="DEPOSIT_UNKNOWN")
    world.line(kept.deposit_id, kept.reservation_id)
    world.deposit(kept.deposit_id, kept.reservation_id, void_ordered=True, refunded_minor=minor)
    world.charge(kept.deposit_id)
    world.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)
    world.refund_row(kept, "SUCCEEDED", minor)
    world.post("REFUND_ORDERED", kept.return_id, kept.deposit_id, minor)
    world.post("REFUND_SUCCEEDED", kept.return_id, kept.deposit_id, minor)
    world.pay_back(kept.return_id, kept.deposit_id, minor)
    return kept


def void_by_a_refund_of_another_id(world: World) -> None:
    world.order("VOID", voided(world, PRICE, str(uuid.uuid4())), 0)


def void_that_nobody_ordered(world: World) -> None:
    voided(world, PRICE)


def void_that_gave_back_too_much(world: World) -> None:
    kept = voided(world, PRICE)
    world.order("VOID", kept, 0)
    world.execute(
        "deposit",
        "UPDATE refunds SET amount_minor = amount_minor + 1 WHERE refund_id = :id",
        id=kept.return_id,
    )


def captured_in_another_currency(world: World) -> None:
    """Than the price of its reservation is in; ledger and provider have no part in this."""
    world.execute(
        "reservation",
        "UPDATE reservations SET policy = :policy WHERE state = 'CONFIRMED'",
        policy=POLICY.replace("EUR", "USD"),
    )


def forfeit_that_nobody_ordered(world: World) -> None:
    world.execute("reservation", "DELETE FROM instructions WHERE kind = 'FORFEIT'")


def forfeited_although_the_restaurant_cancelled(world: World) -> None:
    world.execute(
        "reservation",
        "UPDATE reservations SET state = 'CANCELLED', cancelled_by = 'RESTAURANT' WHERE reservation_id = :id",
        id=world.no_show.reservation_id,
    )


# What waits


def hold_that_never_ended(world: World) -> None:
    world.reservation(str(uuid.uuid4()), "PENDING_DEPOSIT")


def acceptance_that_never_ended(world: World) -> None:
    world.execute(
        "reservation",
        "UPDATE reservations SET state = 'PENDING_ACCEPTANCE', accept_deadline = :then"
        " WHERE state = 'CONFIRMED'",
        then=micros(world.then),
    )


def modification_that_never_ended(world: World) -> None:
    modify(world, micros(world.then))


def modify(world: World, hold_expire_time: int, *, asked: bool = True) -> str:
    """The id of a modification that is open."""
    kept = world.confirmed
    extra, modification_id = str(uuid.uuid4()), str(uuid.uuid4())
    world.line(extra, kept.reservation_id, captured=False, state="PENDING", position=1)
    world.insert(
        "reservation",
        "modifications",
        modification_id=modification_id,
        reservation_id=kept.reservation_id,
        deposit_id=extra,
        dine_time=micros(world.dine_time),
        party_size=PARTY + 2,
        state="OPEN",
        hold_expire_time=hold_expire_time,
    )
    if asked:
        world.request(kept.reservation_id, modification_id)
    return modification_id


def booking_that_never_ended(world: World) -> None:
    world.execute(
        "reservation",
        "UPDATE reservations SET due_time = :then WHERE state = 'CONFIRMED'",
        then=micros(world.then),
    )


CLOCKLESS = "UPDATE reservations SET due_time = NULL"


def booking_that_the_clock_forgot(world: World) -> None:
    world.execute("reservation", f"{CLOCKLESS} WHERE state = 'CONFIRMED'")


def guests_that_the_clock_forgot(world: World) -> None:
    world.execute("restaurant", "UPDATE bookings SET state = 'SEATED' WHERE state = 'ACCEPTED'")
    world.execute("reservation", "UPDATE reservations SET state = 'SEATED' WHERE state = 'CONFIRMED'")
    world.execute("reservation", f"{CLOCKLESS} WHERE state = 'SEATED'")


def hold_that_the_clock_forgot(world: World) -> None:
    later = micros(datetime.now(UTC) + timedelta(hours=1))
    world.reservation(str(uuid.uuid4()), "PENDING_DEPOSIT", hold_expire_time=later)
    world.execute("reservation", f"{CLOCKLESS} WHERE state = 'PENDING_DEPOSIT'")


def acceptance_that_the_clock_forgot(world: World) -> None:
    wait_for_acceptance(world, accept_deadline=None)


def booking_that_is_postponed_for_ever(world: World) -> None:
    eaten = datetime.now(UTC) - timedelta(days=2)
    move_the_meal(world, eaten)


def acceptance_beyond_its_meal(world: World) -> None:
    move_the_meal(world, datetime.now(UTC) - timedelta(hours=1))
    wait_for_acceptance(world, accept_deadline=world.end)


def move_the_meal(world: World, dine_time: datetime) -> None:
    """Of all reservations; the clock looks at those that are due as late as before."""
    for service, table in (
        ("reservation", "reservations"),
        ("reservation", "slots"),
        ("restaurant", "bookings"),
    ):
        world.execute(service, f"UPDATE {table} SET dine_time = :then", then=micros(dine_time))


def wait_for_acceptance(world: World, accept_deadline: int | None) -> None:
    change = "UPDATE bookings SET state = 'RECEIVED', confirmed = :no WHERE state = 'ACCEPTED'"
    world.execute("restaurant", change, no=False)
    change = "UPDATE reservations SET state = 'PENDING_ACCEPTANCE', accept_deadline = :until"
    world.execute("reservation", f"{change} WHERE state = 'CONFIRMED'", until=accept_deadline)


def order_that_waits_for_ever(world: World) -> None:
    kind = {"kind": "REFUND", "instruction_id": str(uuid.uuid4()), "deposit_id": str(uuid.uuid4())}
    world.insert("deposit", "instructions", **kind, amount_minor=100, currency="EUR", state="WAITING")


def charge_that_was_never_decided(world: World) -> None:
    world.deposit(str(uuid.uuid4()), "r", "PENDING")


def void_that_was_never_decided(world: World) -> None:
    world.deposit(str(uuid.uuid4()), "r", "VOIDING")


def refund_that_was_never_decided(world: World) -> None:
    world.refund_row(Kept("", world.confirmed.deposit_id, str(uuid.uuid4())), "PENDING", 100)


# Seats and bookings


def seat_sold_to_nobody(world: World) -> None:
    world.execute("reservation", "UPDATE slots SET sold = sold + 1")


def seat_sold_twice(world: World) -> None:
    world.execute("reservation", "UPDATE slots SET sold = sold - 1")


def seats_of_a_modification_not_held(world: World) -> None:
    modify(world, micros(datetime.now(UTC) + timedelta(minutes=1)))


def no_such_slot(world: World) -> None:
    world.execute("reservation", "DELETE FROM slots")


def booking_withdrawn(world: World) -> None:
    change = "UPDATE bookings SET state = 'WITHDRAWN', confirmed = :no WHERE state = 'ACCEPTED'"
    world.execute("restaurant", change, no=False)


def booking_not_withdrawn(world: World) -> None:
    world.execute("restaurant", "UPDATE bookings SET state = 'ACCEPTED' WHERE state = 'WITHDRAWN'")


def booking_not_confirmed(world: World) -> None:
    world.execute("restaurant", "UPDATE bookings SET confirmed = :no WHERE state = 'ACCEPTED'", no=False)


def booking_of_old_terms(world: World) -> None:
    world.execute("restaurant", "UPDATE bookings SET party_size = 2 WHERE state = 'ACCEPTED'")


def booking_never_made(world: World) -> None:
    world.execute("restaurant", "DELETE FROM bookings WHERE state = 'ACCEPTED'")


def booking_of_nobody(world: World) -> None:
    world.booking(str(uuid.uuid4()), "ACCEPTED")


# Requests


def request_for_no_reservation(world: World) -> None:
    world.request(str(uuid.uuid4()))


def request_of_somebody_else(world: World) -> None:
    world.request(world.confirmed.reservation_id, customer_id="bob")


def request_for_no_modification(world: World) -> None:
    world.request(world.confirmed.reservation_id, str(uuid.uuid4()))


def reserved_twice_by_one_request(world: World) -> None:
    """The row of a request id points at one attempt; this is another one."""
    kept = new()
    world.reservation(kept.reservation_id, "CONFIRMED", asked=False)


def modified_twice_by_one_request(world: World) -> None:
    modify(world, micros(world.then), asked=False)


# Events


def event_never_sent(world: World) -> None:
    world.event("deposit", sent=False)


def event_never_taken(world: World) -> None:
    world.event("reservation", heard=False)


def event_not_in_the_timeline(world: World) -> None:
    world.event("restaurant", told=False)


def entry_of_no_event(world: World) -> None:
    world.tell(str(uuid.uuid4()), "reservation")


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("ledger", one_sided_entry),
        ("ledger", deposit_and_ledger_differ),
        ("ledger", refund_and_deposit_differ),
        ("ledger", ledger_in_another_currency),
        ("provider", charged_under_an_unknown_key),
        ("provider", captured_without_the_provider),
        ("provider", charged_and_declined),
        ("provider", refund_paid_twice),
        ("provider", refund_that_deposit_does_not_know),
        ("provider", refund_that_the_provider_does_not_know),
        ("provider", charged_in_another_currency),
        ("provider", paid_back_in_another_currency),
        ("captures", captured_for_no_reservation),
        ("captures", captured_for_somebody_else),
        ("captures", held_for_a_cancelled_reservation),
        ("captures", refund_ordered_and_never_made),
        ("captures", void_ordered_and_never_made),
        ("captures", captured_for_an_attempt_that_was_given_up),
        ("captures", booked_without_a_deposit),
        ("captures", booked_for_less_than_its_price),
        ("captures", booked_on_money_that_is_gone),
        ("captures", refund_that_nobody_ordered),
        ("captures", void_by_a_refund_of_another_id),
        ("captures", void_that_nobody_ordered),
        ("captures", void_that_gave_back_too_much),
        ("captures", captured_in_another_currency),
        ("captures", forfeit_that_nobody_ordered),
        ("captures", forfeited_although_the_restaurant_cancelled),
        ("pending", hold_that_never_ended),
        ("pending", acceptance_that_never_ended),
        ("pending", modification_that_never_ended),
        ("pending", booking_that_never_ended),
        ("pending", booking_that_the_clock_forgot),
        ("pending", guests_that_the_clock_forgot),
        ("pending", hold_that_the_clock_forgot),
        ("pending", acceptance_that_the_clock_forgot),
        ("pending", booking_that_is_postponed_for_ever),
        ("pending", acceptance_beyond_its_meal),
        ("pending", order_that_waits_for_ever),
        ("pending", charge_that_was_never_decided),
        ("pending", void_that_was_never_decided),
        ("pending", refund_that_was_never_decided),
        ("seats", seat_sold_to_nobody),
        ("seats", seat_sold_twice),
        ("seats", seats_of_a_modification_not_held),
        ("seats", no_such_slot),
        ("bookings", booking_withdrawn),
        ("bookings", booking_not_withdrawn),
        ("bookings", booking_not_confirmed),
        ("bookings", booking_of_old_terms),
        ("bookings", booking_never_made),
        ("bookings", booking_of_nobody),
        ("requests", request_for_no_reservation),
        ("requests", request_of_somebody_else),
        ("requests", request_for_no_modification),
        ("requests", reserved_twice_by_one_request),
        ("requests", modified_twice_by_one_request),
        ("outbox", event_never_sent),
        ("inboxes", event_never_taken),
        ("history", event_not_in_the_timeline),
        ("history", entry_of_no_event),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_a_check_sees_the_damage(world: World, check: str, damage: Callable[[World], None]) -> None:
    damage(world)
    report = await seen(world)
    assert check in {violation.check for violation in report.violations}, report
    assert set(report.violations) == set((await as_a_whole(world)).violations)
    for violation in report.violations:
        assert violation.what and violation.remedy and violation.subject in str(report)


# What is allowed is listed, and is not a violation.


async def pending(world: World) -> list[str]:
    report = await seen(world)
    assert report.clean, report
    return [one.state for one in report.pending]


async def test_a_refused_refund_is_listed_for_the_operator(world: World) -> None:
    kept = world.refuse_refund()
    report = await seen(world)
    assert report.clean, report
    (listed,) = report.pending
    assert (listed.state, listed.subject) == ("REFUND FAILED", kept.return_id)
    assert f"make retry-refund DEPOSIT={kept.deposit_id}" in listed.remedy
    assert listed.remedy in str(report)


async def test_a_payment_under_way_is_listed(world: World) -> None:
    kept = new()
    soon, now = datetime.now(UTC) + timedelta(minutes=1), micros(datetime.now(UTC))
    world.reservation(kept.reservation_id, "PENDING_DEPOSIT", hold_expire_time=micros(soon))
    world.line(kept.deposit_id, kept.reservation_id, captured=False, state="PENDING")
    world.deposit(kept.deposit_id, kept.reservation_id, "PENDING", update_time=now)
    world.charge(kept.deposit_id)
    world.execute("reservation", "UPDATE slots SET sold = sold + :seats", seats=PARTY)
    assert await pending(world) == ["PENDING_DEPOSIT", "DEPOSIT PENDING"]


async def test_a_capture_that_the_reservation_waits_for_is_listed(world: World) -> None:
    kept = new()
    soon = micros(datetime.now(UTC) + timedelta(minutes=1))
    world.reservation(kept.reservation_id, "PENDING_DEPOSIT", hold_expire_time=soon)
    world.line(kept.deposit_id, kept.reservation_id, captured=False, state="PENDING")
    world.deposit(kept.deposit_id, kept.reservation_id)
    world.charge(kept.deposit_id)
    world.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)
    world.execute("reservation", "UPDATE slots SET sold = sold + :seats", seats=PARTY)
    assert await pending(world) == ["CHARGED", "PENDING_DEPOSIT"]


async def test_an_order_on_its_way_is_listed_until_its_time_is_over(world: World) -> None:
    now = micros(datetime.now(UTC))
    refund_ordered_and_never_made(world)
    world.execute("reservation", "UPDATE reservations SET update_time = :now", now=now)
    report = await seen(world)
    assert "ORDERED" in {one.state for one in report.pending}
    assert "captures" not in {violation.check for violation in report.violations}


async def test_an_open_modification_holds_its_extra_seats(world: World) -> None:
    modify(world, micros(datetime.now(UTC) + timedelta(minutes=1)))
    world.execute("reservation", "UPDATE slots SET sold = sold + 2")
    assert await pending(world) == ["MODIFYING"]


async def test_a_capacity_cut_below_what_is_sold_is_listed(world: World) -> None:
    world.execute("reservation", "UPDATE slots SET capacity = 1")
    assert await pending(world) == ["OVER CAPACITY"]


async def test_an_event_that_was_just_written_is_on_its_way(world: World) -> None:
    world.event("deposit", sent=False, told=False, at=datetime.now(UTC))
    assert await pending(world) == []


async def test_what_a_guest_publishes_is_no_business_of_the_audit(world: World) -> None:
    world.tell(str(uuid.uuid4()), "marketing")
    assert await pending(world) == []


async def test_what_staff_marked_while_a_cancel_was_on_its_way_is_no_contradiction(world: World) -> None:
    world.execute("restaurant", "UPDATE bookings SET state = 'NO_SHOW' WHERE state = 'WITHDRAWN'")
    assert await pending(world) == []


async def test_a_void_gives_back_what_is_held_and_is_no_contradiction(world: World) -> None:
    world.order("VOID", voided(world, PRICE), 0)
    assert await pending(world) == []


# What is older than the retention is off the record.


def pruned(table: str) -> Callable[[World, datetime], None]:
    """An event of that time, and its row is gone from there."""

    def prune(world: World, at: datetime) -> None:
        event_id = world.event("reservation", at=at)
        service = "reservation" if table == "outbox" else "restaurant"
        world.execute(service, f"DELETE FROM {table} WHERE event_id = :id", id=event_id)

    return prune


def request_pruned(world: World, at: datetime) -> None:
    """Of a reservation that came to its end at that time."""
    world.execute("reservation", "UPDATE reservations SET update_time = :at", at=micros(at))
    ended = world.cancelled.reservation_id
    world.execute("reservation", "DELETE FROM requests WHERE reservation_id = :id", id=ended)


FORGOTTEN = [
    ("history", pruned("outbox")),
    ("inboxes", pruned("inbox")),
    ("requests", request_pruned),
]


@pytest.mark.parametrize(("check", "prune"), FORGOTTEN, ids=[check for check, _ in FORGOTTEN])
async def test_a_record_is_missed_only_for_the_retention(
    world: World, check: str, prune: Callable[[World, datetime], None]
) -> None:
    days = Limits().retention
    prune(world, datetime.now(UTC) - days)
    assert (await seen(world)).clean
    longer = await seen(world, Limits(retention=days + timedelta(days=1)))
    assert {violation.check for violation in longer.violations} == {check}


async def test_the_request_of_a_reservation_that_can_change_is_missed_for_ever(world: World) -> None:
    request_pruned(world, datetime.now(UTC) - timedelta(days=300))
    alive = world.confirmed.reservation_id
    world.execute("reservation", "DELETE FROM requests WHERE reservation_id = :id", id=alive)
    (violation,) = (await seen(world)).violations
    assert violation.key == ("requests", alive)


async def test_an_event_that_was_never_sent_is_stuck_however_old_it_is(world: World) -> None:
    world.event("deposit", sent=False, at=datetime.now(UTC) - timedelta(days=300))
    assert {violation.check for violation in (await seen(world)).violations} == {"outbox"}


async def test_an_event_whose_effect_is_there_has_been_taken(world: World) -> None:
    """Whoever has taken a newer version of an aggregate has all that an older one said; not so of slots."""
    first = world.event("restaurant", heard=False)
    world.insert(
        "reservation",
        "inbox_versions",
        subscriber="reservation.restaurants",
        aggregate="restaurant/a",
        version=7,
    )
    assert (await seen(world)).clean
    change = "UPDATE outbox SET aggregate_version = 8 WHERE event_id = :id"
    world.execute("restaurant", change, id=first)
    assert not (await seen(world)).clean
    change = "UPDATE outbox SET aggregate_version = 7, routing_key = :key WHERE event_id = :id"
    world.execute("restaurant", change, id=first, key="restaurant.v1.slots_changed")
    (violation,) = (await seen(world)).violations
    assert violation.key == ("inboxes", "reservation.restaurants")


@pytest.mark.parametrize("state", ["SEATED", "COMPLETED"])
async def test_guests_at_a_table_that_was_cancelled_meanwhile_are_noted(world: World, state: str) -> None:
    """A race that is allowed, but nobody else tells the restaurant."""
    world.execute("restaurant", f"UPDATE bookings SET state = '{state}' WHERE state = 'WITHDRAWN'")
    report = await seen(world)
    assert report.clean and report.pending == (), report
    (noted,) = report.noted
    assert noted.subject == world.cancelled.reservation_id
    assert noted.remedy and noted.subject in str(report)


# How it looks


async def test_a_mesh_that_goes_on_while_it_is_read_is_not_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two databases that are read, each service writes an event, and history takes it."""
    read = snapshot._open
    written: list[str] = []

    def busy(url: str, service: str) -> Database:
        written.extend(world.event(name, at=datetime.now(UTC)) for name in ("reservation", "deposit"))
        return read(url, service)

    monkeypatch.setattr(snapshot, "_open", busy)
    report = await audit(world.sources, patience_seconds=0)
    assert report.clean, report
    assert len(written) >= 2 * len(SERVICES)


async def test_only_what_is_wrong_twice_is_reported(world: World) -> None:
    seat_sold_to_nobody(world)
    booking_of_old_terms(world)

    async def repair() -> None:
        await asyncio.sleep(0.2)
        world.execute("reservation", "UPDATE slots SET sold = sold - 1")

    once = await seen(world)
    assert {violation.check for violation in once.violations} == {"seats", "bookings"}
    report, _ = await asyncio.gather(audit(world.sources, patience_seconds=1), repair())
    assert {violation.check for violation in report.violations} == {"bookings"}


async def test_of_very_many_that_are_wrong_some_are_kept_and_all_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.checks.check.MOST_KEPT", 3)
    for _ in range(5):
        booking_of_nobody(world)
    report = await audit(world.sources, patience_seconds=0)
    assert [violation.check for violation in report.violations] == ["bookings"] * 3
    assert re.search(r"^bookings +5 WRONG ", str(report), re.MULTILINE)
    assert str(report).endswith("audit: 5 wrong, 2 of them not shown")


def test_a_command_is_never_broken_into_two_lines() -> None:
    command = "make stop SERVICE=reservation"
    for words in range(1, 60):
        assert any(command in line for line in indented(f"{'a ' * words}{command}, then more", "  do: "))


async def test_an_audit_changes_nothing(world: World) -> None:
    before = await snapshot.take(world.sources)
    await audit(world.sources, patience_seconds=0)
    after = await snapshot.take(world.sources)
    assert replace(after, now=before.now) == before


async def test_both_engines_show_the_same_picture(
    postgres: PostgresServer, sqlite_templates: Callable[[str], str], provider: Record
) -> None:
    worlds = [
        World({name: fresh(f"{name}_svc") for name in SERVICES}, provider)
        for fresh in (sqlite_templates, postgres.fresh)
    ]
    try:
        reports = []
        for world in worlds:
            mine = Sources(*(world.urls[name] for name in SERVICES))
            event_never_sent(world)
            seat_sold_to_nobody(world)
            reports.append(await look(mine, Limits()))
        sqlite, postgresql = reports
        assert [finding.looked_at for finding in sqlite.findings] == [
            finding.looked_at for finding in postgresql.findings
        ]
        assert {violation.check for violation in sqlite.violations} == {"outbox", "seats"}
        assert {violation.key for violation in sqlite.violations} == {
            violation.key for violation in postgresql.violations
        }
    finally:
        for world in worlds:
            world.close()


async def test_a_check_without_its_sources_is_named_and_left_out(world: World) -> None:
    report = await look(Sources(reservation_db=world.urls["reservation"]), Limits())
    assert [finding.check for finding in report.findings] == ["seats", "requests"]
    assert set(report.skipped) == {check.name for check in CHECKS} - {"seats", "requests"}
    assert "not looked at" in str(report)


@pytest.mark.parametrize(
    "sources",
    [
        Sources(reservation_db="sqlite:////nowhere/reservation.db"),
        Sources(deposit_db="postgresql+psycopg://user:secret@127.0.0.1:1/deposit"),
        Sources(provider="127.0.0.1:1"),
    ],
)
async def test_a_source_that_cannot_be_read_is_an_error_and_not_a_clean_report(sources: Sources) -> None:
    with pytest.raises(Unreadable) as unreadable:
        await audit(sources)
    assert "secret" not in str(unreadable.value)
