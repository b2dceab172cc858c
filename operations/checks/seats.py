"""The seats that a slot has sold are those of its live reservations and open holds."""

from __future__ import annotations

from datetime import datetime

from dinemesh.kit.instants import to_micros
from operations.checks.check import Check
from operations.limits import Limits
from operations.report import Pending, Violation
from operations.snapshot import About, Snapshot

NAME = "seats"
_Key = tuple[str, datetime]


class Seats(Check):
    """Compares the sold seats of each slot with those of its reservations and holds. More seats sold than
    there are is pending, since the capacity may be cut."""

    name = NAME
    needs = ("reservation_db",)
    about = frozenset({About.SLOTS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._slots = self._sold = 0

    def look(self, part: Snapshot) -> None:
        taken = {(one.restaurant_id, one.dine_time): one.seats for one in part.holdings}
        sold = {(slot.restaurant_id, slot.dine_time): slot.sold for slot in part.slots}
        self._slots += len(part.slots)
        self._sold += sum(sold.values())
        self.add(
            Violation(
                NAME,
                _name(key),
                f"{sold.get(key, 0)} seats are sold, and its reservations hold {taken.get(key, 0)}",
                _remedy(key, taken.get(key, 0), key in sold),
            )
            for key in taken.keys() | sold.keys()
            if taken.get(key, 0) != sold.get(key, 0)
        )
        self.add(
            Pending(
                "OVER CAPACITY",
                _name((slot.restaurant_id, slot.dine_time)),
                f"{slot.sold} sold of {slot.capacity}; the capacity was cut below what was sold",
            )
            for slot in part.slots
            if slot.sold > slot.capacity
        )

    def looked_at(self) -> str:
        return f"{self._slots} slots, {self._sold} seats sold"


def _remedy(key: _Key, held: int, is_known: bool) -> str:
    """With the statement that mends it, to be copied."""
    kept = "Nobody who has a seat loses it, and refunds go on."
    if not is_known:
        return f"{kept} The slot is not on record: open it again."
    restaurant_id, dine_time = key
    micros = to_micros(dine_time)
    return (
        f"{kept} make stop SERVICE=reservation, then in its database: UPDATE slots SET sold = {held} WHERE"
        f" restaurant_id = '{restaurant_id}' AND dine_time = {micros}; then make start SERVICE=reservation"
    )


def _name(key: _Key) -> str:
    restaurant_id, dine_time = key
    return f"{restaurant_id} {dine_time:%Y-%m-%d %H:%M:%S} UTC"
