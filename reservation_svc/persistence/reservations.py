"""Reservations with their deposits, instructions and open modification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Text, and_, bindparam, delete, func, not_, or_, select, update

from dinemesh.kit import keyset
from dinemesh.kit.store import Instant, Transaction
from reservation_svc.domain import (
    CancelledBy,
    Cause,
    DeclineCause,
    DepositLine,
    DepositState,
    Failure,
    Instruction,
    Kind,
    Modification,
    ModificationState,
    Reservation,
    Rules,
    State,
    Terms,
    Unpaid,
)
from reservation_svc.persistence.clock import IS_BOOKED
from reservation_svc.persistence.seat_inventory import policy_text, read_policy
from reservation_svc.persistence.tables import (
    deposits,
    failures,
    instructions,
    modifications,
    reservations,
)

_FIXED = frozenset(
    (
        "reservation_id",
        "customer_id",
        "restaurant_id",
        "policy",
        "create_time",
        "attempt_deadline",
        "hold_expire_time",
    )
)
_CHANGING = [column.name for column in reservations.columns if column.name not in _FIXED]

_FIND = (
    select(
        reservations,
        deposits.c.deposit_id,
        deposits.c.amount.label("deposit_amount"),
        deposits.c.state.label("deposit_state"),
        deposits.c.captured,
    )
    .join(deposits, deposits.c.reservation_id == reservations.c.reservation_id)
    .order_by(deposits.c.position)
)
_BY_ID = _FIND.where(reservations.c.reservation_id == bindparam("wanted"))
_MANY = _FIND.where(reservations.c.reservation_id.in_(bindparam("wanted", expanding=True)))
_INSTRUCTIONS = (
    select(instructions)
    .where(instructions.c.reservation_id.in_(bindparam("wanted", expanding=True)))
    .order_by(instructions.c.position)
)
_MODIFICATIONS = select(modifications).where(
    modifications.c.modification_id.in_(bindparam("wanted", expanding=True))
)
_SAVE = (
    update(reservations)
    .where(
        reservations.c.reservation_id == bindparam("saved_id"),
        reservations.c.version == bindparam("version_before"),
        reservations.c.state == bindparam("state_before"),
    )
    .values({name: bindparam(f"new_{name}", type_=reservations.c[name].type) for name in _CHANGING})
)
_SAVE_LINE = (
    update(deposits)
    .where(deposits.c.deposit_id == bindparam("saved_id"))
    .values(state=bindparam("new_state"), captured=bindparam("new_captured"))
)
_CLOSE = (
    update(modifications)
    .where(modifications.c.modification_id == bindparam("closed_id"), modifications.c.state == "OPEN")
    .values(
        state=bindparam("new_state"), failure=bindparam("new_failure"), decline_code=bindparam("new_code")
    )
)
_POSTPONE = (
    update(reservations)
    .where(
        reservations.c.reservation_id == bindparam("saved_id"),
        reservations.c.version == bindparam("version_before"),
    )
    .values(due_time=bindparam("new_due_time", type_=Instant))
)
_IS_DUE = and_(
    reservations.c.due_time <= bindparam("now", type_=Instant),
    or_(not_(IS_BOOKED), reservations.c.due_time <= bindparam("bookings_until", type_=Instant)),
)
_DUE = (
    select(reservations.c.reservation_id, failures.c.tries)
    .outerjoin(failures, failures.c.subject == reservations.c.reservation_id)
    .where(
        _IS_DUE, or_(failures.c.next_time.is_(None), failures.c.next_time <= bindparam("now", type_=Instant))
    )
    .order_by(reservations.c.due_time)
    .limit(bindparam("most"))
)
_FIRST_DUE = (
    select(func.min(reservations.c.due_time))
    .outerjoin(failures, failures.c.subject == reservations.c.reservation_id)
    .where(_IS_DUE, failures.c.subject.is_(None))
)
# Such as were moved by somebody else meanwhile.
_NOT_DUE_ANY_MORE = delete(failures).where(
    failures.c.subject.not_in(
        select(reservations.c.reservation_id).where(
            reservations.c.reservation_id == failures.c.subject,
            reservations.c.due_time <= bindparam("now", type_=Instant),
        )
    )
)
_VERSION = select(reservations.c.version).where(reservations.c.reservation_id == bindparam("wanted"))
_OF_DEPOSIT = select(deposits.c.reservation_id).where(deposits.c.deposit_id == bindparam("wanted"))
_PAGE = (
    select(reservations.c.reservation_id)
    .where(reservations.c.customer_id == bindparam("of_customer"))
    .order_by(reservations.c.create_time.desc(), reservations.c.reservation_id.desc())
    .limit(bindparam("most"))
)
_LATER_PAGE = _PAGE.where(
    keyset.before(
        (reservations.c.create_time, reservations.c.reservation_id),
        (bindparam("last_time", type_=Instant), bindparam("last_id", type_=Text)),
    )
)
# A customer's attempts that took no deposit, newest first; more than these change no decision.
_MOST_UNPAID = 50
_UNPAID = (
    select(
        reservations.c.state, reservations.c.party_size, reservations.c.create_time, reservations.c.failure
    )
    .where(
        reservations.c.customer_id == bindparam("of_customer"),
        reservations.c.create_time > bindparam("since", type_=Instant),
        reservations.c.accept_deadline.is_(None),
    )
    .order_by(reservations.c.create_time.desc())
    .limit(_MOST_UNPAID)
)
_INSERT = reservations.insert()
_INSERT_LINE = deposits.insert()
_INSERT_INSTRUCTION = instructions.insert()
_INSERT_MODIFICATION = modifications.insert()


def find(tx: Transaction, reservation_id: str) -> Reservation | None:
    """The reservation with its deposits, instructions and open modification; None if there is none of that
    id."""
    rows = tx.execute(_BY_ID, {"wanted": reservation_id}).all()
    return _read(tx, rows)[0] if rows else None


def of_deposit(tx: Transaction, deposit_id: str) -> str | None:
    """The reservation_id of a deposit."""
    found: str | None = tx.execute(_OF_DEPOSIT, {"wanted": deposit_id}).scalar_one_or_none()
    return found


def version(tx: Transaction, reservation_id: str) -> int | None:
    """Grows with every change; None if there is no such reservation."""
    found: int | None = tx.execute(_VERSION, {"wanted": reservation_id}).scalar_one_or_none()
    return found


def page(
    tx: Transaction, customer_id: str, last: tuple[datetime, str] | None, most: int
) -> Sequence[Reservation]:
    """The customer's reservations, newest first, after the one named by (create_time, reservation_id)."""
    parameters: dict[str, Any] = {"of_customer": customer_id, "most": most}
    statement = _PAGE
    if last is not None:
        statement = _LATER_PAGE
        parameters |= {"last_time": last[0], "last_id": last[1]}
    wanted = [row.reservation_id for row in tx.execute(statement, parameters)]
    if not wanted:
        return []
    found = _read(tx, tx.execute(_MANY, {"wanted": wanted}).all())
    by_id = {one.reservation_id: one for one in found}
    return [by_id[one] for one in wanted]


