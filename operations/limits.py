"""How long something may be on its way before it counts as stuck."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Limits:
    """`on_the_way`: an event between two services; relay, broker and inbox take milliseconds, a restart of one of
    them seconds. `undecided`: a charge or refund that the provider has not answered for good; deposit asks again
    with growing pauses."""

    on_the_way: timedelta = timedelta(seconds=30)
    undecided: timedelta = timedelta(minutes=5)
