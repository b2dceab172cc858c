"""The restaurant's bookings say what the reservations say."""

from __future__ import annotations

from collections.abc import Iterator

from operations.checks.check import Check
from operations.limits import Limits
from operations.report import Pending, Violation
from operations.rows import Booking, Reservation
from operations.snapshot import About, Snapshot

NAME = "bookings"
_REMEDY = (
    "Look at `make dead-letters` for restaurant.bookings and reservation.restaurants, "
    "then `make redrive QUEUE=all`, then `make replay SERVICE=all`."
)
# What staff marked while a cancel was on its way stays on their page: the reservation decides.
_OVER = frozenset({"WITHDRAWN", "DECLINED", "SEATED", "NO_SHOW", "COMPLETED"})
_EXPECTED: dict[str, frozenset[str]] = {
    "PENDING_ACCEPTANCE": frozenset({"RECEIVED"}),
    "CONFIRMED": frozenset({"ACCEPTED"}),
    "SEATED": frozenset({"SEATED"}),
    "COMPLETED": frozenset({"COMPLETED", "NO_SHOW"}),
    "NO_SHOW": frozenset({"NO_SHOW"}),
    "DECLINED": _OVER,
    "CANCELLED": _OVER,
}
_AT_THE_TABLE = frozenset({"SEATED", "COMPLETED"})
# States that the restaurant hears of, but need not know if it is all it ever heard.
_NEVER_OFFERED = frozenset({"PENDING_DEPOSIT", "FAILED"})


class Bookings(Check):
    """Compares the state of each reservation, and its terms until the meal, with the restaurant's booking."""

    name = NAME
    needs = ("reservation_db", "restaurant_db")
    about = frozenset({About.RESERVATIONS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._bookings = 0

    def look(self, part: Snapshot) -> None:
        self._bookings += len(part.bookings)
        self.add(_reservations(part, self.limits))
        self.add(_strangers(part))
        self.note(_guests_without_a_booking(part))

    def looked_at(self) -> str:
        return f"{self._bookings} bookings"


def _guests_without_a_booking(snapshot: Snapshot) -> Iterator[Pending]:
    """Staff seated them before they heard of the end, and nothing tells them that it was one."""
    for booking in snapshot.bookings.values():
        reservation = snapshot.reservations.get(booking.reservation_id)
        if reservation is None or reservation.state not in ("CANCELLED", "DECLINED"):
            continue
        if booking.state in _AT_THE_TABLE:
            what = (
                f"{reservation.state}, while the restaurant had it as {booking.state}; its seats are free"
                " again and its deposit went the way of the reservation"
            )
            yield Pending(
                "GUESTS WITHOUT A BOOKING", booking.reservation_id, what, "Tell the restaurant; it decides."
            )


def _reservations(snapshot: Snapshot, limits: Limits) -> Iterator[Violation | Pending]:
    for reservation in snapshot.reservations.values():
        booking = snapshot.bookings.get(reservation.reservation_id)
        what = _difference(reservation, booking)
        if not what:
            continue
        changed = max(reservation.update_time, booking.update_time if booking else reservation.update_time)
        if snapshot.is_younger(changed, limits.on_the_way):
            yield Pending("UNHEARD", reservation.reservation_id, what)
        else:
            yield Violation(NAME, reservation.reservation_id, what, _REMEDY)


def _difference(reservation: Reservation, booking: Booking | None) -> str:
    if reservation.state in _NEVER_OFFERED:
        if booking is None or booking.state == "WITHDRAWN":
            return ""
        return f"{reservation.state}, and the restaurant has it as {booking.state}"
    if booking is None:
        return f"{reservation.state}, and the restaurant does not know it"
    if booking.state not in _EXPECTED[reservation.state]:
        return f"{reservation.state}, and the restaurant has it as {booking.state}"
    if reservation.state not in ("PENDING_ACCEPTANCE", "CONFIRMED"):
        return ""
    if reservation.state == "CONFIRMED" and not booking.confirmed:
        return "CONFIRMED, and the restaurant has not heard so"
    ours = (reservation.restaurant_id, reservation.revision, reservation.dine_time, reservation.party_size)
    theirs = (booking.restaurant_id, booking.revision, booking.dine_time, booking.party_size)
    if ours != theirs:
        return f"revision {reservation.revision}, and the restaurant has other terms ({booking.revision})"
    return ""


def _strangers(snapshot: Snapshot) -> Iterator[Violation]:
    for booking in snapshot.bookings.values():
        if booking.reservation_id not in snapshot.reservations:
            what = f"the restaurant has it as {booking.state}, and no reservation has this id"
            yield Violation(
                NAME, booking.reservation_id, what, "Was a database restored? Withdraw it by hand."
            )