@dataclass(frozen=True, slots=True)
class Due:
    """A reservation that the clock has something to do with; `tries`: how often that has failed."""

    reservation_id: str
    tries: int


def due(tx: Transaction, now: datetime, most: int, bookings_until: datetime | None = None) -> list[Due]:
    """What the clock has something to do with, the oldest first: bookings due by `bookings_until` (now),
    attempts and modifications that are due now. Without those that failed and rest."""
    parameters = {"now": now, "bookings_until": bookings_until or now, "most": most}
    return [Due(row.reservation_id, row.tries or 0) for row in tx.execute(_DUE, parameters)]


def lateness(tx: Transaction, now: datetime, bookings_until: datetime | None = None) -> timedelta:
    """How long the clock has had something to do that is not done, and does not fail."""
    parameters = {"now": now, "bookings_until": bookings_until or now}
    first: datetime | None = tx.execute(_FIRST_DUE, parameters).scalar_one()
    return max(now - (first or now), timedelta(0))


def forget_failures(tx: Transaction) -> None:
    """Of what is not due any more."""
    tx.execute(_NOT_DUE_ANY_MORE, {"now": tx.now})


def unpaid(tx: Transaction, customer_id: str, since: datetime) -> Unpaid:
    """What became of the customer's attempts begun after `since` that took no deposit. Attempts that were
    turned away for overload do not count: they are nobody's fault."""
    in_flight = seats = failed = 0
    last_failed: datetime | None = None
    for row in tx.execute(_UNPAID, {"of_customer": customer_id, "since": since}):
        if row.state == State.PENDING_DEPOSIT:
            in_flight += 1
            seats += row.party_size
        elif row.failure != Failure.DEPOSIT_OVERLOADED:
            failed += 1
            last_failed = last_failed or row.create_time
    return Unpaid(in_flight, seats, failed, last_failed)


