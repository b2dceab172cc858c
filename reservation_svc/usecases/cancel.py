"""Cancel, by the customer or the restaurant."""

from __future__ import annotations

from dataclasses import dataclass

from dinemesh.kit import crash
from dinemesh.kit.store import Transaction
from reservation_svc.domain import Cause, Kind, Move, Person, Reservation, not_found
from reservation_svc.usecases.desk import Desk


@dataclass(frozen=True)
class Cancelled:
    """Amounts in minor units; the same at every repetition."""

    reservation: Reservation
    refunded: int
    forfeited: int


async def cancel(desk: Desk, reservation_id: str, who: Person) -> Cancelled:
    """One transaction. Cancelling wins against a charge in flight, an acceptance and a modification."""

    def change(tx: Transaction) -> Reservation:
        def decide(current: Reservation) -> list[Move]:
            by = who.side_in(current)
            if by is None:
                raise not_found()
            move = current.cancel(by, tx.now)
            return [move] if move is not None else []

        ended = desk.follow(tx, reservation_id, decide)
        if ended is None:
            raise not_found()
        return ended

    ended = await desk.store.write(change)
    if __debug__:
        crash.point("cancel.done", ended.cancelled_by or "")
    refunded = ended.ordered(Kind.REFUND, Cause.CANCELLED)
    return Cancelled(ended, refunded, ended.ordered(Kind.FORFEIT, Cause.CANCELLED))
