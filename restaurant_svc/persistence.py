"""The tables of the restaurant service and every statement on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Index,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    and_,
    bindparam,
    func,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from dinemesh.kit import keyset
from dinemesh.kit.inbox import inbox_tables
from dinemesh.kit.outbox import outbox_table
from dinemesh.kit.retention import Expiring, retention_table
from dinemesh.kit.store import Instant, Transaction, insert_once
from restaurant_svc.domain import (
    Acceptance,
    Booking,
    BookingFilter,
    BookingState,
    Policy,
    Restaurant,
    Slot,
    Terms,
)

metadata = MetaData()

# The same order on both engines: by code points, not by the locale of a PostgreSQL database.
_Name = Text().with_variant(Text(collation="C"), "postgresql")

restaurants = Table(
    "restaurants",
    metadata,
    Column("restaurant_id", Text, primary_key=True),
    Column("name", _Name, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("deposit_per_person", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("free_cancel_window_seconds", Integer, nullable=False),
    Column("acceptance", Text, nullable=False),
    Column("acceptance_limit_seconds", Integer, nullable=False),
    Column("acceptance_lead_seconds", Integer, nullable=False),
    Column("no_show_grace_seconds", Integer, nullable=False),
    Column("slot_interval_seconds", Integer, nullable=False),
    Column("service_duration_seconds", Integer, nullable=False),
    Column("max_party_size", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    CheckConstraint("deposit_per_person > 0", name="restaurants_deposit"),
    CheckConstraint("acceptance IN ('AUTO', 'MANUAL')", name="restaurants_acceptance"),
    CheckConstraint("slot_interval_seconds BETWEEN 1 AND 86400", name="restaurants_interval"),
    CheckConstraint("version >= 1", name="restaurants_version"),
    Index("restaurants_by_name", "name", "restaurant_id"),
)

# Which restaurant a request_id made, so that a repetition makes none.
create_requests = Table(
    "create_requests",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("restaurant_id", Text, nullable=False),
    Column("create_time", Instant, nullable=False),
)

# One row a local day that ever had slots; its version counts their changes, and holds the day while one is
# made.
slot_days = Table(
    "slot_days",
    metadata,
    Column("restaurant_id", Text, primary_key=True),
    Column("local_date", Date, primary_key=True),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("version >= 1", name="slot_days_version"),
)

slots = Table(
    "slots",
    metadata,
    Column("restaurant_id", Text, primary_key=True),
    Column("dine_time", Instant, primary_key=True),
    Column("local_date", Date, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("capacity >= 0", name="slots_capacity"),
    CheckConstraint("version >= 1", name="slots_version"),
    Index("slots_by_day", "restaurant_id", "local_date", "dine_time"),
)

_STATES = ", ".join(f"'{state}'" for state in BookingState)
bookings = Table(
    "bookings",
    metadata,
    Column("reservation_id", Text, primary_key=True),
    Column("restaurant_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("accepted_revision", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("dine_time", Instant, nullable=False),
    Column("party_size", Integer, nullable=False),
    Column("acceptance", Text, nullable=False),
    Column("accept_deadline", Instant),
    Column("no_show_grace_seconds", Integer, nullable=False),
    Column("service_seconds", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("heard_version", BigInteger, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    CheckConstraint(f"state IN ({_STATES})", name="bookings_state"),
    CheckConstraint(
        "NOT confirmed OR state IN ('ACCEPTED', 'SEATED', 'COMPLETED', 'NO_SHOW')", name="bookings_confirmed"
    ),
    CheckConstraint("version >= 1", name="bookings_version"),
    Index("bookings_by_time", "restaurant_id", "dine_time", "reservation_id"),
    Index("bookings_by_state", "restaurant_id", "state", "dine_time", "reservation_id"),
    Index("bookings_by_change", "restaurant_id", "update_time", "reservation_id"),
)

outbox = outbox_table(metadata)
inbox = inbox_tables(metadata)
retention = retention_table(metadata)


# A restaurant can be changed for ever: a repetition after the retention makes another one.
EXPIRING_REQUESTS = Expiring(
    "create_requests",
    create_requests,
    (create_requests.c.subject, create_requests.c.request_id),
    create_requests.c.create_time,
    in_order=False,
)


# --- restaurants


def restaurant(tx: Transaction, restaurant_id: str) -> Restaurant | None:
    """The restaurant with its present policy; None if the id is unknown."""
    row = tx.execute(select(restaurants).where(restaurants.c.restaurant_id == restaurant_id)).one_or_none()
    return None if row is None else _restaurant(row)


def list_restaurants(tx: Transaction, after: tuple[str, str] | None, limit: int) -> list[Restaurant]:
    """In order of (name, restaurant_id), beginning after a place in that order."""
    order = restaurants.c.name, restaurants.c.restaurant_id
    query = select(restaurants).order_by(*order).limit(limit)
    if after is not None:
        query = query.where(keyset.after(order, after))
    return [_restaurant(row) for row in tx.execute(query)]


def insert_restaurant(tx: Transaction, value: Restaurant) -> None:
    """Stores a restaurant under an id that was chosen just now, so that it cannot be taken."""
    tx.execute(restaurants.insert().values(restaurant_id=value.restaurant_id, **_restaurant_values(value)))


def update_restaurant(tx: Transaction, value: Restaurant, *, expected_version: int) -> bool:
    """False if somebody else was first."""
    unchanged = and_(
        restaurants.c.restaurant_id == value.restaurant_id, restaurants.c.version == expected_version
    )
    return tx.changed(update(restaurants).where(unchanged).values(**_restaurant_values(value))) == 1


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A request_id of a subject: the hash of the contents it was used with, and the restaurant it made."""

    subject: str
    request_id: str
    body_hash: str
    restaurant_id: str


