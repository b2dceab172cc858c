"""One writer thread with group commit and a few reader threads, the same over SQLite and PostgreSQL.

`change` and `query` are plain functions of an open transaction. Whatever waits runs in one
transaction, one item after the other, and every outcome, refusals too, is released after the commit.

A database that would fail the next item as well is down: from then on nobody waits for it, each change is
refused at once, and the writer tries by itself until it works again. A watchdog sees to it that nobody waits
either for a writer that stands still.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar, cast

from sqlalchemy import BigInteger
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, CursorResult, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Executable
from sqlalchemy.sql.dml import Insert, UpdateBase
from sqlalchemy.sql.schema import Table
from sqlalchemy.types import TypeDecorator

from dinemesh.kit import crash, engines, rounds, telemetry
from dinemesh.kit.instants import from_micros, to_micros
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store_errors import CommitInDoubt, StoreInUse, StoreUnavailable

__all__ = [
    "CommitInDoubt",
    "Instant",
    "Store",
    "StoreInUse",
    "StoreUnavailable",
    "Transaction",
    "insert_once",
]

T = TypeVar("T")
log = logging.getLogger(__name__)

# A group of hundreds of rows costs one sync like a single one; 64 keeps the wait of the first item short.
MAX_GROUP = 64
# Under load a millisecond of patience makes fuller groups (measured: +17 % at 100 calls in flight).
LINGER_SECONDS = 0.001
LINGER_FROM = 3
# What another pod has in hand for longer is not waited for; a group takes milliseconds.
PUT_OFF_SECONDS = 2.0
# Before a group is tried again of which nothing could be taken.
PUT_OFF_PAUSE_SECONDS = 0.002
# While something waits for longer than a pod may rest, that one is looked for so often.
HUNG_LOOK_SECONDS = 0.25
# Deadlock, serialization failure, busy: the item runs alone this often before it is refused.
SINGLE_ATTEMPTS = 3
RETRY_AFTER_SECONDS = 1.0

# How often the watchdog looks at the writer. Looks are counted and the time is not measured, since after a
# pause of the process nothing has gone on either.
LOOK_SECONDS = 0.25
# The writer has not come a step further: what waits and what comes is refused. Readiness knows within 3 s.
STALLED_LOOKS = 7
# Still not: its items are told how they stand, and its session is cut. Above the timeout of a statement.
CUT_LOOKS = 24
# A database that is down is tried this often.
TRY_SECONDS = 0.5
# One change that fails for a reason of its own must not keep a whole service out for longer, at a time.
REHEARSAL_SECONDS = 60.0
# A writer that wrote so lately need not be asked whether it can.
QUIET_SECONDS = 0.5
# Readers come back from a database that is away with one of them ahead, this often.
READER_REST_SECONDS = 0.5

_IN_DOUBT = "the outcome of a commit is unknown"
_STALLED = "the database does not answer"


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as BIGINT microseconds since the epoch on both engines."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


class _Moment:
    """The database's clock, read once per transaction and only if somebody asks."""

    def __init__(self, connection: Connection, clock: Callable[[Connection], datetime]) -> None:
        self._connection = connection
        self._clock = clock
        self._now: datetime | None = None
        self.steps = 0
        """How far the transaction has come; for the watchdog."""

    def now(self) -> datetime:
        if self._now is None:
            self._now = self._clock(self._connection)
        return self._now


