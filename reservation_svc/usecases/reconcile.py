"""What the passing of time does: attempts that nobody finished, acceptance deadlines, bookings nobody
marked."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from dinemesh.kit import crash, failing, telemetry
from dinemesh.kit.instants import EPOCH
from dinemesh.kit.store import CommitInDoubt, StoreUnavailable, Transaction
from reservation_svc.domain import Move, Reservation
from reservation_svc.persistence import clock, reservations
from reservation_svc.persistence.reservations import Due
from reservation_svc.persistence.tables import failures
from reservation_svc.usecases.clock import Verdict
from reservation_svc.usecases.context import ReservationContext

log = logging.getLogger(__name__)

# One turn takes this many, so that a long outage is worked off in steps beside the calls.
BATCH = 100

LATE = telemetry.gauge(
    "settling_late_seconds", "How long an attempt, deadline or unmarked booking has waited past its time."
)
FAILING = telemetry.gauge("reconcile_failing_rows", "What fails while it is reconciled, and is tried again.")
HELD = telemetry.gauge(
    "lapses_held_reservations",
    "Bookings that the clock would end, held back since they are too many at once: it may have jumped.",
)


async def reconcile(ctx: ReservationContext) -> None:
    """One turn of the reconciling task. Several pods may run it: every move is guarded."""
    while True:
        verdict = await _judge(ctx)
        until = verdict.until or EPOCH
        due, lateness, failed = await ctx.store.read(
            lambda tx: (
                reservations.due(tx, verdict.now, BATCH, until),  # noqa: B023  awaited at once
                reservations.lateness(tx, verdict.now, until),  # noqa: B023
                failing.count(tx, failures),
            )
        )
        LATE.set(lateness.total_seconds())
        FAILING.set(failed)
        if failed:
            await ctx.store.write(reservations.forget_failures)
        if __debug__:
            crash.point("reconcile.due", "some" if due else "nothing")
        results = await asyncio.gather(*(_reconcile_one(ctx, one) for one in due), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if len(due) < BATCH:
            return


async def _judge(ctx: ReservationContext) -> Verdict:
    """How far the clock is trusted in this step."""
    own_time = time.monotonic()
    verdict = await ctx.store.read(lambda tx: ctx.clock.judge(tx, ctx.rules, own_time))
    ctx.clock.keep(verdict, own_time)
    HELD.set(verdict.held)
    if verdict.is_news and not verdict.held:
        await ctx.store.write(partial(clock.rely, until=verdict.now))
    elif verdict.is_news and await ctx.store.write(
        lambda tx: clock.hold(tx, verdict.until, verdict.held, verdict.alive)
    ):
        log.error(
            "the clock would end %d of %d bookings at once, so it ends none: is it right? If it is,"
            " `make pending` has the command that lets them end: make let-lapse UNTIL=<time>",
            verdict.held,
            verdict.alive,
        )
    return verdict


async def _reconcile_one(ctx: ReservationContext, one: Due) -> None:
    """One that fails is looked at again later, and holds up no other."""
    try:
        await ctx.store.write(partial(_look_at, ctx, one))
    except (StoreUnavailable, CommitInDoubt):
        raise
    except Exception as error:
        pause = await ctx.store.write(
            lambda tx, why=error: failing.put_off(tx, failures, one.reservation_id, why)  # type: ignore[misc]
        )
        log.error(
            "a reservation fails while it is reconciled, next look in %s: %r",
            pause,
            error,
            exc_info=error if one.tries == 0 else None,
            extra={"reservation_id": one.reservation_id},
        )


def _look_at(ctx: ReservationContext, one: Due, tx: Transaction) -> None:
    def decide(current: Reservation) -> list[Move]:
        move = current.lapse(tx.now, ctx.rules)
        return [move] if move is not None else []

    seen = reservations.find(tx, one.reservation_id)
    stands = ctx.transition(tx, one.reservation_id, decide, seen=seen)
    if stands is not None and stands is seen:
        # Its deposit is undecided and the seats are still held: later.
        reservations.postpone(tx, stands, stands.due_time(tx.now, ctx.rules))
    if one.tries:
        failing.forget(tx, failures, [one.reservation_id])
