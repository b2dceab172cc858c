"""Each request id of a customer has led to one thing: a reservation of theirs, or a modification of one."""

from __future__ import annotations

from collections.abc import Iterator

from operations.checks.check import Check
from operations.limits import Limits
from operations.report import Violation
from operations.rows import ALIVE, Reservation
from operations.snapshot import About, Snapshot

NAME = "requests"
_RESTORED = "Was a database restored from a backup? A repetition of this request would be answered wrongly."
_TWICE = "Ask the customer which one is wanted, and cancel the other."


class Requests(Check):
    """Finds request ids that lead to nothing or to another customer's reservation, and what none leads to."""

    name = NAME
    needs = ("reservation_db",)
    about = frozenset({About.RESERVATIONS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._requests = 0

    def look(self, part: Snapshot) -> None:
        self._requests += len(part.requests)
        self.add(_pointers(part))
        self.add(_unasked(part, self.limits))

    def looked_at(self) -> str:
        return f"{self._requests} requests"


def _pointers(snapshot: Snapshot) -> Iterator[Violation]:
    for request in snapshot.requests:
        reservation = snapshot.reservations.get(request.reservation_id)
        what = ""
        if reservation is None:
            what = f"points at {request.reservation_id}, which does not exist"
        elif reservation.customer_id != request.customer_id:
            what = f"points at {request.reservation_id}, which is somebody else's"
        elif request.modification_id is not None:
            asked = snapshot.asked.get(request.modification_id)
            if asked is None or asked.reservation_id != request.reservation_id:
                what = f"points at the modification {request.modification_id}, which that one does not have"
        if what:
            yield Violation(NAME, f"{request.customer_id}/{request.request_id}", what, _RESTORED)


def _unasked(snapshot: Snapshot, limits: Limits) -> Iterator[Violation]:
    """A request id is given another attempt only after its last one failed: then it points at the new one. So
    what did not fail and is pointed at by none was made a second time. Request ids are kept as long as their
    reservation can change, and for the retention after that."""
    reserved = {one.reservation_id for one in snapshot.requests if one.modification_id is None}
    for reservation in snapshot.reservations.values():
        if reservation.state == "FAILED" or _may_be_forgotten(snapshot, reservation, limits):
            continue
        if reservation.reservation_id not in reserved:
            what = f"{reservation.state}, and no request id has led to it"
            yield Violation(NAME, reservation.reservation_id, what, _TWICE)
    modified = {one.modification_id for one in snapshot.requests}
    for asked in snapshot.asked.values():
        owner = snapshot.reservations.get(asked.reservation_id)
        if asked.state in ("FAILED", "CLOSED") or _may_be_forgotten(snapshot, owner, limits):
            continue
        if asked.modification_id not in modified:
            what = (
                f"a modification of {asked.reservation_id} ({asked.state}), and no request id has led to it"
            )
            yield Violation(NAME, asked.modification_id, what, _TWICE)


def _may_be_forgotten(snapshot: Snapshot, reservation: Reservation | None, limits: Limits) -> bool:
    if reservation is None or reservation.state in ALIVE:
        return False
    return not snapshot.is_younger(reservation.update_time, limits.recorded)
