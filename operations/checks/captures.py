"""Each captured cent belongs to one live reservation, or was forfeited by the policy, or goes back once; and
there is no booking without its deposit."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dinemesh.kit import currency
from operations.checks.check import Check
from operations.limits import Limits
from operations.money import per_currency
from operations.report import Pending, Violation
from operations.rows import Deposit, Instruction, Line, Refund, Reservation
from operations.snapshot import About, Snapshot

NAME = "captures"
BOOKED = frozenset({"PENDING_ACCEPTANCE", "CONFIRMED"})
_REDRIVE = (
    "Look at `make dead-letters` for deposit.instructions, then `make redrive QUEUE=all`, "
    "then `make replay SERVICE=all`."
)
_BY_HAND = "Read the reservation and the deposit; give back by hand what belongs to the customer."


@dataclass(frozen=True)
class _Orders:
    """All that reservation ordered for one deposit."""

    orders: tuple[Instruction, ...] = ()

    def expects(self, line: Line) -> int:
        """What is held after all orders."""
        if not line.captured or any(order.kind == "VOID" for order in self.orders):
            return 0
        return line.amount - sum(order.amount for order in self.orders)

    @property
    def voided(self) -> bool:
        return any(order.kind == "VOID" for order in self.orders)


_NONE = _Orders()


class Captures(Check):
    """Compares, in minor units, what is held of each captured deposit with what reservation's instructions
    leave of it, and finds refunds and forfeits that none of them ordered."""

    name = NAME
    needs = ("reservation_db", "deposit_db")
    about = frozenset({About.RESERVATIONS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._reservations = 0
        self._held: dict[str, int] = {}

    def look(self, part: Snapshot) -> None:
        orders = _orders(part)
        self._reservations += len(part.reservations)
        for deposit in part.deposits.values():
            if deposit.captured_minor:
                self._held[deposit.currency] = self._held.get(deposit.currency, 0) + deposit.held
                self.add(_capture(part, self.limits, deposit, orders))
        for reservation in part.reservations.values():
            self.add(_booking(part, reservation, orders))
        self.add(_unordered(part, orders))

    def looked_at(self) -> str:
        held = per_currency((minor, code) for code, minor in self._held.items())
        return f"{self._reservations} reservations; {held} held for them"


def _orders(snapshot: Snapshot) -> Mapping[str, _Orders]:
    by_deposit: dict[str, list[Instruction]] = defaultdict(list)
    for order in (*snapshot.orders, *snapshot.elsewhere.orders):
        by_deposit[order.deposit_id].append(order)
    return {key: _Orders(tuple(orders)) for key, orders in by_deposit.items()}


def _capture(
    snapshot: Snapshot, limits: Limits, deposit: Deposit, orders: Mapping[str, _Orders]
) -> Iterator[Violation | Pending]:
    """Where what is held of a captured deposit belongs."""
    subject, held = deposit.deposit_id, deposit.money(deposit.held)
    line = snapshot.line(subject)
    reservation = snapshot.reservation(line.reservation_id) if line else None
    if line is None or reservation is None:
        what = f"captured, {held} are held, and no reservation knows it"
        yield Violation(NAME, subject, what, _BY_HAND)
        return
    if (deposit.reservation_id, deposit.customer_id) != (reservation.reservation_id, reservation.customer_id):
        what = f"captured for {deposit.reservation_id}, and counted for {reservation.reservation_id}"
        yield Violation(NAME, subject, what, _BY_HAND)
    if reservation.currency and reservation.currency != deposit.currency:
        what = f"captured in {deposit.currency}, and the price is in {reservation.currency}"
        yield Violation(NAME, subject, what, _BY_HAND)
    expected = orders.get(subject, _NONE).expects(line)
    whose = f"reservation {reservation.reservation_id} ({reservation.state})"
    if deposit.held == expected:
        return
    if deposit.held < expected:
        what = f"{held} are held, and the {whose} counts on {deposit.money(expected)}"
        yield Violation(NAME, subject, what, _BY_HAND)
    elif _is_awaited(snapshot, reservation, subject):
        yield Pending("CHARGED", subject, f"{held} are held, and the {whose} is about to take them")
    elif not line.captured and not orders.get(subject, _NONE).voided:
        # The reservation gave the attempt up, and will hear of the capture and order it back.
        what = f"{held} are held, and the {whose} has not heard of it"
        if snapshot.is_younger(deposit.update_time, limits.on_the_way):
            yield Pending("UNHEARD", subject, what)
        else:
            yield Violation(
                NAME, subject, what, _REDRIVE.replace("deposit.instr", "reservation.deposits, deposit.instr")
            )
    else:
        what = f"{held} are held; after the orders of the {whose} it should be {deposit.money(expected)}"
        ordered = max(reservation.update_time, deposit.update_time)
        if snapshot.is_younger(ordered, limits.on_the_way):
            yield Pending("ORDERED", subject, what)
        else:
            yield Violation(NAME, subject, what, _REDRIVE)


def _is_awaited(snapshot: Snapshot, reservation: Reservation, deposit_id: str) -> bool:
    if reservation.state == "PENDING_DEPOSIT":
        return True
    return deposit_id in snapshot.awaited


def _booking(
    snapshot: Snapshot, reservation: Reservation, orders: Mapping[str, _Orders]
) -> Iterator[Violation | Pending]:
    """What a reservation counts on is its price while it is booked, and nothing afterwards; and it exists."""
    subject = reservation.reservation_id
    lines = snapshot.lines_of(subject)
    counted = sum(orders.get(line.deposit_id, _NONE).expects(line) for line in lines)
    expected = reservation.price if reservation.state in BOOKED else 0
    if counted != expected and reservation.state != "PENDING_DEPOSIT":
        price, counts_on = (
            currency.text(minor, reservation.currency) for minor in (reservation.price, counted)
        )
        what = f"{reservation.state} with a price of {price}, and counts on {counts_on}"
        remedy = _BY_HAND if counted > expected else "Decline it: a booking without its deposit is not one."
        yield Violation(NAME, subject, what, remedy)
    for line in lines:
        deposit = snapshot.deposit(line.deposit_id)
        if line.captured and (deposit is None or not deposit.captured_minor):
            what = f"counts on the deposit {line.deposit_id}, which was never captured"
            yield Violation(NAME, subject, what, "Decline it: a booking without its deposit is not one.")


def _unordered(snapshot: Snapshot, orders: Mapping[str, _Orders]) -> Iterator[Violation]:
    """Nothing was returned or kept that reservation did not order, and nothing kept that was not late."""
    amounts = {one.instruction_id: one for one in (*snapshot.orders, *snapshot.elsewhere.orders)}
    for refund in snapshot.refunds:
        deposit = snapshot.deposits[refund.deposit_id]
        order = amounts.get(refund.refund_id)
        by_refund = order is not None and order.kind == "REFUND" and refund.amount_minor <= order.amount
        if not by_refund and not _by_void(refund, deposit, orders):
            what = f"a refund of {deposit.money(refund.amount_minor)} that no reservation ordered"
            yield Violation(NAME, refund.refund_id, what, _BY_HAND)
    for forfeit in snapshot.forfeits:
        deposit = snapshot.deposits[forfeit.deposit_id]
        order = amounts.get(forfeit.forfeit_id)
        reservation = snapshot.reservation(order.reservation_id) if order else None
        kept = f"{deposit.money(forfeit.amount_minor)} of {forfeit.deposit_id} were kept"
        if order is None or order.kind != "FORFEIT" or forfeit.amount_minor > order.amount:
            yield Violation(NAME, forfeit.forfeit_id, f"{kept}, and no reservation ordered it", _BY_HAND)
        elif reservation is None or not _may_forfeit(reservation):
            what = f"{kept}, although the reservation is neither a no-show nor a late cancel"
            yield Violation(NAME, forfeit.forfeit_id, what, _BY_HAND)


def _by_void(refund: Refund, deposit: Deposit, orders: Mapping[str, _Orders]) -> bool:
    """A void of what was captured gives back what is held, once, under an id of its own."""
    mine = str(uuid.uuid5(uuid.UUID(deposit.deposit_id), "void"))
    ordered = deposit.void_ordered and orders.get(deposit.deposit_id, _NONE).voided
    return ordered and refund.refund_id == mine and refund.amount_minor <= deposit.captured_minor


def _may_forfeit(reservation: Reservation) -> bool:
    late = reservation.state == "CANCELLED" and reservation.cancelled_by == "CUSTOMER"
    return late or reservation.state == "NO_SHOW"
