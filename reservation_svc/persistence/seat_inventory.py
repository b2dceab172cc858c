"""Capacity and seats sold per slot, and our copy of the restaurants. Seats are held by one conditional
update."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache

from sqlalchemy import and_, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dinemesh.kit.store import Instant, Transaction
from reservation_svc.domain import Acceptance, Policy, RequestRecord, Restaurant, Slot, SlotSnapshot
from reservation_svc.persistence.tables import requests, restaurants, slots

log = logging.getLogger(__name__)

_AT = and_(
    slots.c.restaurant_id == bindparam("at_restaurant"),
    slots.c.dine_time == bindparam("at_time", type_=Instant),
)
_HOLD = (
    update(slots)
    .where(_AT, slots.c.sold + bindparam("seats") <= slots.c.capacity)
    .values(sold=slots.c.sold + bindparam("seats"))
)
_RELEASE = (
    update(slots)
    .where(_AT, slots.c.sold >= bindparam("seats"))
    .values(sold=slots.c.sold - bindparam("seats"))
)
_EMPTY = update(slots).where(_AT).values(sold=0)
_LOOK = (
    select(
        restaurants.c.time_zone,
        restaurants.c.policy,
        slots.c.capacity,
        slots.c.sold,
        requests.c.body_hash,
        requests.c.reservation_id,
        requests.c.modification_id,
    )
    .select_from(
        restaurants.outerjoin(
            slots,
            and_(
                slots.c.restaurant_id == restaurants.c.restaurant_id,
                slots.c.dine_time == bindparam("at_time", type_=Instant),
            ),
        ).outerjoin(
            requests,
            and_(
                requests.c.customer_id == bindparam("of_customer"),
                requests.c.request_id == bindparam("of_request"),
            ),
        )
    )
    .where(restaurants.c.restaurant_id == bindparam("at_restaurant"))
)
_RESTAURANT = select(restaurants.c.time_zone, restaurants.c.policy).where(
    restaurants.c.restaurant_id == bindparam("at_restaurant")
)
_SLOT = select(slots.c.dine_time, slots.c.capacity, slots.c.sold).where(_AT)
_IS_OPEN = (
    select(slots.c.dine_time)
    .where(
        slots.c.restaurant_id == bindparam("at_restaurant"),
        slots.c.dine_time >= bindparam("first", type_=Instant),
        slots.c.dine_time < bindparam("end", type_=Instant),
        slots.c.capacity > 0,
    )
    .limit(1)
)
_OPEN_SLOTS = (
    select(slots.c.dine_time, slots.c.capacity, slots.c.sold)
    .where(
        slots.c.restaurant_id == bindparam("at_restaurant"),
        slots.c.dine_time > bindparam("after", type_=Instant),
        slots.c.dine_time < bindparam("end", type_=Instant),
        slots.c.capacity > 0,
    )
    .order_by(slots.c.dine_time)
    .limit(bindparam("most"))
)


def _set_capacity(insert: postgresql.Insert | sqlite.Insert) -> postgresql.Insert | sqlite.Insert:
    return insert.on_conflict_do_update(
        index_elements=[slots.c.restaurant_id, slots.c.dine_time],
        set_={"capacity": insert.excluded.capacity, "version": insert.excluded.version},
        where=slots.c.version < insert.excluded.version,
    )


_SET_CAPACITY = {
    "sqlite": _set_capacity(sqlite.insert(slots)),
    "postgresql": _set_capacity(postgresql.insert(slots)),
}


@lru_cache(maxsize=1024)
def policy_text(policy: Policy) -> str:
    """The policy as it is stored, here and frozen on each reservation."""
    return json.dumps(asdict(policy), separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def read_policy(text: str) -> Policy:
    """The policy that `policy_text` stored; cached, since many reservations have the same."""
    values = json.loads(text)
    return Policy(**{**values, "acceptance": Acceptance(values["acceptance"])})


class SlotView:
    """What a new reservation needs to know, fetched at once: the restaurant, the slot, the request id's
    record."""

    __slots__ = ("record", "restaurant", "slot")

    def __init__(self, restaurant: Restaurant, slot: Slot | None, record: RequestRecord | None) -> None:
        self.restaurant = restaurant
        self.slot = slot
        self.record = record


def view(
    tx: Transaction, *, restaurant_id: str, dine_time: datetime, customer_id: str, request_id: str
) -> SlotView | None:
    """None if the restaurant is unknown."""
    row = tx.execute(
        _LOOK,
        {
            "at_restaurant": restaurant_id,
            "at_time": dine_time,
            "of_customer": customer_id,
            "of_request": request_id,
        },
    ).one_or_none()
    if row is None:
        return None
    record = None
    if row.body_hash is not None:
        record = RequestRecord(row.body_hash, row.reservation_id, row.modification_id)
    return SlotView(
        Restaurant(restaurant_id, row.time_zone, read_policy(row.policy)),
        None if row.capacity is None else Slot(dine_time, row.capacity, row.sold),
        record,
    )


def restaurant(tx: Transaction, restaurant_id: str) -> Restaurant | None:
    """Our copy of the restaurant; None if no event of it has come yet."""
    row = tx.execute(_RESTAURANT, {"at_restaurant": restaurant_id}).one_or_none()
    return None if row is None else Restaurant(restaurant_id, row.time_zone, read_policy(row.policy))


def slot(tx: Transaction, restaurant_id: str, dine_time: datetime) -> Slot | None:
    """The slot with the seats sold so far; None if the restaurant never opened one at that time."""
    row = tx.execute(_SLOT, {"at_restaurant": restaurant_id, "at_time": dine_time}).one_or_none()
    return None if row is None else Slot(row.dine_time, row.capacity, row.sold)


def hold(tx: Transaction, restaurant_id: str, dine_time: datetime, seats: int) -> bool:
    """Sells seats, or changes nothing and says False."""
    return tx.changed(_HOLD, {"at_restaurant": restaurant_id, "at_time": dine_time, "seats": seats}) == 1


def release(tx: Transaction, restaurant_id: str, dine_time: datetime, seats: int) -> None:
    """Gives seats back. A counter that is too low for it, or is not there, stops nothing: what goes with the
    seats is a guest's money, and the audit names the slot."""
    at = {"at_restaurant": restaurant_id, "at_time": dine_time}
    if tx.changed(_RELEASE, at | {"seats": seats}) == 0:
        tx.execute(_EMPTY, at)
        log.error(
            "fewer seats were sold than are given back; the audit (seats) says how many are sold",
            extra={"restaurant_id": restaurant_id, "dine_time": dine_time.isoformat(), "seats": seats},
        )


