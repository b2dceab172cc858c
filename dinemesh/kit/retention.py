"""What may be forgotten is, after some days: in small steps beside the load, by any number of pods.

A table names the time from which its rows count, and a walk along its key deletes those that are older, a
page at a time: read in a reader, deleted by key in a transaction of the writer, with a rest in between. No
step waits for a lock. A crash leaves a walk unfinished; the next one begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    MetaData,
    Select,
    Table,
    Text,
    delete,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)

from dinemesh.kit import keyset, telemetry
from dinemesh.kit.inbox import InboxTables, Subscription
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Instant, Store, StoreUnavailable, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")

# Between two passes over what lies in the order of its age: a pass that finds nothing reads one page.
PASS_SECONDS = 3600.0
# The same of a table in no such order, of which every row has to be looked at.
WALK_SECONDS = 86_400.0
# Rows of one step: some milliseconds of the writer.
STEP_ROWS = 500
# A step rests so many times as long as it took, so that pruning takes a twentieth of a processor at most.
REST_TIMES = 19
# A step never rests for less: a reader, too, has other things to do.
LEAST_REST_SECONDS = 0.01
# The writer has more to do than it can: pruning waits.
BUSY_SECONDS = 1.0
# Two pods whose clocks differ a little mean the same pass.
_EARLY = 0.9

_ALWAYS = true()


def retention_table(metadata: MetaData) -> Table:
    """The table `retention`: when a pass over `what` was begun last, and up to when its rows may be gone;
    NULL while none was ever deleted."""
    return Table(
        "retention",
        metadata,
        Column("what", Text, primary_key=True),
        Column("pass_time", Instant),
        Column("through_time", Instant),
    )


@dataclass(frozen=True)
class Expiring:
    """Rows of a table that may go.

    `key` is the order in which they are walked, unique among the rows of `within`. A row may go when `time`
    is longer ago than the retention (NULL: never) and `only` holds. With `in_order` rows with higher keys are
    younger, so that a page with nothing old ends a walk; what is out of order is found later.
    """

    what: str
    table: Table
    key: tuple[Column[Any], ...]
    time: ColumnElement[datetime | None]
    within: ColumnElement[bool] = _ALWAYS
    only: ColumnElement[bool] = _ALWAYS
    in_order: bool = True

    @property
    def every(self) -> timedelta:
        """Returns the time between passes: an hour if `in_order`, a day where every row is looked at."""
        return timedelta(seconds=PASS_SECONDS if self.in_order else WALK_SECONDS)


class _Row(NamedTuple):
    key: tuple[Any, ...]
    time: datetime | None
    may_go: bool

    def is_before(self, moment: datetime) -> bool:
        return self.time is not None and self.time < moment


def _times(rows: Iterable[_Row]) -> list[datetime]:
    """From which those count that may go."""
    return [row.time for row in rows if row.may_go and row.time is not None]


def _timed(work: Callable[[Transaction], T]) -> Callable[[Transaction], tuple[T, float]]:
    """With the seconds that it took, without those that it waited for its turn."""

    def timed(tx: Transaction) -> tuple[T, float]:
        began = time.perf_counter()
        return work(tx), time.perf_counter() - began

    return timed


def expiring_outbox(outbox: Table) -> Expiring:
    """Events that were sent. One that was not stays, however old it is."""
    columns = outbox.c
    return Expiring(
        "outbox", outbox, (columns.position,), columns.create_time, only=columns.sent_time.is_not(None)
    )


def expiring_inbox(tables: InboxTables, *subscriptions: Subscription) -> list[Expiring]:
    """Records of what these subscribers took, of those to whom a duplicate does nothing without them. Ids of
    events are in the order of time (UUIDv7)."""
    columns = tables.inbox.c
    return [
        Expiring(
            f"inbox of {one.queue}",
            tables.inbox,
            (columns.event_id,),
            columns.receive_time,
            within=columns.subscriber == one.queue,
        )
        for one in subscriptions
        if one.outlives_inbox
    ]


class Retention:
    """Deletes what is older than `days`. `turn` belongs into a Periodic worker of PASS_SECONDS."""

    def __init__(
        self,
        store: Store,
        table: Table,
        expiring: Sequence[Expiring],
        *,
        days: int,
        step_rows: int = STEP_ROWS,
    ) -> None:
        self._store = store
        self._table = table
        self._expiring = expiring
        self._retention = timedelta(days=days)
        self._step_rows = step_rows

    async def turn(self) -> None:
        """One pass over each table of which one is due. A database that is away ends it; the next one goes
        on."""
        try:
            for one in self._expiring:
                await self._pass(one)
            await self.measure()
        except (StoreUnavailable, CommitInDoubt) as error:
            log.info("pruning waits for the database: %s", error)

    async def _pass(self, one: Expiring) -> None:
        now = await self._store.read(lambda tx: tx.now)
        # A clock that has jumped ahead, of this machine or of the database's, makes nothing old.
        before = min(now, datetime.now(UTC)) - self._retention
        if not await self._store.write(partial(self._begin, one=one, before=before)):
            await self._measure_oldest(one, now)
            return
        removed, after, oldest = 0, None, now
        while True:
            rows, took = await self._store.read(_timed(partial(self._page, one=one, after=after)))
            old = [row.key for row in rows if row.may_go and row.is_before(before)]
            oldest = min([oldest, *_times(row for row in rows if not row.is_before(before))])
            if old:
                done, for_deleting = await self._step(one, old, before)
                if done is None:  # another pod is at it
                    return
                removed, took = removed + done, took + for_deleting
            if len(rows) < self._step_rows or (
                one.in_order and not any(row.is_before(before) for row in rows)
            ):
                break
            after = rows[-1].key
            await asyncio.sleep(max(LEAST_REST_SECONDS, REST_TIMES * took))
        if not one.in_order:
            await self._store.write(partial(self._finish, one=one, before=before))
        telemetry.KEPT_OLDEST.labels(one.what).set(max(0.0, (now - oldest).total_seconds()))
        if removed:
            log.info(
                "%s: %d rows from before %s are deleted", one.what, removed, before.isoformat("T", "seconds")
            )

    async def _measure_oldest(self, one: Expiring, now: datetime) -> None:
        """Of a table that another pod has looked through: what this one has seen of it may be gone."""
        if not one.in_order:
            with suppress(KeyError):
                telemetry.KEPT_OLDEST.remove(one.what)
            return
        rows = await self._store.read(partial(self._page, one=one, after=None))
        age = now - min([now, *_times(rows)])
        telemetry.KEPT_OLDEST.labels(one.what).set(max(0.0, age.total_seconds()))

    def _begin(self, tx: Transaction, one: Expiring, before: datetime) -> bool:
        """Whether a pass is due, and nobody else is at it."""
        columns = self._table.c
        found = tx.execute(self._mine(tx, one, columns.pass_time)).one_or_none()
        # One that is cut off is begun again in the time of a short one.
        until_finished = before - (one.every - timedelta(seconds=PASS_SECONDS)) * _EARLY
        if found is None:
            first = tx.insert(self._table).values(what=one.what, pass_time=until_finished)
            return tx.changed(first.on_conflict_do_nothing()) == 1
        if found.pass_time is not None and abs(before - found.pass_time) < one.every * _EARLY:
            return False
        tx.execute(update(self._table).where(columns.what == one.what).values(pass_time=until_finished))
        return True

    def _finish(self, tx: Transaction, one: Expiring, before: datetime) -> None:
        if tx.execute(self._mine(tx, one, self._table.c.what)).one_or_none() is not None:
            tx.execute(update(self._table).where(self._table.c.what == one.what).values(pass_time=before))

    def _mine(self, tx: Transaction, one: Expiring, column: Column[Any]) -> Select[Any]:
        """The row of `retention`, locked; none while another pod has it. Nobody waits for it."""
        row = select(column).where(self._table.c.what == one.what)
        return row.with_for_update(skip_locked=True) if tx.dialect == "postgresql" else row

    def _page(self, tx: Transaction, one: Expiring, after: tuple[Any, ...] | None) -> list[_Row]:
        page = select(*one.key, one.time.label("counts_from"), one.only.label("may_go")).select_from(
            one.table
        )
        page = page.where(one.within).order_by(*one.key).limit(self._step_rows)
        if after is not None:
            page = page.where(keyset.after(one.key, after))
        size = len(one.key)
        return [_Row(tuple(row[:size]), row.counts_from, bool(row.may_go)) for row in tx.execute(page)]

    async def _step(
        self, one: Expiring, keys: Sequence[tuple[Any, ...]], before: datetime
    ) -> tuple[int | None, float]:
        """How many rows were deleted, None if another pod is at it; and how long that took the writer."""
        delete_ = _timed(partial(self._delete, one=one, keys=keys, before=before))
        while True:
            try:
                return await self._store.write(delete_, shed=True)
            except Refusal:  # too much to do
                await asyncio.sleep(BUSY_SECONDS)

    def _delete(
        self, tx: Transaction, one: Expiring, keys: Sequence[tuple[Any, ...]], before: datetime
    ) -> int | None:
        if tx.execute(self._mine(tx, one, self._table.c.what)).one_or_none() is None:
            return None
        key: Any = one.key[0] if len(one.key) == 1 else tuple_(*one.key)
        named = [values[0] for values in keys] if len(one.key) == 1 else keys
        # What became of a row since it was read is for the statement to see.
        old = (one.within, key.in_(named), one.time < literal(before, Instant), one.only)
        gone = delete(one.table).where(*old)
        if tx.dialect == "postgresql":
            # A row that somebody holds is not waited for; it goes with a later pass.
            free = select(*one.key).where(*old).with_for_update(skip_locked=True, of=one.table)
            gone = delete(one.table).where(one.within, key.in_(free))
        removed = tx.changed(gone)
        if removed:
            columns = self._table.c
            through = update(self._table).where(columns.what == one.what)
            tx.execute(through.values(through_time=before))
            tx.after_commit(partial(telemetry.PRUNED.labels(one.what).inc, removed))
        return removed

    async def measure(self) -> None:
        """How large the tables are, by what the database knows without counting."""
        for table in {one.table for one in self._expiring}:
            telemetry.KEPT_ROWS.labels(table.name).set(await self._store.read(partial(rows_of, table=table)))


def rows_of(tx: Transaction, table: Table) -> int:
    """About how many rows a table has: on PostgreSQL as of its last ANALYZE; on SQLite, where it is never too
    low, with gaps that deleted rows have left between those that remain."""
    if tx.dialect == "postgresql":
        known = "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = to_regclass(:name)"
        return int(tx.execute(text(known), {"name": table.name}).scalar_one())
    # In two statements: of both at once SQLite would read the whole table.
    span = f"SELECT (SELECT max(rowid) FROM {table.name}) - (SELECT min(rowid) FROM {table.name}) + 1"
    return int(tx.execute(text(span)).scalar_one() or 0)


def gone_before(tx: Transaction, what: str) -> datetime | None:
    """Rows of `what` from before this time may be gone; None where none ever was deleted, as in a database of
    a version that deleted nothing."""
    if tx.dialect == "postgresql":
        known = "SELECT count(*) FROM pg_class WHERE oid = to_regclass('retention')"
    else:
        known = "SELECT count(*) FROM sqlite_master WHERE name = 'retention'"
    if not tx.execute(text(known)).scalar_one():
        return None
    table = retention_table(MetaData())
    found = tx.execute(select(table.c.through_time).where(table.c.what == what)).scalar_one_or_none()
    return cast("datetime | None", found)


__all__ = [
    "Expiring",
    "Retention",
    "expiring_inbox",
    "expiring_outbox",
    "gone_before",
    "retention_table",
    "rows_of",
]
