"""Whatever waits for somebody is listed, and has a time limit."""

from __future__ import annotations

from operations.limits import Limits
from operations.picture import Picture
from operations.report import Finding, Pending, Violation
from operations.waiting import Waiting, bookings_and_money

NAME = "pending"
# As they should be until their time is over, which may be weeks: worth no line.
_ORDINARY = frozenset({"PENDING_ACCEPTANCE", "CONFIRMED", "SEATED"})


def check(picture: Picture, limits: Limits) -> Finding:
    found = list(bookings_and_money(picture, limits))
    late = [one for one in found if one.until is not None and one.is_late(picture.now)]
    listed = [one for one in found if one not in late and one.kind not in _ORDINARY]
    return Finding(
        NAME,
        f"{len(listed)} wait within their time",
        tuple(Violation(NAME, one.subject, _told(one), one.remedy) for one in late),
        tuple(map(_pending, listed)),
    )


def _told(one: Waiting) -> str:
    return f"{one.kind} since {one.since:%Y-%m-%d %H:%M:%S} UTC, past its time: {one.what}"


def _pending(one: Waiting) -> Pending:
    # What only a person can end is allowed however long it takes.
    return Pending(one.kind, one.subject, one.what, "" if one.until else one.remedy)
