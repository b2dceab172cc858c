"""How far the database's clock is trusted to end bookings, and what is held back since it may have jumped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select

from dinemesh.kit.store import Transaction
from reservation_svc.domain import State
from reservation_svc.persistence.tables import reconcile_clock, reservations

_ONE = "database"
_ENDINGS = {
    State.PENDING_ACCEPTANCE.value: "decline",
    State.CONFIRMED.value: "complete",
    State.SEATED.value: "complete",
}
"""By state, how the clock ends a booking."""
IS_BOOKED = and_(reservations.c.state.in_(_ENDINGS), reservations.c.modification_id.is_(None))
"""Attempts and modifications are not among them: they wait for minutes, and what is decided of their money
must not wait for a person."""


@dataclass(frozen=True)
class Trust:
    """`until`: bookings due by then may be ended, None if nothing was ever judged. `held_time`: the clock
    when it was found to pass too many at once, None if it is not held back."""

    until: datetime | None
    held_time: datetime | None


def trust(tx: Transaction) -> Trust:
    """What `rely` or `hold` recorded last; nothing (None, None) before the first of them."""
    row = tx.execute(select(reconcile_clock).where(reconcile_clock.c.clock == _ONE)).one_or_none()
    return Trust(None, None) if row is None else Trust(row.trusted_time, row.held_time)


def rely(tx: Transaction, until: datetime) -> None:
    """The clock is trusted until now; nothing is held back."""
    changing = {"trusted_time": until, "held_time": None, "held_count": 0, "alive_count": 0}
    row = tx.insert(reconcile_clock).values(clock=_ONE, **changing)
    tx.execute(row.on_conflict_do_update(index_elements=[reconcile_clock.c.clock], set_=changing))


def hold(tx: Transaction, until: datetime | None, held: int, alive: int) -> bool:
    """Holds back what is due after `until`. False if it is held back already."""
    changing = {"held_time": tx.now, "held_count": held, "alive_count": alive}
    row = tx.insert(reconcile_clock).values(clock=_ONE, trusted_time=until, **changing)
    held_back = row.on_conflict_do_update(
        index_elements=[reconcile_clock.c.clock], set_=changing, where=reconcile_clock.c.held_time.is_(None)
    )
    return tx.changed(held_back) == 1


def endings(tx: Transaction, after: datetime | None, until: datetime) -> Counter[str]:
    """How many bookings became due since `after`, by what the clock would do to them."""
    since = () if after is None else (reservations.c.due_time > after,)
    return _counted(tx, reservations.c.due_time <= until, *since)


def alive(tx: Transaction) -> Counter[str]:
    """How many bookings there are that the clock would end at some time, by how."""
    return _counted(tx, reservations.c.due_time.is_not(None))


def _counted(tx: Transaction, *which: object) -> Counter[str]:
    query = (
        select(reservations.c.state, func.count().label("rows"))
        .where(IS_BOOKED, *which)  # type: ignore[arg-type]
        .group_by(reservations.c.state)
    )
    found: Counter[str] = Counter()
    for row in tx.execute(query):
        found[_ENDINGS[row.state]] += row.rows
    return found
