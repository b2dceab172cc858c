"""How long something may be on its way before it counts as stuck."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    """`on_the_way`: an event between two services; relay, broker and inbox take milliseconds, a restart takes
    seconds. `undecided`: a charge or refund without a definite answer of the provider; deposit asks again."""

    on_the_way: timedelta = timedelta(seconds=30)
    undecided: timedelta = timedelta(minutes=5)
