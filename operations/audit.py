"""The audit: every promise about money, seats and events, held against what is really there. Read-only, and
in parts: it takes the same memory for a million bookings as for a thousand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from operations import snapshot
from operations.checks.bookings import Bookings
from operations.checks.captures import Captures
from operations.checks.check import Check
from operations.checks.events import DeadLetters, History, Inboxes, Outboxes
from operations.checks.ledger import Ledger
from operations.checks.pending import StillPending
from operations.checks.provider import Provider
from operations.checks.requests import Requests
from operations.checks.seats import Seats
from operations.limits import Limits
from operations.report import Report
from operations.snapshot import Reader, Snapshot, Sources

# Between the two readings: time enough for an event to pass relay, broker and inbox.
PATIENCE_SECONDS = 3.0

CHECKS: Sequence[type[Check]] = (
    Ledger,
    Provider,
    Captures,
    StillPending,
    Seats,
    Bookings,
    Requests,
    Outboxes,
    Inboxes,
    History,
    DeadLetters,
)


async def audit(
    sources: Sources, limits: Limits | None = None, *, patience_seconds: float = PATIENCE_SECONDS
) -> Report:
    """What is wrong. Once is not enough on a live mesh: it is read again after `patience_seconds`, and only
    what is wrong both times is reported. Raises snapshot.Unreadable if a source cannot be read."""
    limits = limits or Limits()
    first = await look(sources, limits)
    if first.clean:
        return first
    await asyncio.sleep(patience_seconds)
    return (await look(sources, limits)).seen_before(first)


async def look(sources: Sources, limits: Limits) -> Report:
    """One reading."""
    checks = _ready(sources, limits)

    def read(reader: Reader) -> None:
        for part in reader.parts({about for check in checks for about in check.about}):
            _show(part, checks)

    async with snapshot.opened(sources) as reader:
        await asyncio.to_thread(read, reader)
    return _report(checks)


def judge(seen: Snapshot, sources: Sources, limits: Limits) -> Report:
    """All checks whose sources were given, on one snapshot."""
    checks = _ready(sources, limits)
    _show(seen, checks)
    return _report(checks)


def _ready(sources: Sources, limits: Limits) -> Sequence[Check]:
    return [
        check(limits) for check in CHECKS if all(getattr(sources, name) is not None for name in check.needs)
    ]


def _show(part: Snapshot, checks: Iterable[Check]) -> None:
    for check in checks:
        if check.about & part.about:
            check.look(part)


def _report(checks: Sequence[Check]) -> Report:
    ready = {check.name for check in checks}
    skipped = tuple(check.name for check in CHECKS if check.name not in ready)
    return Report(tuple(check.finding() for check in checks), skipped)