def modification(tx: Transaction, modification_id: str) -> Modification | None:
    """A modification, whether open or not."""
    row = tx.execute(_MODIFICATIONS, {"wanted": [modification_id]}).one_or_none()
    return None if row is None else _modification(row)


def insert(tx: Transaction, reservation: Reservation, rules: Rules) -> None:
    """A new attempt."""
    values = _changing(reservation, rules)
    values |= {
        "reservation_id": reservation.reservation_id,
        "customer_id": reservation.customer_id,
        "restaurant_id": reservation.restaurant_id,
        "policy": policy_text(reservation.policy),
        "create_time": reservation.create_time,
        "attempt_deadline": reservation.attempt_deadline,
        "hold_expire_time": reservation.hold_expire_time,
    }
    tx.execute(_INSERT, values)
    _insert_lines(tx, reservation, 0)


def save(tx: Transaction, before: Reservation, after: Reservation, rules: Rules) -> bool:
    """One guarded update and what hangs on it. False, and nothing written, if somebody else moved it
    meanwhile."""
    parameters: dict[str, Any] = {f"new_{name}": value for name, value in _changing(after, rules).items()}
    parameters |= {
        "saved_id": before.reservation_id,
        "version_before": before.version,
        "state_before": before.state.value,
    }
    if tx.changed(_SAVE, parameters) != 1:
        return False
    changed = [
        {"saved_id": new.deposit_id, "new_state": new.state.value, "new_captured": new.captured}
        for old, new in zip(before.deposits, after.deposits, strict=False)
        if old != new
    ]
    if changed:
        tx.execute(_SAVE_LINE, changed)
    _insert_lines(tx, after, len(before.deposits))
    known = len(before.instructions)
    ordered = [
        {
            "instruction_id": order.instruction_id,
            "reservation_id": after.reservation_id,
            "position": position,
            "kind": order.kind.value,
            "deposit_id": order.deposit_id,
            "amount": order.amount,
            "cause": order.cause.value,
        }
        for position, order in enumerate(after.instructions[known:], known)
    ]
    if ordered:
        tx.execute(_INSERT_INSTRUCTION, ordered)
    wanted = after.modification
    if wanted is not None and before.modification is None:
        tx.execute(
            _INSERT_MODIFICATION,
            {
                "modification_id": wanted.modification_id,
                "reservation_id": after.reservation_id,
                "dine_time": wanted.terms.dine_time,
                "party_size": wanted.terms.party_size,
                "price": wanted.terms.price,
                "revision": wanted.terms.revision,
                "note": wanted.note,
                "deposit_id": wanted.deposit_id,
                "attempt_deadline": wanted.attempt_deadline,
                "hold_expire_time": wanted.hold_expire_time,
                "state": wanted.state.value,
                "failure": None,
                "decline_code": "",
            },
        )
    return True


def close(tx: Transaction, closed: Modification) -> None:
    """How an open modification ended."""
    parameters = {
        "closed_id": closed.modification_id,
        "new_state": closed.state.value,
        "new_failure": closed.failure.value if closed.failure else None,
        "new_code": closed.decline_code,
    }
    tx.execute(_CLOSE, parameters)


def postpone(tx: Transaction, reservation: Reservation, due_time: datetime | None) -> None:
    """When to look at it again; no change of the reservation."""
    parameters = {
        "saved_id": reservation.reservation_id,
        "version_before": reservation.version,
        "new_due_time": due_time,
    }
    tx.execute(_POSTPONE, parameters)


