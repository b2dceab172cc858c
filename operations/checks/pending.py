"""Whatever waits for somebody is listed, and has a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from operations.limits import Limits
from operations.picture import Picture
from operations.report import Finding, Pending, Violation

NAME = "pending"
_SETTLING = "Its settling task is stuck: read its log (make logs), restart it (make stop, make start)."


def check(picture: Picture, limits: Limits) -> Finding:
    found = [*_reservations(picture, limits), *_deposits(picture, limits), *_refunds(picture, limits)]
    pending = tuple(one for one in found if isinstance(one, Pending))
    violations = tuple(one for one in found if isinstance(one, Violation))
    return Finding(NAME, f"{len(pending)} wait within their time", violations, pending)


def _reservations(picture: Picture, limits: Limits) -> Iterator[Violation | Pending]:
    for reservation in picture.reservations.values():
        subject, state = reservation.reservation_id, reservation.state
        if state == "PENDING_DEPOSIT":
            yield _until(picture, limits, state, subject, reservation.hold_expire_time, "its seats are held")
        if state == "PENDING_ACCEPTANCE" and reservation.accept_deadline is not None:
            late = picture.now - reservation.accept_deadline
            if late > limits.on_the_way:
                what = f"its time to be accepted passed {_seconds(late)} ago"
                yield Violation(NAME, subject, what, _SETTLING)
    for modification in picture.modifications:
        expiry = modification.hold_expire_time
        yield _until(
            picture, limits, "MODIFYING", modification.modification_id, expiry, "its extra seats are held"
        )


def _until(
    picture: Picture, limits: Limits, state: str, subject: str, expiry: datetime, what: str
) -> Violation | Pending:
    late = picture.now - expiry
    if late > limits.on_the_way:
        return Violation(NAME, subject, f"{state}, and its hold expired {_seconds(late)} ago", _SETTLING)
    return Pending(state, subject, f"{what} until {expiry:%H:%M:%S} UTC")


def _deposits(picture: Picture, limits: Limits) -> Iterator[Violation | Pending]:
    for deposit in picture.deposits.values():
        if deposit.state not in ("PENDING", "VOIDING"):
            continue
        age = picture.now - deposit.update_time
        what = f"whether it was charged is not known since {_seconds(age)}"
        if age > limits.undecided:
            remedy = "Is the provider up? Deposit asks it again and again; see its log for the answers."
            yield Violation(NAME, deposit.deposit_id, what, remedy)
        else:
            yield Pending(f"DEPOSIT {deposit.state}", deposit.deposit_id, what)


def _refunds(picture: Picture, limits: Limits) -> Iterator[Violation | Pending]:
    for refund in picture.refunds:
        deposit = picture.deposits[refund.deposit_id]
        amount = deposit.money(refund.amount_minor)
        age = picture.now - refund.update_time
        if refund.state == "FAILED":
            what = f"{amount} of {refund.deposit_id} refused by the provider ({refund.failure_code})"
            yield Pending("REFUND FAILED, to be retried by RetryRefund", refund.refund_id, what)
        elif refund.state == "PENDING" and age > limits.undecided:
            what = f"{amount} of {refund.deposit_id} have been on their way back for {_seconds(age)}"
            remedy = "Is the provider up? Deposit asks it again and again; see its log for the answers."
            yield Violation(NAME, refund.refund_id, what, remedy)
        elif refund.state == "PENDING":
            what = f"{amount} of {refund.deposit_id} are on their way back"
            yield Pending("REFUND PENDING", refund.refund_id, what)


def _seconds(age: timedelta) -> str:
    return f"{age.total_seconds():.0f} s"
