"""How many bookings a wrong clock has ended. Pure: the jumps of a record and the books in, complaints out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import timedelta

from tests.torture.books import Books
from tests.torture.record import Jump

LAPSE_FLOOR = 2
"""So few may end at once whatever their share: a run has few bookings."""
LAPSE_SHARE = 0.2
WATCHED = timedelta(seconds=60)
"""Reservation does not take a clock that is so much ahead for one that has jumped."""

# What the clock makes of a booking that nobody touches, and of which state.
_ENDS = {"DECLINED": "PENDING_ACCEPTANCE", "COMPLETED": "CONFIRMED"}


def complaints(jumps: list[Jump], books: Books) -> Iterator[str]:
    """One for each kind of ending that a jump brought about more often than the set share allows."""
    for jump in jumps:
        if jump.service != "reservation" or jump.by <= WATCHED:
            continue
        if not math.isfinite(jump.end):
            continue  # its fault was not witnessed to the end, and the run is void
        for state, after in _ended(jump, books).items():
            alive = jump.alive[_ENDS[state]]
            allowed = max(LAPSE_FLOOR, int(LAPSE_SHARE * alive))
            if len(after) > allowed:
                when = ", ".join(f"{seconds:.1f}" for seconds in sorted(after)[:20])
                what = f"{len(after)} of {alive} bookings as {state}, {allowed} may"
                yield f"a clock {jump.by} ahead ended {what}; after {when} s"


def _ended(jump: Jump, books: Books) -> Mapping[str, list[float]]:
    """Those that were ended while it was ahead, by it alone: by the right clock nothing was due. By state, so
    many seconds after the jump."""
    last = jump.first + timedelta(seconds=jump.end - jump.begin)
    found: dict[str, list[float]] = defaultdict(list)
    for one in books.snapshot.reservations.values():
        stages = books.stages.get(one.reservation_id, ())
        if not stages or one.state not in _ENDS or not jump.first <= stages[-1].time <= last:
            continue
        said = books.bookings.get(one.reservation_id, ())
        if said and said[-1].state in ("DECLINED", "COMPLETED"):
            continue  # by the restaurant
        due = one.accept_deadline if one.state == "DECLINED" else one.dine_time
        # What was made by the wrong clock is due by it.
        if due is not None and last - jump.by < due and stages[0].time < jump.first:
            found[one.state].append((stages[-1].time - jump.first).total_seconds())
    return found
