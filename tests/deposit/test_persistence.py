"""What the database itself refuses, and what is found again, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, delete, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from deposit_svc import domain, persistence
from deposit_svc.domain import Deposit, Money, Movement, MovementKind, State, Step
from dinemesh.kit.store import Store, Transaction
from tests.deposit.conftest import CUSTOMER, RESERVATION, Clock, Pod, an_order, euros, new_id
from tests.support.plans import enters, plans

LEASE = timedelta(seconds=15)


async def add(store: Store, deposit: Deposit) -> bool:
    return await store.write(lambda tx: persistence.add(tx, deposit, tx.now))


async def save(store: Store, before: Deposit, step: Step | None) -> bool:
    assert step is not None
    return await store.write(lambda tx: persistence.save(tx, before, step))


async def find(store: Store, deposit_id: str) -> Deposit | None:
    return await store.read(lambda tx: persistence.find(tx, deposit_id))


def test_the_migrations_make_the_schema_that_the_code_expects(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), persistence.metadata) == []
    engine.dispose()


async def test_a_page_is_read_by_an_index_from_its_place_on(store: Store, clock: Clock) -> None:
    place = clock.now, new_id()
    (plan,) = await plans(store, lambda tx: persistence.of_customer(tx, CUSTOMER, "", place, 5))
    assert enters(plan, "deposits", "deposits_of_customer", "(create_time,deposit_id)<"), plan
    (plan,) = await plans(store, lambda tx: persistence.of_customer(tx, CUSTOMER, RESERVATION, place, 5))
    assert enters(plan, "deposits", "deposits_of_", ""), plan


async def test_a_deposit_is_found_as_it_was_saved(store: Store, clock: Clock) -> None:
    deposit = an_order().intent(clock.now)
    assert await add(store, deposit)
    assert await find(store, deposit.deposit_id) == deposit
    changes: list[Callable[[Deposit], Step | None]] = [
        lambda one: one.capture(clock.now),
        lambda one: one.order_refund(new_id(), euros(5), clock.now),
        lambda one: one.forfeit(new_id(), euros(5), clock.now),
        lambda one: one.void(clock.now),
        lambda one: one.refund_succeeded(one.refunds[1].refund_id, 0, clock.now),
        lambda one: one.refund_refused(one.refunds[0].refund_id, 0, "refund_blocked", clock.now),
        lambda one: one.retry_refund(one.refunds[0].refund_id, clock.now),
    ]
    for change in changes:
        step = change(deposit)
        assert await save(store, deposit, step)
        assert step is not None
        deposit = step.deposit
        assert await find(store, deposit.deposit_id) == deposit
    assert await find(store, new_id()) is None


async def test_an_id_that_is_taken_is_not_taken_again(store: Store, clock: Clock) -> None:
    deposit = an_order().intent(clock.now)
    assert await add(store, deposit)
    assert not await add(store, replace(deposit, customer_id="mallory"))
    assert await find(store, deposit.deposit_id) == deposit


async def test_a_step_from_an_older_version_is_not_saved(store: Store, clock: Clock) -> None:
    deposit = an_order().intent(clock.now)
    await add(store, deposit)
    assert await save(store, deposit, deposit.void(clock.now))
    assert not await save(store, deposit, deposit.capture(clock.now))
    found = await find(store, deposit.deposit_id)
    assert found is not None
    assert found.state is State.VOIDING
    assert sum((await store.read(persistence.ledger_balances)).values()) == 0


REFUSED_ROWS: dict[str, dict[str, Any]] = {
    "more given back than captured": {"refunding_minor": 3001},
    "something kept that was never captured": {
        "state": "DECLINED",
        "captured_minor": 0,
        "forfeited_minor": 1,
    },
    "a negative part": {"refunded_minor": -1, "refunding_minor": 1},
    "captured without the amount": {"captured_minor": 2999},
    "captured money in another state": {"state": "VOIDED"},
    "an unknown state": {"state": "LOST"},
    "no amount": {"amount_minor": 0, "captured_minor": 0},
    "undecided and never looked at again": {"state": "VOIDING", "captured_minor": 0, "settle_time": None},
}


@pytest.mark.parametrize("wrong", REFUSED_ROWS.values(), ids=REFUSED_ROWS)
async def test_the_database_refuses_a_deposit_that_cannot_be(
    store: Store, clock: Clock, wrong: dict[str, Any]
) -> None:
    deposit = an_order().intent(clock.now)
    await add(store, deposit)
    await save(store, deposit, deposit.capture(clock.now))
    with pytest.raises(IntegrityError):
        await store.write(lambda tx: tx.changed(update(persistence.deposits).values(wrong)))


async def test_the_ledger_can_only_grow(pod: Pod) -> None:
    await pod.create()
    entries = persistence.ledger_entries
    statements = (update(entries).values(amount_minor=1), delete(entries))
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"):
            await pod.store.write(lambda tx, one=statement: tx.changed(one))  # type: ignore[misc]


async def test_a_movement_cannot_be_booked_twice(pod: Pod) -> None:
    deposit = await pod.create()
    again = Movement(MovementKind.CHARGE_CAPTURED, deposit.deposit_id, deposit.amount)
    with pytest.raises(IntegrityError):
        await pod.store.write(
            lambda tx: persistence.save(tx, deposit, Step(replace(deposit, version=9), (again,)))
        )


async def test_an_entry_on_the_wrong_side_or_account_is_refused(pod: Pod) -> None:
    await pod.create()
    rows = await pod.store.read(lambda tx: tx.execute(select(persistence.ledger_entries)).mappings().all())
    good = dict(rows[0]) | {"movement_id": "other"}
    del good["position"]

    def insert(row: dict[str, Any]) -> Callable[[Transaction], int]:
        return lambda tx: tx.changed(tx.insert(persistence.ledger_entries).values(row))

    for wrong in (
        {"amount_minor": -good["amount_minor"]},
        {"account": "FORFEITURE_INCOME"},
        {"amount_minor": 0},
        {"kind": "GIFT"},
    ):
        with pytest.raises(IntegrityError):
            await pod.store.write(insert(good | wrong))


async def test_an_instruction_is_recorded_once_and_taken_once(store: Store, clock: Clock) -> None:
    order = domain.RefundOrder(new_id(), new_id(), euros(1))
    assert await store.write(lambda tx: persistence.record(tx, order))
    assert not await store.write(lambda tx: persistence.record(tx, order))
    assert await store.write(lambda tx: persistence.take_waiting(tx, order))
    assert not await store.write(lambda tx: persistence.take_waiting(tx, order))


async def test_an_instruction_waits_until_its_charge_is_decided(store: Store, clock: Clock) -> None:
    deposit = an_order().intent(clock.now)
    await add(store, deposit)
    order = domain.ForfeitOrder(new_id(), deposit.deposit_id, euros(1))
    await store.write(lambda tx: persistence.record(tx, order))
    assert not await store.read(lambda tx: persistence.waiting(tx, 10))
    await save(store, deposit, deposit.capture(clock.now))
    assert [one for one, _ in await store.read(lambda tx: persistence.waiting(tx, 10))] == [order]


async def test_what_is_due_is_claimed_by_one_and_comes_back_after_the_lease(
    store: Store, clock: Clock
) -> None:
    deposit = an_order().intent(clock.now)
    await add(store, deposit)
    assert await store.read(persistence.is_due)
    assert len(await claim(store)) == 1
    assert await claim(store) == []
    assert not await store.read(persistence.is_due)
    clock.pass_by(15)
    (again,) = await claim(store)
    assert again.tries == 1
    await store.write(lambda tx: persistence.postpone(tx, again, timedelta(seconds=2)))
    assert await claim(store) == []
    clock.pass_by(2)
    assert len(await claim(store)) == 1
    # A clock that was ahead and was set back leaves nothing waiting for as long as it was ahead.
    clock.pass_by(-86_400)
    assert len(await claim(store)) == 1
    assert await claim(store) == []


async def test_of_what_is_due_the_oldest_are_claimed_and_each_refund_knows_its_currency(
    store: Store, clock: Clock
) -> None:
    amounts = [domain.Money(1000 + n, "JPY" if n % 2 else "EUR") for n in range(5)]
    for amount in amounts:
        deposit = an_order(amount=amount).intent(clock.now)
        await add(store, deposit)
        step = deposit.capture(clock.now)
        await save(store, deposit, step)
        assert step is not None
        ordered = step.deposit.order_refund(new_id(), deposit.amount, clock.now)
        await save(store, step.deposit, ordered)
        clock.pass_by(1)
    for expected in (amounts[:2], amounts[2:4], amounts[4:]):
        claimed = await store.write(lambda tx: persistence.claim_refunds(tx, 2, LEASE))
        assert {one.refund.amount for one in claimed} == set(expected)


async def claim(store: Store) -> list[persistence.OpenCharge]:
    return await store.write(lambda tx: persistence.claim_charges(tx, 10, LEASE))


async def test_a_postponed_thing_that_was_settled_meanwhile_stays_settled(store: Store, clock: Clock) -> None:
    deposit = an_order().intent(clock.now)
    await add(store, deposit)
    (due,) = await claim(store)
    await save(store, deposit, deposit.capture(clock.now))
    await store.write(lambda tx: persistence.postpone(tx, due, timedelta()))
    assert await claim(store) == []


async def test_a_list_is_paged_newest_first_without_gaps_or_repeats(store: Store, clock: Clock) -> None:
    ids = []
    for number in range(7):
        clock.pass_by(number % 2)  # some at the same moment
        deposit = an_order(amount=Money(100 + number, "EUR")).intent(clock.now)
        await add(store, deposit)
        ids.append((deposit.create_time, deposit.deposit_id))
    seen: list[tuple[Any, str]] = []
    before = None
    while page := await store.read(
        lambda tx, at=before: persistence.of_customer(tx, CUSTOMER, RESERVATION, at, 3)  # type: ignore[misc]
    ):
        seen += [(one.create_time, one.deposit_id) for one in page]
        before = seen[-1]
    assert seen == sorted(ids, reverse=True)
