"""Several changes in one transaction of PostgreSQL, of each a statement in every round trip.

One after the other, a group of forty changes with seven statements each would cost 280 round trips, and hold
its locks for as long. Here every change runs until its next statement; then the statements of all go to the
server together, and each goes on with its own result. To a change it looks as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from greenlet import getcurrent, greenlet
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

Statement = Callable[[], None]
"""Gives a statement to the driver."""


class _Abandoned(Exception):
    """Another change of the group failed; this one must let go of its cursor."""


class _Change(greenlet):
    """A change that has been begun. It hands each of its statements to whoever runs the round."""


def listen(engine: Engine) -> None:
    """Has the statements of changes in rounds wait for the round, those of others not."""

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, _context: object) -> bool:
        return _hand_over(lambda: cursor.execute(statement, parameters))

    @event.listens_for(engine, "do_execute_no_params")
    def execute_plain(cursor: Any, statement: str, _context: object) -> bool:
        return _hand_over(lambda: cursor.execute(statement))

    @event.listens_for(engine, "do_executemany")
    def execute_many(cursor: Any, statement: str, parameters: Any, _context: object) -> bool:
        return _hand_over(lambda: cursor.executemany(statement, parameters))


def _hand_over(statement: Statement) -> bool:
    """True once the statement has been run in a round; False if nobody is in one."""
    current = getcurrent()
    if not isinstance(current, _Change):
        return False
    assert current.parent is not None
    current.parent.switch(statement)
    return True


def run(connection: Connection, changes: Sequence[Callable[[], None]]) -> None:
    """Run all of them on this connection, within its transaction. Raises the first failure, also that of a
    statement; what the others were at is broken off then."""
    session: Any = connection.connection.driver_connection
    begun = [_Change(change) for change in changes]
    try:
        asking = [(change, statement) for change in begun if (statement := change.switch()) is not None]
        while asking:
            failure = _round(session, [statement for _, statement in asking])
            if failure is not None:
                # By way of a change, so that it becomes what SQLAlchemy makes of it.
                asking[0][0].throw(failure)
                raise failure
            asking = [
                (change, following) for change, _ in asking if (following := change.switch()) is not None
            ]
    finally:
        for change in begun:
            if change and not change.dead:
                _abandon(change)


def _round(session: Any, statements: Sequence[Statement]) -> Exception | None:
    try:
        with session.pipeline():
            for statement in statements:
                statement()
    except Exception as error:
        return error
    return None


def _abandon(change: _Change) -> None:
    try:
        change.throw(_Abandoned())
    except Exception:  # what it raises on its way out is not the reason why the group failed
        return


__all__ = ["listen", "run"]