def remember_request(tx: Transaction, request: CreateRequest) -> CreateRequest:
    """The request as it is remembered: the given one if its id is new, else the first one under that id."""
    row = {
        "subject": request.subject,
        "request_id": request.request_id,
        "body_hash": request.body_hash,
        "restaurant_id": request.restaurant_id,
        "create_time": tx.now,
    }
    if tx.changed(tx.insert(create_requests).values(row).on_conflict_do_nothing()) == 1:
        return request
    columns = create_requests.c
    first = tx.execute(
        select(columns.body_hash, columns.restaurant_id).where(
            columns.subject == request.subject, columns.request_id == request.request_id
        )
    ).one()
    return CreateRequest(request.subject, request.request_id, first.body_hash, first.restaurant_id)


def _restaurant(row: Row[Any]) -> Restaurant:
    return Restaurant(
        restaurant_id=row.restaurant_id,
        name=row.name,
        time_zone=row.time_zone,
        policy=Policy(
            deposit_per_person=row.deposit_per_person,
            currency=row.currency,
            free_cancel_window_seconds=row.free_cancel_window_seconds,
            acceptance=Acceptance(row.acceptance),
            acceptance_limit_seconds=row.acceptance_limit_seconds,
            acceptance_lead_seconds=row.acceptance_lead_seconds,
            no_show_grace_seconds=row.no_show_grace_seconds,
            slot_interval_seconds=row.slot_interval_seconds,
            service_duration_seconds=row.service_duration_seconds,
            max_party_size=row.max_party_size,
        ),
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _restaurant_values(value: Restaurant) -> dict[str, Any]:
    policy = value.policy
    return {
        "name": value.name,
        "time_zone": value.time_zone,
        "deposit_per_person": policy.deposit_per_person,
        "currency": policy.currency,
        "free_cancel_window_seconds": policy.free_cancel_window_seconds,
        "acceptance": policy.acceptance.value,
        "acceptance_limit_seconds": policy.acceptance_limit_seconds,
        "acceptance_lead_seconds": policy.acceptance_lead_seconds,
        "no_show_grace_seconds": policy.no_show_grace_seconds,
        "slot_interval_seconds": policy.slot_interval_seconds,
        "service_duration_seconds": policy.service_duration_seconds,
        "max_party_size": policy.max_party_size,
        "version": value.version,
        "create_time": value.create_time,
        "update_time": value.update_time,
    }


# --- slots


# Built once: to build one costs the processor more than to run it.
_OF_RESTAURANT = slots.c.restaurant_id == bindparam("at_restaurant")
_NAMED = slots.c.dine_time.in_(bindparam("named", type_=Instant, expanding=True))
_RETURNED = slots.c.dine_time, slots.c.capacity, slots.c.version


def _set_capacity(insert: postgresql.Insert | sqlite.Insert) -> ReturningInsert[Any]:
    return insert.on_conflict_do_update(
        index_elements=[slots.c.restaurant_id, slots.c.dine_time],
        set_={"capacity": insert.excluded.capacity, "version": slots.c.version + 1},
        where=slots.c.capacity != insert.excluded.capacity,
    ).returning(*_RETURNED)


_SET_CAPACITY = {
    "sqlite": _set_capacity(sqlite.insert(slots)),
    "postgresql": _set_capacity(postgresql.insert(slots)),
}
_CLOSE = (
    update(slots)
    .where(_OF_RESTAURANT, _NAMED, slots.c.capacity > 0)
    .values(capacity=0, version=slots.c.version + 1)
    .returning(*_RETURNED)
)
_STANDING = select(*_RETURNED).where(_OF_RESTAURANT, _NAMED).order_by(slots.c.dine_time)
_ON_DAYS = (
    _OF_RESTAURANT,
    slots.c.local_date >= bindparam("first", type_=Date),
    slots.c.local_date <= bindparam("last", type_=Date),
)
_BETWEEN = (
    select(slots.c.local_date, slots.c.dine_time)
    .where(*_ON_DAYS)
    .order_by(slots.c.local_date, slots.c.dine_time)
    .limit(bindparam("most"))
)
_COUNTS = (
    select(slots.c.local_date, func.count().label("slots")).where(*_ON_DAYS).group_by(slots.c.local_date)
)


def _count_change(insert: postgresql.Insert | sqlite.Insert) -> ReturningInsert[Any]:
    return insert.on_conflict_do_update(
        index_elements=[slot_days.c.restaurant_id, slot_days.c.local_date],
        set_={"version": slot_days.c.version + 1},
    ).returning(slot_days.c.version)


_COUNT_CHANGE = {
    "sqlite": _count_change(sqlite.insert(slot_days)),
    "postgresql": _count_change(postgresql.insert(slot_days)),
}


def set_capacity(
    tx: Transaction, restaurant_id: str, local_date: date, dine_times: Iterable[datetime], capacity: int
) -> list[Slot]:
    """Opens these slots of a local day at this capacity; returns those that were not so already, as they now
    stand.

    Each of them has a version that nobody else gave: the row is locked from here to the commit.
    """
    rows = [
        {
            "restaurant_id": restaurant_id,
            "dine_time": moment,
            "local_date": local_date,
            "capacity": capacity,
            "version": 1,
        }
        # Always in the same order, so that two pods do not wait for each other.
        for moment in sorted(dine_times)
    ]
    return _slots(tx.execute(_SET_CAPACITY[tx.dialect], rows))


def close(tx: Transaction, restaurant_id: str, dine_times: Iterable[datetime]) -> list[Slot]:
    """Closes those of these slots that are open; returns them as they now stand."""
    return _slots(tx.execute(_CLOSE, {"at_restaurant": restaurant_id, "named": list(dine_times)}))


def standing(tx: Transaction, restaurant_id: str, dine_times: Iterable[datetime]) -> list[Slot]:
    """Those of these slots that exist, in order of time."""
    return _slots(tx.execute(_STANDING, {"at_restaurant": restaurant_id, "named": list(dine_times)}))


def count_change(tx: Transaction, restaurant_id: str, local_date: date) -> int:
    """One more change of the slots of that day: its number, from 1. Holds the day until the commit."""
    row = {"restaurant_id": restaurant_id, "local_date": local_date, "version": 1}
    number: int = tx.execute(_COUNT_CHANGE[tx.dialect], row).scalar_one()
    return number


def slots_between(
    tx: Transaction, restaurant_id: str, first: date, last: date, most: int
) -> dict[date, list[datetime]]:
    """The dine times of the first `most` slots of these local days, both included, closed ones too, by
    day."""
    found: dict[date, list[datetime]] = {}
    parameters = {"at_restaurant": restaurant_id, "first": first, "last": last, "most": most}
    for row in tx.execute(_BETWEEN, parameters):
        found.setdefault(row.local_date, []).append(row.dine_time)
    return found


def slots_by_day(tx: Transaction, restaurant_id: str, first: date, last: date) -> dict[date, int]:
    """How many slots there are on each of these local days, both included, closed ones too; no day without
    any."""
    parameters = {"at_restaurant": restaurant_id, "first": first, "last": last}
    return {row.local_date: row.slots for row in tx.execute(_COUNTS, parameters)}


def _slots(rows: Iterable[Row[Any]]) -> list[Slot]:
    found = (Slot(row.dine_time, row.capacity, row.version) for row in rows)
    return sorted(found, key=lambda slot: slot.dine_time)


# --- bookings

# Statements of every event, built once: to build one costs the processor more than to run it.
_FIND_BOOKING = select(bookings).where(bookings.c.reservation_id == bindparam("key"))
_ADD_BOOKING = insert_once(bookings)
_MOVE_BOOKING = update(bookings).where(
    bookings.c.reservation_id == bindparam("key"),
    bookings.c.state == bindparam("state_before"),
    bookings.c.version == bindparam("version_before"),
    bookings.c.heard_version == bindparam("heard_before"),
)


def booking(tx: Transaction, reservation_id: str) -> Booking | None:
    """The restaurant's copy of that reservation; None if it was never offered."""
    row = tx.execute(_FIND_BOOKING, {"key": reservation_id}).one_or_none()
    return None if row is None else _booking(row)


def insert_booking(tx: Transaction, value: Booking) -> bool:
    """False if the reservation is known already."""
    row = {"reservation_id": value.reservation_id, **_booking_values(value)}
    return tx.changed(_ADD_BOOKING[tx.dialect], row) == 1


def move_booking(tx: Transaction, before: Booking, after: Booking) -> bool:
    """False if it is no longer as it was before: read it again and decide."""
    unmoved = {
        "key": before.reservation_id,
        "state_before": before.state.value,
        "version_before": before.version,
        "heard_before": before.heard_version,
    }
    return tx.changed(_MOVE_BOOKING, unmoved | _booking_values(after)) == 1


def list_bookings(
    tx: Transaction, which: BookingFilter, after: tuple[datetime, str] | None, limit: int
) -> list[Booking]:
    """In order of dine time, beginning after a place in that order."""
    order = bookings.c.dine_time, bookings.c.reservation_id
    query = (
        select(bookings).where(bookings.c.restaurant_id == which.restaurant_id).order_by(*order).limit(limit)
    )
    # One lower bound, the later one: given two, SQLite enters the index at the one that is not the place.
    if after is not None and (which.start is None or after[0] >= which.start):
        query = query.where(keyset.after(order, after))
    elif which.start is not None:
        query = query.where(bookings.c.dine_time >= which.start)
    if which.end is not None:
        query = query.where(bookings.c.dine_time < which.end)
    if not which.states:
        return [_booking(row) for row in tx.execute(query)]
    # A page of each state out of its own part of the index: what is read does not grow with the bookings of
    # other states that lie between.
    pages = [query.where(bookings.c.state == state.value).subquery() for state in sorted(which.states)]
    merged = union_all(*map(select, pages)).subquery()
    order_of_all = merged.c.dine_time, merged.c.reservation_id
    return [_booking(row) for row in tx.execute(select(merged).order_by(*order_of_all).limit(limit))]


def bookings_changed(
    tx: Transaction, restaurant_id: str, after: tuple[datetime, str], limit: int
) -> list[Booking]:
    """In order of change (update time, reservation_id), beginning after a place in that order."""
    order = bookings.c.update_time, bookings.c.reservation_id
    query = select(bookings).where(bookings.c.restaurant_id == restaurant_id, keyset.after(order, after))
    return [_booking(row) for row in tx.execute(query.order_by(*order).limit(limit))]


def _booking(row: Row[Any]) -> Booking:
    return Booking(
        reservation_id=row.reservation_id,
        restaurant_id=row.restaurant_id,
        customer_id=row.customer_id,
        state=BookingState(row.state),
        confirmed=row.confirmed,
        terms=Terms(
            revision=row.revision,
            dine_time=row.dine_time,
            party_size=row.party_size,
            acceptance=Acceptance(row.acceptance),
            accept_deadline=row.accept_deadline,
            no_show_grace=timedelta(seconds=row.no_show_grace_seconds),
            service=timedelta(seconds=row.service_seconds),
        ),
        version=row.version,
        heard_version=row.heard_version,
        create_time=row.create_time,
        update_time=row.update_time,
        accepted_revision=row.accepted_revision,
    )


def _booking_values(value: Booking) -> dict[str, Any]:
    return {
        "restaurant_id": value.restaurant_id,
        "customer_id": value.customer_id,
        "state": value.state.value,
        "confirmed": value.confirmed,
        "accepted_revision": value.accepted_revision,
        "revision": value.terms.revision,
        "dine_time": value.terms.dine_time,
        "party_size": value.terms.party_size,
        "acceptance": value.terms.acceptance.value,
        "accept_deadline": value.terms.accept_deadline,
        "no_show_grace_seconds": int(value.terms.no_show_grace.total_seconds()),
        "service_seconds": int(value.terms.service.total_seconds()),
        "version": value.version,
        "heard_version": value.heard_version,
        "create_time": value.create_time,
        "update_time": value.update_time,
    }
