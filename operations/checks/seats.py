"""The seats that a slot has sold are those of its live reservations and open holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from operations.limits import Limits
from operations.picture import Picture
from operations.report import Finding, Pending, Violation

NAME = "seats"
# Seats of a meal that was eaten, or that nobody came to, stay sold: nobody else could have had them.
HOLDING = frozenset({"PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED", "SEATED", "COMPLETED", "NO_SHOW"})

_Key = tuple[str, datetime]


def check(picture: Picture, limits: Limits) -> Finding:
    taken = _taken(picture)
    sold = {(slot.restaurant_id, slot.dine_time): slot.sold for slot in picture.slots}
    violations = [
        Violation(
            NAME,
            _name(key),
            f"{sold.get(key, 0)} seats are sold, and its reservations hold {taken.get(key, 0)}",
            _remedy(key, taken.get(key, 0), key in sold),
        )
        for key in taken.keys() | sold.keys()
        if taken.get(key, 0) != sold.get(key, 0)
    ]
    over = [
        Pending(
            "OVER CAPACITY",
            _name((slot.restaurant_id, slot.dine_time)),
            f"{slot.sold} sold of {slot.capacity}; the capacity was cut below what was sold",
        )
        for slot in picture.slots
        if slot.sold > slot.capacity
    ]
    looked_at = f"{len(picture.slots)} slots, {sum(sold.values())} seats sold"
    return Finding(NAME, looked_at, tuple(violations), tuple(over))


def _taken(picture: Picture) -> Mapping[_Key, int]:
    seats: dict[_Key, int] = defaultdict(int)
    for one in picture.reservations.values():
        if one.state in HOLDING:
            seats[one.restaurant_id, one.dine_time] += one.party_size
    for wanted in picture.modifications:
        reservation = picture.reservations[wanted.reservation_id]
        same_slot = wanted.dine_time == reservation.dine_time
        already = reservation.party_size if same_slot else 0
        seats[reservation.restaurant_id, wanted.dine_time] += max(0, wanted.party_size - already)
    return seats


def _remedy(key: _Key, held: int, is_known: bool) -> str:
    """With the statement that mends it, to be copied."""
    kept = "Nobody who has a seat loses it, and refunds go on."
    if not is_known:
        return f"{kept} The slot is not on record: open it again."
    restaurant_id, dine_time = key
    micros = (dine_time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return (
        f"{kept} make stop SERVICE=reservation, then in its database: UPDATE slots SET sold = {held} WHERE"
        f" restaurant_id = '{restaurant_id}' AND dine_time = {micros}; then make start SERVICE=reservation"
    )


def _name(key: _Key) -> str:
    restaurant_id, dine_time = key
    return f"{restaurant_id} {dine_time:%Y-%m-%d %H:%M:%S} UTC"
