"""Cancel, by the customer or the restaurant."""

from __future__ import annotations

from dataclasses import dataclass

from dinemesh.kit import crash
from dinemesh.kit.store import Transaction
from reservation_svc.domain import Caller, Cause, Kind, Move, Reservation, not_found
from reservation_svc.usecases.context import ReservationContext


@dataclass(frozen=True)
class Cancelled:
    """Amounts in minor units; the same at every repetition."""

    reservation: Reservation
    refunded: int
    forfeited: int


async def cancel(ctx: ReservationContext, reservation_id: str, who: Caller) -> Cancelled:
    """One transaction. Cancelling wins against a charge in flight, an acceptance and a modification."""

    def change(tx: Transaction) -> Reservation:
        def decide(current: Reservation) -> list[Move]:
            by = who.side_in(current)
            if by is None:
                raise not_found()
            move = current.cancel(by, tx.now)
            return [move] if move is not None else []

        ended = ctx.transition(tx, reservation_id, decide)
        if ended is None:
            raise not_found()
        return ended

    ended = await ctx.store.write(change)
    if __debug__:
        crash.point("cancel.done", ended.cancelled_by or "")
    refunded = ended.ordered(Kind.REFUND, Cause.CANCELLED)
    return Cancelled(ended, refunded, ended.ordered(Kind.FORFEIT, Cause.CANCELLED))
