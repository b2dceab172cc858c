"""Whatever waits for somebody is listed, and has a time limit."""

from __future__ import annotations

from operations.backlog import BacklogItem, bookings_and_money
from operations.checks.check import Check
from operations.limits import Limits
from operations.report import Pending, Violation
from operations.snapshot import About, Snapshot

NAME = "pending"
# As they should be until their time is over, which may be weeks: worth no line.
_ORDINARY = frozenset({"PENDING_ACCEPTANCE", "CONFIRMED", "SEATED"})


class StillPending(Check):
    """Looks at the backlog of reservation and deposit: an item past its `until` is a violation."""

    name = NAME
    needs = ("reservation_db", "deposit_db")
    about = frozenset({About.RESERVATIONS, About.REST})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._within = 0

    def look(self, part: Snapshot) -> None:
        for one in bookings_and_money(part, self.limits):
            if one.until is not None and one.is_late(part.now):
                self.add([Violation(NAME, one.subject, _told(one), one.remedy)])
            elif one.kind not in _ORDINARY:
                self._within += 1
                self.add([_pending(one)])

    def looked_at(self) -> str:
        return f"{self._within} wait within their time"


def _told(one: BacklogItem) -> str:
    return f"{one.kind} since {one.since:%Y-%m-%d %H:%M:%S} UTC, past its time: {one.what}"


def _pending(one: BacklogItem) -> Pending:
    # What only a person can end is allowed however long it takes.
    return Pending(one.kind, one.subject, one.what, "" if one.until else one.remedy)