class Transaction:
    """An open transaction as a use case sees it: it cannot see that it has company."""

    def __init__(self, connection: Connection, moment: _Moment, *, read_only: bool = False) -> None:
        self._connection = connection
        self._moment = moment
        self._read_only = read_only
        self._after_commit: list[Callable[[], None]] = []
        self._appended: list[tuple[Insert, Mapping[str, Any]]] = []
        self.wrote = False

    @property
    def now(self) -> datetime:
        """The one clock of the service: its database's, aware UTC."""
        return self._moment.now()

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._connection.dialect.name

    def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run one statement. A reading transaction refuses to write."""
        writes = isinstance(statement, UpdateBase)
        if writes and self._read_only:
            raise TypeError("a query must not write: use Store.write")
        if writes:
            self.wrote = True
        self._moment.steps += 1
        return cast("CursorResult[Any]", self._connection.execute(statement, parameters))

    def changed(
        self,
        statement: UpdateBase,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        """Rows that an INSERT, UPDATE or DELETE touched; right on both engines."""
        if self._read_only:
            raise TypeError("a query must not write: use Store.write")
        self._moment.steps += 1
        options = {"preserve_rowcount": True}
        result = self._connection.execute(statement, parameters, execution_options=options)
        rows = cast("CursorResult[Any]", result).rowcount
        if rows != 0:
            self.wrote = True
        return rows

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """The engine's own INSERT, with on_conflict_do_nothing and on_conflict_do_update."""
        return postgresql.insert(table) if self.dialect == "postgresql" else sqlite.insert(table)

    def append(self, insert: Insert, row: Mapping[str, Any]) -> None:
        """Insert a row at the end of the transaction, together with those of everybody else in it. For rows
        that nothing in this transaction reads, and whose key is new."""
        if self._read_only:
            raise TypeError("a query must not write: use Store.write")
        self._appended.append((insert, row))

    def flush(self) -> None:
        """Insert what was appended so far, for a statement that has to see it."""
        appended, self._appended = self._appended, []
        for insert, row in appended:
            self.execute(insert, row)

    def after_commit(self, call: Callable[[], None]) -> None:
        """Run `call` in the event loop once the commit is done; forgotten if there is none."""
        self._after_commit.append(call)


def insert_once(table: Table) -> Mapping[str, postgresql.Insert | sqlite.Insert]:
    """By dialect: an INSERT that does nothing where the key is taken. To be built once, not per call."""
    return {
        "sqlite": sqlite.insert(table).on_conflict_do_nothing(),
        "postgresql": postgresql.insert(table).on_conflict_do_nothing(),
    }


Change = Callable[[Transaction], T]


@dataclass(eq=False)
class _Item(Generic[T]):
    change: Change[T]
    future: asyncio.Future[T]
    context: contextvars.Context
    on: Sequence[int] = ()
    """Numbers of what it decides on, see `Store.write`."""
    since: float = field(default_factory=time.monotonic)
    value: T | None = None
    error: BaseException | None = None
    calls: list[Callable[[], None]] = field(default_factory=list)


class _Outcome(NamedTuple):
    """What a caller is told."""

    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None
    calls: Sequence[Callable[[], None]] = ()


class _Spoiled(Exception):
    """An item of a group failed after something was written: each runs on its own."""


