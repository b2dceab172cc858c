"""The migrated schema is the one that the code believes in, and it refuses what no code may write."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, text, update
from sqlalchemy.exc import IntegrityError

from dinemesh.kit import migrate
from reservation_svc.persistence import reservations, seat_inventory, tables
from tests.reservation.conftest import DINNER, Pod
from tests.support.plans import enters, plans
from tests.support.postgres import FreshDatabase


def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


async def test_a_page_is_read_by_an_index_from_its_place_on(pod: Pod) -> None:
    (plan,) = await plans(pod.store, lambda tx: reservations.page(tx, "alice", (DINNER, "x"), 5))
    assert enters(plan, "reservations", "reservations_of_customer", "(create_time,reservation_id)<"), plan
    (plan,) = await plans(pod.store, lambda tx: seat_inventory.open_slots(tx, "r", DINNER, DINNER, 5))
    assert enters(plan, "slots", "slots", "dine_time>"), plan


async def test_less_than_nothing_cannot_be_sold(pod: Pod) -> None:
    for values in ({"sold": -1}, {"capacity": -1}):
        with pytest.raises(IntegrityError):
            await pod.store.write(
                lambda tx, wrong=values: tx.execute(update(tables.slots).values(wrong))  # type: ignore[misc]
            )
    assert await pod.sold(DINNER) == 0


async def test_a_booking_without_a_deposit_cannot_be_written(pod: Pod) -> None:
    booked = await pod.book()
    for wrong in (
        {"price": 0},
        {"party_size": 0},
        {"state": "LOST"},
        {"state": "FAILED"},
        {"state": "CANCELLED"},
        {"state": "DECLINED"},
    ):
        with pytest.raises(IntegrityError):
            await pod.store.write(
                lambda tx, values=wrong: tx.execute(update(tables.reservations).values(values))  # type: ignore[misc]
            )
    assert await pod.see(booked) == booked


async def test_a_reservation_has_one_open_modification_at_most(pod: Pod) -> None:
    booked = await pod.book()
    row = {
        "reservation_id": booked.reservation_id,
        "dine_time": DINNER,
        "party_size": 3,
        "price": 3000,
        "revision": 2,
        "note": "",
        "deposit_id": booked.deposits[0].deposit_id,
        "attempt_deadline": DINNER,
        "hold_expire_time": DINNER,
        "state": "OPEN",
        "decline_code": "",
    }
    with pytest.raises(IntegrityError):
        await pod.store.write(
            lambda tx: tx.execute(
                insert(tables.modifications), [row | {"modification_id": "a"}, row | {"modification_id": "b"}]
            )
        )


def test_modifications_of_the_time_before_there_was_a_limit_are_counted_once(
    fresh_database: FreshDatabase,
) -> None:
    """Rows as the version before wrote them: two dearer ones, of which one was declined, and two cheaper
    ones, of which one went over two deposits; a booking whose time was moved; one that was never changed."""
    url = fresh_database("")
    command.upgrade(migrate._config(url, "reservation_svc"), "0001")
    engine = create_engine(url)
    with engine.begin() as connection:
        for name, revision, lines, refunds, applied in (
            ("changed", 4, 3, 3, 1),
            ("moved", 2, 1, 0, 0),
            ("untouched", 1, 1, 0, 0),
        ):
            connection.execute(text(_RESERVATION), {"id": name, "revision": revision})
            for n in range(lines):
                row = {"id": f"{name}-{n}", "of": name, "n": n}
                connection.execute(text(_DEPOSIT), row)
                if n:
                    state = "APPLIED" if n <= applied else "FAILED"
                    connection.execute(text(_MODIFICATION), row | {"state": state})
            for n in range(refunds):
                row = {"id": f"{name}/{n}", "of": name, "n": n, "deposit": f"{name}-0"}
                connection.execute(text(_REFUND), row)
    migrate.upgrade(url, "reservation_svc")
    with engine.connect() as connection:
        found = connection.execute(text("SELECT reservation_id, priced_modifications FROM reservations"))
        assert dict(found.all()) == {"changed": 4, "moved": 0, "untouched": 0}
    engine.dispose()


_RESERVATION = """
INSERT INTO reservations (reservation_id, customer_id, restaurant_id, state, dine_time, party_size, price,
    revision, note, policy, create_time, update_time, attempt_deadline, hold_expire_time, version,
    decline_code, instruction_count)
VALUES (:id, 'alice', 'r', 'CONFIRMED', 1, 2, 2000, :revision, '', '{}', 1, 1, 1, 1, 1, '', 0)
"""
_DEPOSIT = """
INSERT INTO deposits (deposit_id, reservation_id, position, amount, state, captured)
VALUES (:id, :of, :n, 1000, 'CAPTURED', true)
"""
_MODIFICATION = """
INSERT INTO modifications (modification_id, reservation_id, dine_time, party_size, price, revision, note,
    deposit_id, attempt_deadline, hold_expire_time, state, decline_code)
VALUES (:id, :of, 1, 3, 3000, 2, '', :id, 1, 1, :state, '')
"""
_REFUND = """
INSERT INTO instructions (instruction_id, reservation_id, position, kind, deposit_id, amount, cause)
VALUES (:id, :of, :n, 'REFUND', :deposit, 10, 'MODIFIED')
"""
