"""Each request id of a customer has led to one thing: a reservation of theirs, or a modification of one."""

from __future__ import annotations

from collections.abc import Iterator

from operations.checks.check import Check
from operations.limits import Limits
from operations.picture import About, Picture
from operations.report import Violation
from operations.rows import ALIVE, Reservation

NAME = "requests"
_RESTORED = "Was a database restored from a backup? A repetition of this request would be answered wrongly."
_TWICE = "Ask the customer which one is wanted, and cancel the other."


class Requests(Check):
    name = NAME
    needs = ("reservation_db",)
    about = frozenset({About.RESERVATIONS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._requests = 0

    def look(self, part: Picture) -> None:
        self._requests += len(part.requests)
        self.add(_pointers(part))
        self.add(_unasked(part, self.limits))

    def looked_at(self) -> str:
        return f"{self._requests} requests"


def _pointers(picture: Picture) -> Iterator[Violation]:
    for request in picture.requests:
        reservation = picture.reservations.get(request.reservation_id)
        what = ""
        if reservation is None:
            what = f"points at {request.reservation_id}, which does not exist"
        elif reservation.customer_id != request.customer_id:
            what = f"points at {request.reservation_id}, which is somebody else's"
        elif request.modification_id is not None:
            asked = picture.asked.get(request.modification_id)
            if asked is None or asked.reservation_id != request.reservation_id:
                what = f"points at the modification {request.modification_id}, which that one does not have"
        if what:
            yield Violation(NAME, f"{request.customer_id}/{request.request_id}", what, _RESTORED)


def _unasked(picture: Picture, limits: Limits) -> Iterator[Violation]:
    """A request id is given another attempt only after its last one failed: then it points at the new one. So
    what did not fail and is pointed at by none was made a second time. Request ids are kept as long as their
    reservation can change, and for the retention after that."""
    reserved = {one.reservation_id for one in picture.requests if one.modification_id is None}
    for reservation in picture.reservations.values():
        if reservation.state == "FAILED" or _may_be_forgotten(picture, reservation, limits):
            continue
        if reservation.reservation_id not in reserved:
            what = f"{reservation.state}, and no request id has led to it"
            yield Violation(NAME, reservation.reservation_id, what, _TWICE)
    modified = {one.modification_id for one in picture.requests}
    for asked in picture.asked.values():
        owner = picture.reservations.get(asked.reservation_id)
        if asked.state in ("FAILED", "CLOSED") or _may_be_forgotten(picture, owner, limits):
            continue
        if asked.modification_id not in modified:
            what = (
                f"a modification of {asked.reservation_id} ({asked.state}), and no request id has led to it"
            )
            yield Violation(NAME, asked.modification_id, what, _TWICE)


def _may_be_forgotten(picture: Picture, reservation: Reservation | None, limits: Limits) -> bool:
    if reservation is None or reservation.state in ALIVE:
        return False
    return not picture.is_younger(reservation.update_time, limits.recorded)
