"""The saga that takes a deposit: the steps that reserving and a dearer modification share.

1. A transaction records what is wanted and holds the seats (`first_step`). Nothing has been charged.
2. deposit_svc is asked to charge, once (`charge`). No network call belongs inside a transaction.
3. A transaction concludes (`conclude`): captured goes on, everything else frees the seats, and what may have
   been charged is ordered to be voided. That void is the compensation; it reaches deposit_svc as an event.

Whoever dies in between leaves a row that reconciliation ends (`reconcile.py`), and deposit_svc's own event
(`event_handlers.py`) makes the same move as step 3: whichever comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from dinemesh.kit import call, crash
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Transaction
from reservation_svc.domain import (
    Charge,
    DepositOutcome,
    Failure,
    Move,
    NotCharged,
    Reservation,
    Unknown,
    refusal_of,
)
from reservation_svc.usecases.admission import Attempt
from reservation_svc.usecases.context import ReservationContext

T = TypeVar("T")

# deposit_svc, asked directly, says this long before its caller's deadline that it does not know, or earlier.
_EARLY_ANSWER_SECONDS = 0.2
# With less than this deposit_svc begins nothing, and says so too late to be heard.
_SHORTEST_CHARGE_SECONDS = 0.1


def too_late(ctx: ReservationContext) -> Refusal | None:
    """Why a charge cannot be begun in the time that the caller has left, if so."""
    left = call.time_left()
    if left is not None and left < ctx.limits.least:
        least_ms = int(ctx.limits.least * 1000)
        return Refusal("DEADLINE_TOO_SHORT", f"At least {least_ms} ms are needed; nothing was begun.")
    return None


def patience(ctx: ReservationContext) -> float:
    """How long the caller can wait for a place and still be charged, in seconds."""
    left = call.time_left()
    return ctx.limits.queue if left is None else min(ctx.limits.queue, left - ctx.limits.least)


async def first_step(
    ctx: ReservationContext, change: Callable[[Transaction], T], *, shed: bool = False, on: Sequence[str] = ()
) -> T:
    """Runs the first transaction; after a commit in doubt again, which finds its own work. `shed` and `on` as
    in `Store.write`."""
    try:
        return await ctx.store.write(change, shed=shed, on=on)
    except CommitInDoubt:
        return await ctx.write_durably(change)


async def charge(ctx: ReservationContext, attempt: Attempt, wanted: Charge) -> DepositOutcome:
    """Asks deposit_svc, once, for no longer than the caller waits."""
    left = call.time_left()
    timeout = ctx.limits.deposit_deadline
    if left is not None:
        timeout = min(timeout, left - ctx.limits.margin)
    if timeout < _SHORTEST_CHARGE_SECONDS:
        return NotCharged()  # the time was used up before deposit was asked, and says nothing of deposit
    begun = time.monotonic()
    if __debug__:
        crash.point("deposit.call.before")
    outcome = await ctx.deposits.create(wanted, timeout)
    if __debug__:
        crash.point("deposit.call.after", type(outcome).__name__)
    ran_out = isinstance(outcome, Unknown) and time.monotonic() - begun > timeout - _EARLY_ANSWER_SECONDS
    # A caller's own deadline that ran out says nothing of deposit_svc: one client must not shut out all.
    if not (ran_out and timeout < ctx.limits.deposit_deadline):
        attempt.outcome = outcome
    return outcome


def conclude(
    ctx: ReservationContext, tx: Transaction, before: Reservation, deposit_id: str, outcome: DepositOutcome
) -> Reservation:
    """What the charge came to, on record. `before` is the reservation as the first transaction left it."""

    def decide(current: Reservation) -> list[Move]:
        move = current.conclude(deposit_id, outcome, tx.now, ctx.rules)
        return [move] if move is not None else []

    concluded = ctx.transition(tx, before.reservation_id, decide, seen=before)
    assert concluded is not None, "a reservation is never deleted"
    return concluded


def refusal(
    ctx: ReservationContext, failure: Failure | None, decline_code: str, outcome: DepositOutcome
) -> Refusal:
    """What the caller is told of an attempt that came to nothing."""
    retry_after = ctx.limits.retry_after
    if isinstance(outcome, NotCharged) and outcome.retry_after is not None:
        retry_after = max(retry_after, outcome.retry_after)
    return refusal_of(failure or Failure.DEPOSIT_UNKNOWN, decline_code, retry_after)
