"""What the passing of time does: attempts that nobody finished, acceptance deadlines, bookings nobody
marked."""

from __future__ import annotations

import asyncio
from functools import partial

from dinemesh.kit import crash, telemetry
from dinemesh.kit.store import Transaction
from reservation_svc.domain import Move, Reservation
from reservation_svc.persistence import reservations
from reservation_svc.usecases.desk import Desk

# One turn takes this many, so that a long outage is worked off in steps beside the calls.
BATCH = 100

LATE = telemetry.gauge(
    "settling_late_seconds", "How long an attempt, deadline or unmarked booking has waited past its time."
)


async def settle(desk: Desk) -> None:
    """One turn of the settling task. Several pods may run it: every move is guarded."""
    while True:
        due, lateness = await desk.store.read(
            lambda tx: (reservations.due(tx, tx.now, BATCH), reservations.lateness(tx, tx.now))
        )
        LATE.set(lateness.total_seconds())
        if __debug__:
            crash.point("settle.due", "some" if due else "nothing")
        await asyncio.gather(*(desk.store.write(partial(_look_at, desk, one)) for one in due))
        if len(due) < BATCH:
            return


def _look_at(desk: Desk, reservation_id: str, tx: Transaction) -> None:
    def decide(current: Reservation) -> list[Move]:
        move = current.lapse(tx.now, desk.rules)
        return [move] if move is not None else []

    seen = reservations.find(tx, reservation_id)
    stands = desk.follow(tx, reservation_id, decide, seen=seen)
    if stands is not None and stands is seen:
        # Its deposit is undecided and the seats are still held: later.
        reservations.postpone(tx, stands, stands.due_time(tx.now, desk.rules))
