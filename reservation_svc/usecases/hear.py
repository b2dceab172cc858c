"""What other services tell, inside the transaction of the inbox. What has no effect changes nothing;
nothing is refused, and no order of arrival matters."""

from __future__ import annotations

import time
from collections.abc import Iterable

from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    BookingNews,
    DepositNews,
    Move,
    Reservation,
    Restaurant,
    SlotNews,
)
from reservation_svc.persistence import allotment, reservations
from reservation_svc.usecases.desk import Desk


def hear_restaurant(tx: Transaction, copy: Restaurant) -> None:
    """Keeps our copy. Reservations that stand keep theirs."""
    allotment.keep_restaurant(tx, copy)


def hear_slots(tx: Transaction, restaurant_id: str, slots: Iterable[SlotNews]) -> None:
    """Sets absolute capacities; a stale version of a slot has no effect."""
    allotment.set_capacities(tx, restaurant_id, slots)


def hear_booking(desk: Desk, tx: Transaction, reservation_id: str, news: BookingNews) -> None:
    """Accepted, declined, seated, no-show, completed."""

    def decide(current: Reservation) -> list[Move]:
        return current.hear_restaurant(news, tx.now, desk.clock.not_later_than(tx.now, time.monotonic()))

    desk.follow(tx, reservation_id, decide)


def hear_deposit(desk: Desk, tx: Transaction, reservation_id: str, news: DepositNews) -> None:
    """The same moves as the reply to CreateDeposit makes, if that did not come; otherwise the state to
    show."""

    def decide(current: Reservation) -> list[Move]:
        move = current.hear_deposit(news, tx.now, desk.rules)
        return [move] if move is not None else []

    found = reservation_id or reservations.of_deposit(tx, news.deposit_id)
    if found is not None:
        desk.follow(tx, found, decide)
