"""The migrated schema is the one that the code believes in, and it refuses what no code may write."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, update
from sqlalchemy.exc import IntegrityError

from reservation_svc.persistence import allotment, reservations, tables
from tests.reservation.conftest import DINNER, Pod
from tests.support.plans import enters, plans


def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


async def test_a_page_is_read_by_an_index_from_its_place_on(pod: Pod) -> None:
    (plan,) = await plans(pod.store, lambda tx: reservations.page(tx, "alice", (DINNER, "x"), 5))
    assert enters(plan, "reservations", "reservations_of_customer", "(create_time,reservation_id)<"), plan
    (plan,) = await plans(pod.store, lambda tx: allotment.open_slots(tx, "r", DINNER, DINNER, 5))
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
