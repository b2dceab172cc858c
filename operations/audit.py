"""The audit: every promise about money, seats and events, held against what is really there. Read-only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from operations import picture
from operations.checks import bookings, captures, events, ledger, pending, provider, requests, seats
from operations.limits import Limits
from operations.picture import Picture, Sources
from operations.report import Finding, Report

# Between the two readings: time enough for an event to pass relay, broker and inbox.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Check:
    """`needs` are the names of the sources without which it has nothing to say."""

    name: str
    needs: tuple[str, ...]
    look: Callable[[Picture, Limits], Finding]


CHECKS = (
    Check(ledger.NAME, ("deposit_db",), ledger.check),
    Check(provider.NAME, ("deposit_db", "provider"), provider.check),
    Check(captures.NAME, ("reservation_db", "deposit_db"), captures.check),
    Check(pending.NAME, ("reservation_db", "deposit_db"), pending.check),
    Check(seats.NAME, ("reservation_db",), seats.check),
    Check(bookings.NAME, ("reservation_db", "restaurant_db"), bookings.check),
    Check(requests.NAME, ("reservation_db",), requests.check),
    Check(events.OUTBOX, ("reservation_db", "deposit_db", "restaurant_db"), events.outboxes),
    Check(events.INBOXES, ("reservation_db", "deposit_db", "restaurant_db"), events.inboxes),
    Check(events.HISTORY, ("reservation_db", "deposit_db", "restaurant_db", "history_db"), events.history),
    Check(events.DEAD_LETTERS, ("amqp",), events.dead_letters),
)


async def audit(
    sources: Sources, limits: Limits | None = None, *, patience_seconds: float = PATIENCE_SECONDS
) -> Report:
    """What is wrong. Once is not enough on a live mesh: it is read again after `patience_seconds`, and only
    what is wrong both times is reported. Raises picture.Unreadable if a source cannot be read."""
    limits = limits or Limits()
    first = await look(sources, limits)
    if first.clean:
        return first
    await asyncio.sleep(patience_seconds)
    return (await look(sources, limits)).seen_before(first)


async def look(sources: Sources, limits: Limits) -> Report:
    """One reading."""
    return judge(await picture.take(sources), sources, limits)


def judge(seen: Picture, sources: Sources, limits: Limits) -> Report:
    """All checks whose sources were given, on one picture."""
    ready = [check for check in CHECKS if all(getattr(sources, name) is not None for name in check.needs)]
    skipped = tuple(check.name for check in CHECKS if check not in ready)
    return Report(tuple(check.look(seen, limits) for check in ready), skipped)
