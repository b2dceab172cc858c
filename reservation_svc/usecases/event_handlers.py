"""What other services tell, inside the transaction of the inbox. What has no effect changes nothing;
nothing is refused, and no order of arrival matters."""

from __future__ import annotations

import time
from collections.abc import Iterable

from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    BookingSnapshot,
    DepositSnapshot,
    Move,
    Reservation,
    Restaurant,
    SlotSnapshot,
)
from reservation_svc.persistence import reservations, seat_inventory
from reservation_svc.usecases.context import ReservationContext


def on_restaurant(tx: Transaction, copy: Restaurant) -> None:
    """Keeps our copy. Reservations that stand keep theirs."""
    seat_inventory.keep_restaurant(tx, copy)


def on_slots(tx: Transaction, restaurant_id: str, slots: Iterable[SlotSnapshot]) -> None:
    """Sets absolute capacities; a stale version of a slot has no effect."""
    seat_inventory.set_capacities(tx, restaurant_id, slots)


def on_booking(
    ctx: ReservationContext, tx: Transaction, reservation_id: str, snapshot: BookingSnapshot
) -> None:
    """Accepted, declined, seated, no-show, completed."""

    def decide(current: Reservation) -> list[Move]:
        return current.on_booking(snapshot, tx.now, ctx.clock.not_later_than(tx.now, time.monotonic()))

    ctx.transition(tx, reservation_id, decide)


def on_deposit(
    ctx: ReservationContext, tx: Transaction, reservation_id: str, snapshot: DepositSnapshot
) -> None:
    """The same moves as the reply to CreateDeposit makes, if that did not come; otherwise the state to
    show."""

    def decide(current: Reservation) -> list[Move]:
        move = current.on_deposit(snapshot, tx.now, ctx.rules)
        return [move] if move is not None else []

    found = reservation_id or reservations.of_deposit(tx, snapshot.deposit_id)
    if found is not None:
        ctx.transition(tx, found, decide)
