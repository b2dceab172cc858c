"""The restaurant's tables and guarded updates, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError

from dinemesh.kit.retention import Retention
from dinemesh.kit.store import Store, Transaction
from restaurant_svc import domain, persistence
from restaurant_svc.domain import OPEN_STATES, Booking, BookingFilter, BookingState, ReservationState, Slot
from tests.restaurant.fixtures import in_days, new_id, reservation
from tests.support.plans import enters, plans

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def a_booking(**changes: Any) -> Booking:
    heard = reservation(
        1, ReservationState.PENDING_ACCEPTANCE, reservation_id=new_id(), restaurant_id=new_id()
    )
    booking = domain.on_reservation(None, heard, datetime.now(UTC))
    assert booking is not None
    return replace(booking, **changes)


def test_the_migrations_make_the_tables_that_the_code_uses(fresh_database: Callable[[str], str]) -> None:
    engine = create_engine(fresh_database("restaurant_svc"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, persistence.metadata) == []
    engine.dispose()


async def test_a_booking_comes_back_as_it_was_stored(store: Store) -> None:
    for deadline in (NOW, None):
        booking = a_booking(terms=replace(a_booking().terms, accept_deadline=deadline))
        await store.write(partial(persistence.insert_booking, value=booking))
        key = booking.reservation_id
        assert await store.read(partial(persistence.booking, reservation_id=key)) == booking


async def test_a_booking_is_inserted_once(store: Store) -> None:
    booking = a_booking()
    assert await store.write(lambda tx: persistence.insert_booking(tx, booking))
    assert not await store.write(lambda tx: persistence.insert_booking(tx, booking))


@pytest.mark.parametrize("field", ["state", "version", "heard_version"])
async def test_a_booking_moves_only_from_where_it_was_seen(store: Store, field: str) -> None:
    booking = a_booking()
    declined = domain.decline(booking, 1, NOW)
    seen: dict[str, Any] = {"state": BookingState.RECEIVED, "version": 7, "heard_version": 0}
    stale = replace(booking, **{field: seen[field]})
    await store.write(lambda tx: persistence.insert_booking(tx, booking))
    assert not await store.write(lambda tx: persistence.move_booking(tx, stale, declined))
    assert await store.read(lambda tx: persistence.booking(tx, booking.reservation_id)) == booking
    assert await store.write(lambda tx: persistence.move_booking(tx, booking, declined))
    assert await store.read(lambda tx: persistence.booking(tx, booking.reservation_id)) == declined


async def test_each_slot_counts_its_own_changes_and_only_what_changed_is_returned(store: Store) -> None:
    key, day = new_id(), in_days(1)
    six, seven = (datetime.now(UTC).replace(microsecond=0) + timedelta(hours=n) for n in range(2))

    async def opened(*times: datetime, capacity: int) -> list[Slot]:
        return await store.write(lambda tx: persistence.set_capacity(tx, key, day, times, capacity))

    async def closed(*times: datetime) -> list[Slot]:
        return await store.write(lambda tx: persistence.close(tx, key, times))

    assert await opened(seven, six, capacity=20) == [Slot(six, 20, 1), Slot(seven, 20, 1)]
    assert await opened(six, capacity=20) == []
    assert await opened(six, seven, capacity=30) == [Slot(six, 30, 2), Slot(seven, 30, 2)]
    assert await closed(six, six + timedelta(minutes=7)) == [Slot(six, 0, 3)]
    assert await closed(six) == []
    assert await opened(six, seven, capacity=30) == [Slot(six, 30, 4)]
    standing = await store.read(lambda tx: persistence.standing(tx, key, [seven, six]))
    assert standing == [Slot(six, 30, 4), Slot(seven, 30, 2)]
    assert await store.read(lambda tx: persistence.standing(tx, new_id(), [six])) == []


BROKEN: dict[str, Callable[[Transaction], object]] = {
    "a withdrawn booking that is confirmed": lambda tx: persistence.insert_booking(
        tx, a_booking(state=BookingState.WITHDRAWN, confirmed=True)
    ),
    "an unknown state": lambda tx: persistence.insert_booking(tx, a_booking(state=_Unknown())),
    "a negative capacity": lambda tx: tx.execute(
        persistence.slots.insert().values(
            restaurant_id="r", dine_time=NOW, local_date=NOW.date(), capacity=-1, version=1
        )
    ),
    "a day without a version": lambda tx: tx.execute(
        persistence.slot_days.insert().values(restaurant_id="r", local_date=NOW.date(), version=0)
    ),
}


class _Unknown:
    value = "UNKNOWN"


@pytest.mark.parametrize("insert", BROKEN.values(), ids=BROKEN)
async def test_the_tables_refuse_what_must_not_be(
    store: Store, insert: Callable[[Transaction], object]
) -> None:
    with pytest.raises(IntegrityError):
        await store.write(insert)


PAGE = NOW, "x"
A_DAY = BookingFilter("r", start=NOW - timedelta(days=1), end=NOW + timedelta(days=1))
READS: dict[str, tuple[Callable[[Transaction], object], str, str, str]] = {
    "restaurants": (
        lambda tx: persistence.list_restaurants(tx, ("a", "b"), 5),
        "restaurants",
        "restaurants_by_name",
        "(name,restaurant_id)>",
    ),
    "bookings": (
        lambda tx: persistence.list_bookings(tx, BookingFilter("r"), PAGE, 5),
        "bookings",
        "bookings_by_time",
        "(dine_time,reservation_id)>",
    ),
    "bookings of a day": (
        lambda tx: persistence.list_bookings(tx, A_DAY, PAGE, 5),
        "bookings",
        "bookings_by_time",
        "(dine_time,reservation_id)>",
    ),
    "open bookings": (
        lambda tx: persistence.list_bookings(tx, BookingFilter("r", states=OPEN_STATES), PAGE, 5),
        "bookings",
        "bookings_by_state",
        "(dine_time,reservation_id)>",
    ),
    "bookings of a day in a rare state": (
        lambda tx: persistence.list_bookings(tx, replace(A_DAY, states=[BookingState.NO_SHOW]), PAGE, 5),
        "bookings",
        "bookings_by_state",
        "(dine_time,reservation_id)>",
    ),
    "changes": (
        lambda tx: persistence.bookings_changed(tx, "r", PAGE, 5),
        "bookings",
        "bookings_by_change",
        "(update_time,reservation_id)>",
    ),
}


@pytest.mark.parametrize("read", READS)
async def test_a_page_is_read_by_an_index_from_its_place_on(store: Store, read: str) -> None:
    """Whatever place and filter a client sends, no more is read than the page and what belongs to it."""
    query, table, index, place = READS[read]
    (plan,) = await plans(store, query)
    assert enters(plan, table, index, place), plan


async def test_a_made_up_place_before_the_filters_start_reads_from_the_start(store: Store) -> None:
    bookings = [a_booking(restaurant_id="r") for _ in range(3)]
    for number, one in enumerate(bookings):
        terms = replace(one.terms, dine_time=NOW + timedelta(hours=number))
        bookings[number] = replace(one, terms=terms)
        await store.write(partial(persistence.insert_booking, value=bookings[number]))
    which = BookingFilter("r", start=NOW + timedelta(hours=1))
    for after in (NOW - timedelta(days=9), "x"), (NOW, "x"), None:
        assert await store.read(lambda tx: persistence.list_bookings(tx, which, after, 9)) == bookings[1:]  # noqa: B023


async def test_a_request_to_make_a_restaurant_is_known_for_the_retention(store: Store) -> None:
    expiring = persistence.EXPIRING_REQUESTS
    for age_days, request_id in ((31, "old"), (29, "young")):
        request = persistence.CreateRequest("operator", request_id, "hash", new_id())
        await store.write(partial(persistence.remember_request, request=request))
        made = expiring.table.update().where(expiring.table.c.request_id == request_id)
        made = made.values(create_time=datetime.now(UTC) - timedelta(days=age_days))
        await store.write(lambda tx, row=made: tx.execute(row))  # type: ignore[misc]
    await Retention(store, persistence.retention, [expiring], days=30).turn()
    left = await store.read(lambda tx: list(tx.execute(select(expiring.table.c.request_id)).scalars()))
    assert left == ["young"]