class _Work:
    """What the writer is at. Each item is told its outcome once, by the writer or by the watchdog, which
    abandons what stands still: nobody hears then what becomes of it."""

    def __init__(self, items: Iterable[_Item[Any]] = ()) -> None:
        self._lock = threading.Lock()
        self._untold = list(items)
        self._tried: Sequence[_Item[Any]] = ()
        self._committing = False
        self._stage = 0
        self.abandoned = False
        self.at: Sequence[_Item[Any]] = ()
        """Which are run now, or were last."""
        self.moment: _Moment | None = None

    @property
    def progress(self) -> tuple[object, int, int]:
        """Another one whenever something has gone on."""
        moment = self.moment
        return self, self._stage, moment.steps if moment is not None else 0

    def begin(self, items: Sequence[_Item[Any]] = ()) -> bool:
        """These are run now. False if they were abandoned."""
        return self._go_on(items, committing=False)

    def commit(self, items: Sequence[_Item[Any]] = ()) -> bool:
        """These are committed now. False if they were abandoned: they must not be."""
        return self._go_on(items, committing=True)

    def _go_on(self, items: Sequence[_Item[Any]], *, committing: bool) -> bool:
        with self._lock:
            self._tried, self._committing = items, committing
            self._stage += 1
            return not self.abandoned

    def tell(self, items: Sequence[_Item[Any]]) -> None:
        """The outcomes of these are known."""
        with self._lock:
            if self.abandoned:
                return
            self._untold = [item for item in self._untold if item not in items]
            self._tried, self._committing = (), False
            self._stage += 1
        _release([_Outcome(item.future, item.value, item.error, item.calls) for item in items])

    @property
    def untold(self) -> list[_Item[Any]]:
        """Those that have neither been told an outcome nor given back."""
        with self._lock:
            return list(self._untold)

    def give_back(self, items: Sequence[_Item[Any]]) -> list[_Item[Any]]:
        """These are to wait for other work; those of them that have not been told an outcome meanwhile."""
        with self._lock:
            left = [item for item in items if item in self._untold]
            self._untold = [item for item in self._untold if item not in left]
            return left

    def abandon(self, why: str) -> bool:
        """Tells each item how it stands. False if that was done before."""
        with self._lock:
            if self.abandoned:
                return False
            self.abandoned = True
            told, self._untold = self._untold, []
            doubtful = self._tried if self._committing else ()
        _release(
            [
                _Outcome(
                    item.future, error=CommitInDoubt(_IN_DOUBT) if item in doubtful else StoreUnavailable(why)
                )
                for item in told
            ]
        )
        return True


@dataclass(frozen=True)
class _Down:
    """Why nothing can be changed, since when (by the monotonic clock), the items one of which found it out,
    and whether it is the disk that is full."""

    why: str
    since: float
    found_by: Sequence[_Item[Any]]
    full: bool


