"""How long something may be on its way before it counts as stuck."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    """`on_the_way`: an event between two services; relay, broker and inbox take milliseconds, a restart takes
    seconds. `undecided`: a charge or refund without a definite answer of the provider; deposit asks again.
    `unmarked`: a booking whose service is over and of which nobody said how it went (reservation's setting of
    the same name)."""

    on_the_way: timedelta = timedelta(seconds=30)
    undecided: timedelta = timedelta(minutes=5)
    unmarked: timedelta = timedelta(hours=24)
