"""How many bookings a wrong clock has ended. Pure: the jumps of a record and the books in, complaints out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
        for state, count in _ended(jump, books).items():
            alive = jump.alive[_ENDS[state]] + count
            allowed = max(LAPSE_FLOOR, int(LAPSE_SHARE * alive))
            if count > allowed:
                yield f"a clock {jump.by} ahead ended {count} of {alive} bookings as {state}, {allowed} may"


def _ended(jump: Jump, books: Books) -> Counter[str]:
    """Those that were ended while it was ahead, by it alone: by the right clock nothing was due."""
    last = jump.first + timedelta(seconds=jump.end - jump.begin)
    found: Counter[str] = Counter()
    for one in books.picture.reservations.values():
        stages = books.stages.get(one.reservation_id, ())
        if not stages or one.state not in _ENDS or not jump.first <= stages[-1].time <= last:
            continue
        said = books.bookings.get(one.reservation_id, ())
        if said and said[-1].state in ("DECLINED", "COMPLETED"):
            continue  # by the restaurant
        due = one.accept_deadline if one.state == "DECLINED" else one.dine_time
        # What was made by the wrong clock is due by it.
        if due is not None and last - jump.by < due and stages[0].time < jump.first:
            found[one.state] += 1
    return found
