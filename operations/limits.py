"""How long something may be on its way before it counts as stuck, and how long there is a record of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    """`on_the_way`: an event between two services; relay, broker and inbox take milliseconds, a restart takes
    seconds. `undecided`: a charge or refund without a definite answer of the provider; deposit asks again.
    `unmarked`: a booking whose service is over and of which nobody said how it went (reservation's setting of
    the same name). `retention`: what was sent, taken or asked for longer ago is not on record any more, and
    is not missed (the services' DINEMESH_RETENTION_DAYS)."""

    on_the_way: timedelta = timedelta(seconds=30)
    undecided: timedelta = timedelta(minutes=5)
    unmarked: timedelta = timedelta(hours=24)
    retention: timedelta = timedelta(days=30)

    @property
    def recorded(self) -> timedelta:
        """The age up to which a record must be there: each service prunes by its own clock."""
        return self.retention - self.on_the_way
