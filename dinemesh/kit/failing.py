"""What fails while it is reconciled waits, longer each time, so that it holds up nothing else.

A table of its own keeps count, so that nothing has to be written to a row that cannot be changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    delete,
    exists,
    func,
    select,
)

from dinemesh.kit.store import Instant, Transaction

LONGEST_PAUSE_SECONDS = 300.0
"""Between two looks at what goes on failing: the first pause, doubled each time, up to this."""
FIRST_PAUSE = timedelta(seconds=1)
_MOST_DOUBLINGS = 10
_MOST_TEXT = 300


def failures_table(metadata: MetaData) -> Table:
    """`subject` is the service's own name of what fails; since when, how often, why, and the next look."""
    return Table(
        "reconcile_failures",
        metadata,
        Column("subject", Text, primary_key=True),
        Column("tries", Integer, nullable=False),
        Column("since_time", Instant, nullable=False),
        Column("next_time", Instant, nullable=False),
        Column("error", Text, nullable=False),
    )


def put_off(tx: Transaction, table: Table, subject: str, error: BaseException) -> timedelta:
    """Notes a failure. Answers how long `subject` now waits."""
    tries = select(table.c.tries).where(table.c.subject == subject)
    known: int = tx.execute(tries).scalar_one_or_none() or 0
    longest = timedelta(seconds=LONGEST_PAUSE_SECONDS)
    pause: timedelta = min(FIRST_PAUSE * 2 ** min(known, _MOST_DOUBLINGS), longest)
    changing = {"tries": known + 1, "next_time": tx.now + pause, "error": told(error)}
    row = tx.insert(table).values(subject=subject, since_time=tx.now, **changing)
    tx.execute(row.on_conflict_do_update(index_elements=[table.c.subject], set_=changing))
    return pause


def forget(tx: Transaction, table: Table, subjects: Sequence[str]) -> None:
    """They fail no longer."""
    if subjects:
        tx.execute(delete(table).where(table.c.subject.in_(subjects)))


def rests(tx: Transaction, table: Table, subject: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether `subject`, a column of another table, waits for its next look: no longer than any may, since
    the clock may have been ahead when that was noted."""
    latest = tx.now + timedelta(seconds=LONGEST_PAUSE_SECONDS)
    waits = and_(table.c.next_time > tx.now, table.c.next_time <= latest)
    return exists(select(table.c.subject).where(table.c.subject == subject, waits))


def count(tx: Transaction, table: Table) -> int:
    """Returns how many subjects fail, including those that wait for their next look."""
    found: int = tx.execute(select(func.count()).select_from(table)).scalar_one()
    return found


def told(error: BaseException) -> str:
    """An error in one line, without the values of the row that a database would add."""
    cause = str(getattr(error, "orig", None) or error).strip()
    return f"{type(error).__name__}: {cause.splitlines()[0] if cause else ''}"[:_MOST_TEXT]