def is_open_between(tx: Transaction, restaurant_id: str, first: datetime, end: datetime) -> bool:
    """Whether any slot is open from `first` until before `end`."""
    found = tx.execute(_IS_OPEN, {"at_restaurant": restaurant_id, "first": first, "end": end})
    return found.one_or_none() is not None


def open_slots(tx: Transaction, restaurant_id: str, after: datetime, end: datetime, most: int) -> list[Slot]:
    """The first `most` open slots later than `after` and before `end`."""
    parameters = {"at_restaurant": restaurant_id, "after": after, "end": end, "most": most}
    return [Slot(row.dine_time, row.capacity, row.sold) for row in tx.execute(_OPEN_SLOTS, parameters)]


def keep_restaurant(tx: Transaction, copy: Restaurant) -> None:
    """Inserts or replaces our copy."""
    insert = tx.insert(restaurants).values(
        restaurant_id=copy.restaurant_id, time_zone=copy.time_zone, policy=policy_text(copy.policy)
    )
    tx.execute(
        insert.on_conflict_do_update(
            index_elements=[restaurants.c.restaurant_id],
            set_={"time_zone": insert.excluded.time_zone, "policy": insert.excluded.policy},
        )
    )


def set_capacities(tx: Transaction, restaurant_id: str, snapshots: Iterable[SlotSnapshot]) -> None:
    """Sets capacities where no newer version is known. What is sold stays sold."""
    rows = [
        {
            "restaurant_id": restaurant_id,
            "dine_time": slot.dine_time,
            "capacity": slot.capacity,
            "sold": 0,
            "version": slot.version,
        }
        # Always in the same order, so that two pods that lock several slots do not wait for each other.
        for slot in sorted(snapshots, key=lambda one: one.dine_time)
    ]
    if rows:
        tx.execute(_SET_CAPACITY[tx.dialect], rows)