class _Readers:
    """Whether to read at all: from a database that is away one reads at a time, to see whether it is back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away = False
        self._trying = False
        self._rest_until = 0.0

    @property
    def closed(self) -> bool:
        with self._lock:
            return self._away and (self._trying or time.monotonic() < self._rest_until)

    def enter(self) -> None:
        """Every reader that entered leaves. Raises StoreUnavailable instead of letting it wait in vain."""
        with self._lock:
            if self._away:
                if self._trying or time.monotonic() < self._rest_until:
                    raise StoreUnavailable("the database cannot be read")
                self._trying = True

    def leave(self, *, away: bool) -> None:
        with self._lock:
            self._away, self._trying = away, False
            self._rest_until = time.monotonic() + READER_REST_SECONDS


class Store:
    """A service's database. Made by `open`, closed by `close`."""

    def __init__(
        self,
        opened: engines.Engines,
        *,
        group: bool,
        queue_limit: int,
        readers: int,
        clock: Callable[[Connection], datetime],
        patient: bool = False,
    ) -> None:
        self._engines = opened
        self._max_group = MAX_GROUP if group else 1
        self._queue_limit = queue_limit
        self._clock = clock
        self._patient = patient
        self._writer: engines.Writer | None = None
        self._work: _Work | None = None
        self._waiting: deque[_Item[Any]] = deque()
        self._ready = threading.Condition()
        self._closing = False
        self._down: _Down | None = None
        self._stalled = False
        self._wrote = float("-inf")
        self._looked_for_hung = float("-inf")
        self._tell_changed: Callable[[], None] = lambda: None
        self._readers = _Readers()
        self._pool = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="store-reader")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="store-writer", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="store-watchdog", daemon=True)
        self._thread.start()
        if patient:
            self._ended.set()
        self._watchdog.start()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        group: bool = True,
        queue_limit: int = 2000,
        readers: int = 2,
        clock: Callable[[Connection], datetime] | None = None,
        exclusive: bool = True,
        patient: bool = False,
    ) -> Store:
        """Open `sqlite:///file` or `postgresql+psycopg://...`; connects at the first use.

        `group=False` commits every item alone (for comparison). `queue_limit` is the number of waiting
        items from which `write(shed=True)` refuses. `patient` is for an operator's command, whose statements
        may take minutes. Raises StoreInUse if another process holds the file.
        """
        return cls(
            engines.open_engines(url, readers, exclusive=exclusive, patient=patient),
            group=group,
            queue_limit=queue_limit,
            readers=readers,
            clock=clock or engines.database_clock,
            patient=patient,
        )

    @property
    def trouble(self) -> str | None:
        """Why no change can be made now, in a few words; None while all is well."""
        down = self._down
        if down is not None:
            return down.why
        return _STALLED if self._stalled else None

    def on_trouble(self, call: Callable[[], None]) -> None:
        """Calls `call`, from a thread of the store, whenever `trouble` begins or ends."""
        self._tell_changed = call

    async def write(self, change: Change[T], *, shed: bool = False, on: Sequence[str] = ()) -> T:
        """Run `change` in the next group and return its outcome after the commit.

        `on` names what several pods on one PostgreSQL would wait for each other at, such as the slot whose
        seats it takes: while a group of another pod has that in hand, the change waits for a later group, and
        holds up nobody else.

        `change` runs in the writer thread in a copy of the caller's context, and may run twice: it
        touches nothing but the transaction and its own locals. A caller that is cancelled does not stop
        it. Raises what `change` raised (nothing of it is kept), CommitInDoubt when the COMMIT itself
        failed or did not end (read again by key), StoreUnavailable when the database is down (nothing was
        done), at once where that is known.
        """
        future = asyncio.get_running_loop().create_future()
        item: _Item[T] = _Item(change, future, contextvars.copy_context(), engines.numbers_of(on))
        with self._ready:
            if self._closing:
                raise StoreUnavailable("the store is closed")
            if (trouble := self.trouble) is not None:
                raise StoreUnavailable(trouble)
            if shed and len(self._waiting) >= self._queue_limit:
                raise _busy()
            self._waiting.append(item)
            telemetry.STORE_QUEUE.set(len(self._waiting))
            self._ready.notify()
        return await item.future

    async def read(self, query: Change[T]) -> T:
        """Run `query` on a snapshot in a reader thread, perhaps twice. Raises StoreUnavailable when the
        database is down."""
        if self._readers.closed:
            raise StoreUnavailable("the database cannot be read")
        context = contextvars.copy_context()
        run = functools.partial(context.run, self._read, query)
        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    async def ask_writer(self) -> None:
        """Asks the database through the writer whether it takes changes, unless it has just taken one. Raises
        StoreUnavailable. A disk that is full does not show by it: that takes a change."""
        if time.monotonic() - self._wrote >= QUIET_SECONDS:
            await self.write(lambda tx: engines.look(tx._connection))

    async def close(self) -> None:
        """Finish what waits, then let go of the database."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)
        self._ended.set()
        await asyncio.to_thread(self._watchdog.join)
        self._pool.shutdown(wait=True)
        self._engines.close()

    def _read(self, query: Change[T]) -> T:
        self._readers.enter()
        away = False
        try:
            try:
                return self._read_once(query)
            except DBAPIError as error:
                if not engines.is_lost(error):
                    raise
                return self._read_once(query)  # the session may be one of before
        except DBAPIError as error:
            away = engines.is_lost(error)
            if engines.is_down(error) or engines.is_contention(error):
                raise StoreUnavailable(f"the database cannot be read: {engines.why(error)}") from error
            raise
        finally:
            self._readers.leave(away=away)

    def _read_once(self, query: Change[T]) -> T:
        with self._engines.reader.connect() as connection:
            try:
                return query(Transaction(connection, _Moment(connection, self._clock), read_only=True))
            finally:
                connection.rollback()

    # The writer thread.

    def _write_forever(self) -> None:
        last = 0
        while self._down is None or self._come_back():
            with self._ready:
                while not self._waiting and not self._closing and self._down is None:
                    self._ready.wait()
                if self._down is not None:
                    continue
                if not self._waiting:
                    break
                eager = len(self._waiting) >= self._max_group or last < LINGER_FROM or self._closing
            if not eager:
                time.sleep(LINGER_SECONDS)
            with self._ready:
                items = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_group))]
                telemetry.STORE_QUEUE.set(len(self._waiting))
                work = self._work = _Work(items)
            if not items:  # refused meanwhile
                continue
            last = len(items)
            telemetry.STORE_GROUP.observe(last)
            try:
                self._run(work, items)
            except BaseException as error:  # the thread must outlive whatever an item or a driver does
                log.exception("the writer failed outside an item")
                for item in items:
                    item.error = item.error or error
                work.tell(items)
            if forgotten := work.untold:
                log.error("%d items came to no end", len(forgotten))
                _fail(work, forgotten, CommitInDoubt(_IN_DOUBT))
            self._rest()
        self._drop_session()

    def _run(self, work: _Work, items: list[_Item[Any]]) -> None:
        if len(items) > 1 or items[0].on:
            try:
                self._attempt(work, items)
            except _Spoiled:
                telemetry.STORE_GROUP_RERUNS.inc()
            else:
                return
        for item in items:
            if self._down is None:
                self._run_alone(work, item)
            else:
                _fail(work, [item], StoreUnavailable(self._down.why))

    def _run_alone(self, work: _Work, item: _Item[Any]) -> None:
        for _ in range(SINGLE_ATTEMPTS):
            try:
                self._attempt(work, [item], alone=True)
            except _Spoiled as spoiled:
                item.error = spoiled.__cause__
                if not (isinstance(item.error, DBAPIError) and engines.is_contention(item.error)):
                    work.tell([item])
                    return
            else:
                return
        _fail(work, [item], _busy())

    def _attempt(
        self, work: _Work, items: list[_Item[Any]], *, alone: bool = False, again: bool = False
    ) -> None:
        """One transaction over `items`, which are told their outcomes. Raises _Spoiled, rolled back and
        nothing told, if they have to run on their own. Unless `alone`, those that have to wait for another
        pod are taken out of `items`. What loses its session before its COMMIT runs `again`, once."""
        if not work.begin(items):
            return
        try:
            writer = self._session()
            writer.begin()
        except Exception as error:
            self._drop_session()
            self._go_down(error)
            _fail(work, items, StoreUnavailable("the database cannot be reached"), error)
            return
        work.at = items
        try:
            work.moment = _Moment(writer.connection, self._clock)
            if not alone and writer.connection.dialect.name == "postgresql":
                numbers = {number for item in items for number in item.on}
                self._put_off(work, items, engines.taken(writer.connection, numbers), writer.connection)
                if not items:
                    self._roll_back()
                    time.sleep(PUT_OFF_PAUSE_SECONDS)
                    return
            if len(items) > 1 and writer.connection.dialect.name == "postgresql":
                transactions = self._apply_in_rounds(writer.connection, work.moment, items)
            else:
                transactions = self._apply_in_turn(writer.connection, work, items)
            work.at = items
            appended: dict[Insert, list[Mapping[str, Any]]] = {}
            for item, transaction in zip(items, transactions, strict=True):
                for insert, row in transaction._appended if item.error is None else ():
                    appended.setdefault(insert, []).append(row)
            for insert, rows in appended.items():
                work.moment.steps += 1
                writer.connection.execute(insert, rows)
        except BaseException as error:
            self._roll_back()
            if not engines.is_down(error):
                raise _Spoiled from error
            self._drop_session()
            lost = engines.is_lost(error)
            if lost and not again:
                # A machine that was held up for a second is enough for the server to end the session.
                self._attempt(work, items, alone=alone, again=True)
                return
            if not lost:
                self._go_down(error, list(work.at))
            _fail(work, items, StoreUnavailable(f"the database is down: {engines.why(error)}"), error)
            return
        if not work.commit(items):
            self._drop_session()
            return
        if __debug__:
            crash.points("store.commit.before", (item.context for item in items))
        try:
            writer.commit()
        except Exception as error:
            self._commit_failed(work, items, error)
        else:
            self._wrote = time.monotonic()
        if __debug__:
            crash.points("store.commit.after", (item.context for item in items))
        work.tell(items)

    def _commit_failed(self, work: _Work, items: list[_Item[Any]], error: Exception) -> None:
        self._drop_session()
        if engines.is_down(error) and not engines.is_lost(error):
            self._go_down(error, list(work.at))
        if engines.is_undone(error):
            _fail(work, items, StoreUnavailable(f"the database is down: {engines.why(error)}"), error)
            return
        log.error("COMMIT failed; %d items are in doubt", len(items), exc_info=error)
        _fail(work, items, CommitInDoubt(_IN_DOUBT), error)

    def _apply_in_turn(
        self, connection: Connection, work: _Work, items: Sequence[_Item[Any]]
    ) -> list[Transaction]:
        assert work.moment is not None
        transactions = []
        for item in items:
            work.at = [item]
            transactions.append(Transaction(connection, work.moment))
            self._apply(item, transactions[-1])
        return transactions

    def _apply_in_rounds(
        self, connection: Connection, moment: _Moment, items: Sequence[_Item[Any]]
    ) -> list[Transaction]:
        transactions = [Transaction(connection, moment) for _ in items]
        moment.now()
        rounds.run(
            connection,
            [
                functools.partial(self._apply, item, transaction)
                for item, transaction in zip(items, transactions, strict=True)
            ],
        )
        return transactions

    def _put_off(self, work: _Work, items: list[_Item[Any]], taken: Set[int], connection: Connection) -> None:
        """Takes those out of `items` that decide on what another pod has in hand: they wait for a later
        group, or have waited for too long."""
        late = [item for item in items if not taken.isdisjoint(item.on)]
        if not late:
            return
        items[:] = [item for item in items if item not in late]
        now = time.monotonic()
        too_late = [item for item in late if now - item.since > PUT_OFF_SECONDS]
        if too_late:
            _fail(work, too_late, _busy())
        again = work.give_back([item for item in late if item not in too_late])
        with self._ready:
            self._waiting.extendleft(reversed(again))
        waits = now - min(item.since for item in late) > engines.IDLE_IN_TRANSACTION_SECONDS
        if waits and now - self._looked_for_hung > HUNG_LOOK_SECONDS:
            # Last, since it may fail: another pod may take this one for hung as well.
            self._looked_for_hung = now
            engines.end_hung(connection)

    @staticmethod
    def _apply(item: _Item[Any], transaction: Transaction) -> None:
        item.value, item.error, item.calls = None, None, []
        try:
            item.value = item.context.run(item.change, transaction)
        except Refusal as refusal:
            if transaction.wrote:
                raise
            item.error = refusal
        else:
            item.calls = transaction._after_commit

    def _session(self) -> engines.Writer:
        if self._writer is None or not self._writer.usable:
            self._drop_session()
            self._writer = engines.Writer(self._engines, patient=self._patient)
        return self._writer

    def _roll_back(self) -> None:
        try:
            if self._writer is not None:
                self._writer.connection.rollback()
        except Exception:
            self._drop_session()

    def _drop_session(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.drop()

    # A database that is down

    def _go_down(self, error: BaseException | str, found_by: Sequence[_Item[Any]] = ()) -> None:
        """From now on changes are refused at once, those that wait already too."""
        why = error if isinstance(error, str) else engines.why(error)
        full = not isinstance(error, str) and engines.is_full(error)
        with self._ready:
            if self._down is not None:
                return
            self._down = _Down(why, time.monotonic(), found_by, full)
            refused = self._take_waiting()
            self._ready.notify()
        log.warning("the database is down: %s", why)
        _refuse(refused, why)
        self._tell_trouble()

    def _come_back(self) -> bool:
        """Tries until the database takes changes again. False once the store is closed."""
        self._engines.forget_sessions()
        assert self._down is not None
        down = self._down
        while True:
            with self._ready:
                if not self._closing:
                    self._ready.wait(TRY_SECONDS)
                if self._closing:
                    return False
            if self._is_back(down):
                break
        with self._ready:
            self._down = None
        log.warning("the database is back after %.1f s", time.monotonic() - down.since)
        self._tell_trouble()
        return True

    def _is_back(self, down: _Down) -> bool:
        """What failed is done again and taken back, so that a lock or a full disk is seen that no question
        finds; then something is committed, which a server without its standby does not do."""
        work = self._work = _Work()
        work.begin()
        try:
            writer = self._session()
            if time.monotonic() - down.since < REHEARSAL_SECONDS:
                for item in down.found_by:
                    self._rehearse(writer, work, item)
            work.commit()
            writer.prove(room=down.full)
        except Exception as error:
            log.info("the database is still down: %s", engines.why(error))
            self._drop_session()
            return False
        finally:
            self._rest()
        return not work.abandoned

    def _rehearse(self, writer: engines.Writer, work: _Work, item: _Item[Any]) -> None:
        writer.begin()
        try:
            work.moment = _Moment(writer.connection, self._clock)
            transaction = Transaction(writer.connection, work.moment)
            item.context.run(item.change, transaction)
            transaction.flush()
        except Exception as error:
            if engines.is_down(error):
                raise
        finally:
            writer.connection.rollback()

    # The watchdog

    def _watch(self) -> None:
        seen: object = None
        looks = 0
        while not self._ended.wait(LOOK_SECONDS):
            work = self._work
            progress = work.progress if work is not None else None
            if work is None or progress != seen:
                seen, looks = progress, 0
                self._set_stalled(work, stalled=False)
                continue
            looks += 1
            if looks == STALLED_LOOKS:
                self._set_stalled(work, stalled=True)
            elif looks == CUT_LOOKS:
                self._cut(work)

    def _set_stalled(self, work: _Work | None, *, stalled: bool) -> None:
        with self._ready:
            if stalled is self._stalled or (stalled and self._work is not work):
                return
            self._stalled = stalled
            refused = self._take_waiting() if stalled else []
        if stalled:
            log.warning("the writer stands still")
        _refuse(refused, _STALLED)
        self._tell_trouble()

    def _cut(self, work: _Work) -> None:
        """Nobody waits any longer for what the writer waits for, nor the writer itself."""
        writer = self._writer
        if work.abandon(_STALLED):
            log.error("what the writer was at is abandoned, and its session cut")
            self._go_down(_STALLED)
        if writer is not None:
            writer.cut()

    def _rest(self) -> None:
        self._work = None
        self._set_stalled(None, stalled=False)

    def _take_waiting(self) -> list[_Item[Any]]:
        taken = list(self._waiting)
        self._waiting.clear()
        telemetry.STORE_QUEUE.set(0)
        return taken

    def _tell_trouble(self) -> None:
        telemetry.STORE_DOWN.set(0 if self.trouble is None else 1)
        self._tell_changed()


def _busy() -> Refusal:
    return Refusal("TRY_AGAIN_LATER", "The service is busy.", retry_after=RETRY_AFTER_SECONDS)


def _refuse(items: Iterable[_Item[Any]], why: str) -> None:
    """These have not been begun."""
    _release([_Outcome(item.future, error=StoreUnavailable(why)) for item in items])


def _fail(
    work: _Work, items: Sequence[_Item[Any]], outcome: Exception, cause: BaseException | None = None
) -> None:
    outcome.__cause__ = cause
    for item in items:
        item.error = outcome
    work.tell(items)


def _release(outcomes: Iterable[_Outcome]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.future.get_loop(), []).append(outcome)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, mine)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("%d outcomes came after the end of the loop", len(mine))


def _deliver(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        for call in outcome.calls if outcome.error is None else ():
            try:
                call()
            except Exception:
                log.exception("an after-commit call failed")
        if outcome.future.done():  # the caller was cancelled; the change stands all the same
            continue
        if outcome.error is not None:
            outcome.future.set_exception(outcome.error)
        else:
            outcome.future.set_result(outcome.value)