def _changing(reservation: Reservation, rules: Rules) -> dict[str, Any]:
    terms = reservation.terms
    wanted = reservation.modification
    return {
        "state": reservation.state.value,
        "dine_time": terms.dine_time,
        "party_size": terms.party_size,
        "price": terms.price,
        "revision": terms.revision,
        "note": reservation.note,
        "update_time": reservation.update_time,
        "accept_deadline": reservation.accept_deadline,
        "cancelled_by": reservation.cancelled_by.value if reservation.cancelled_by else None,
        "decline_cause": reservation.decline_cause.value if reservation.decline_cause else None,
        "failure": reservation.failure.value if reservation.failure else None,
        "decline_code": reservation.decline_code,
        "modification_id": wanted.modification_id if wanted else None,
        "instruction_count": len(reservation.instructions),
        "priced_modifications": reservation.priced_modifications,
        "due_time": reservation.due_time(reservation.update_time, rules),
        "version": reservation.version,
    }


def _insert_lines(tx: Transaction, reservation: Reservation, first: int) -> None:
    for position, line in enumerate(reservation.deposits[first:], first):
        tx.execute(
            _INSERT_LINE,
            {
                "deposit_id": line.deposit_id,
                "reservation_id": reservation.reservation_id,
                "position": position,
                "amount": line.amount,
                "state": line.state.value,
                "captured": line.captured,
            },
        )


def _read(tx: Transaction, rows: Iterable[Row[Any]]) -> list[Reservation]:
    """Reservations from their rows, one row per deposit; fetches what hangs on them."""
    heads: dict[str, Row[Any]] = {}
    lines: defaultdict[str, list[DepositLine]] = defaultdict(list)
    for row in rows:
        heads.setdefault(row.reservation_id, row)
        line = DepositLine(row.deposit_id, row.deposit_amount, DepositState(row.deposit_state), row.captured)
        lines[row.reservation_id].append(line)
    orders: defaultdict[str, list[Instruction]] = defaultdict(list)
    if instructed := [one.reservation_id for one in heads.values() if one.instruction_count]:
        for row in tx.execute(_INSTRUCTIONS, {"wanted": instructed}):
            order = Instruction(
                row.instruction_id, Kind(row.kind), row.deposit_id, row.amount, Cause(row.cause)
            )
            orders[row.reservation_id].append(order)
    wanted: dict[str, Modification] = {}
    if modified := [one.modification_id for one in heads.values() if one.modification_id]:
        for row in tx.execute(_MODIFICATIONS, {"wanted": modified}):
            wanted[row.reservation_id] = _modification(row)
    return [
        _reservation(head, tuple(lines[key]), tuple(orders[key]), wanted.get(key))
        for key, head in heads.items()
    ]


def _reservation(
    row: Row[Any],
    lines: tuple[DepositLine, ...],
    orders: tuple[Instruction, ...],
    wanted: Modification | None,
) -> Reservation:
    return Reservation(
        reservation_id=row.reservation_id,
        customer_id=row.customer_id,
        restaurant_id=row.restaurant_id,
        state=State(row.state),
        terms=Terms(row.dine_time, row.party_size, row.price, row.revision),
        note=row.note,
        policy=read_policy(row.policy),
        create_time=row.create_time,
        update_time=row.update_time,
        attempt_deadline=row.attempt_deadline,
        hold_expire_time=row.hold_expire_time,
        version=row.version,
        accept_deadline=row.accept_deadline,
        cancelled_by=CancelledBy(row.cancelled_by) if row.cancelled_by else None,
        decline_cause=DeclineCause(row.decline_cause) if row.decline_cause else None,
        failure=Failure(row.failure) if row.failure else None,
        decline_code=row.decline_code,
        deposits=lines,
        instructions=orders,
        modification=wanted,
        priced_modifications=row.priced_modifications,
    )


def _modification(row: Row[Any]) -> Modification:
    return Modification(
        modification_id=row.modification_id,
        terms=Terms(row.dine_time, row.party_size, row.price, row.revision),
        note=row.note,
        deposit_id=row.deposit_id,
        attempt_deadline=row.attempt_deadline,
        hold_expire_time=row.hold_expire_time,
        state=ModificationState(row.state),
        failure=Failure(row.failure) if row.failure else None,
        decline_code=row.decline_code,
    )
