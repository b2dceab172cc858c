"""The transactional outbox: an event is inserted with the change it tells of, and a relay publishes it.

Delivery is at least once: a row is marked sent after the broker's confirm, never inside a transaction
that waits for the network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import uuid_utils
from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    bindparam,
    func,
    or_,
    select,
    update,
)

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash, telemetry
from dinemesh.kit.bus import Bus, BusUnavailable
from dinemesh.kit.store import Instant, Store, StoreUnavailable, Transaction
from dinemesh.kit.workers import cancel, to_its_end

log = logging.getLogger(__name__)

# Confirms in flight at once: 100 was measured at 6.5 times the throughput of one by one.
BATCH = 100
# What a crashed relay had claimed is free again after this; far above the time of one batch.
LEASE_SECONDS = 30.0
# The wake-up is in process; the sweep finds what a crash or another pod left behind.
SWEEP_SECONDS = 1.0
# What the broker refuses waits by itself, twice as long each time: a full queue may be somebody else's.
REFUSED_PAUSE_SECONDS = 1.0
REFUSED_PAUSE_MAX_SECONDS = 60.0
# Of refusals one line is logged in this time, with their number.
REFUSALS_LINE_SECONDS = 10.0


def outbox_table(metadata: MetaData) -> Table:
    """The table `outbox`. Rows are kept after they were sent, so that a lost broker can be refilled."""
    position = BigInteger().with_variant(Integer, "sqlite")
    table = Table(
        "outbox",
        metadata,
        Column("position", position, primary_key=True, autoincrement=True),
        Column("event_id", Text, nullable=False, unique=True),
        Column("aggregate_id", Text, nullable=False),
        Column("aggregate_version", BigInteger, nullable=False),
        Column("routing_key", Text, nullable=False),
        Column("envelope", LargeBinary, nullable=False),
        Column("create_time", Instant, nullable=False),
        Column("claim_until", Instant),
        Column("sent_time", Instant),
        Column("tries", Integer, nullable=False, server_default="0"),
    )
    unsent = table.c.sent_time.is_(None)
    # What was never refused is found without passing by what was.
    Index("outbox_unsent", table.c.tries, table.c.position, sqlite_where=unsent, postgresql_where=unsent)
    refused = unsent & (table.c.tries > 0)
    Index("outbox_refused", table.c.claim_until, sqlite_where=refused, postgresql_where=refused)
    return table


@dataclass(frozen=True)
class OutgoingEvent:
    """What a service says of one of its aggregates: its whole state, as a message of its contract."""

    message: Message
    routing_key: str
    aggregate_id: str
    aggregate_version: int
    customer_id: str = ""
    reservation_id: str = ""


class Outbox:
    """Adds events to the transaction that changes the state. `encode` turns a domain event into a message."""

    def __init__(self, table: Table, encode: Callable[[Any], OutgoingEvent], source: str) -> None:
        self.table = table
        self._encode = encode
        self.source = source
        self._insert = table.insert()
        self._wake: Callable[[], None] = _nobody

    def add(self, tx: Transaction, event: Any) -> str:
        """Insert `event`, wake the relay after the commit, and return the event's id."""
        outgoing = self._encode(event)
        here = call.current.get()
        event_id = str(uuid_utils.uuid7())
        envelope = envelope_pb2.Envelope(
            event_id=event_id,
            type=outgoing.message.DESCRIPTOR.full_name,
            source=self.source,
            aggregate_id=outgoing.aggregate_id,
            aggregate_version=outgoing.aggregate_version,
            customer_id=outgoing.customer_id,
            reservation_id=outgoing.reservation_id,
            correlation_id=here.correlation_id,
            causation_id=here.causation_id,
            traceparent=here.traceparent,
            payload=outgoing.message.SerializeToString(deterministic=True),
        )
        now = tx.now
        envelope.occur_time.FromDatetime(now)
        tx.execute(
            self._insert,
            {
                "event_id": event_id,
                "aggregate_id": outgoing.aggregate_id,
                "aggregate_version": outgoing.aggregate_version,
                "routing_key": outgoing.routing_key,
                "envelope": envelope.SerializeToString(),
                "create_time": now,
            },
        )
        tx.after_commit(self._wake)
        if __debug__:
            crash.did(outgoing.routing_key)
        return event_id

    def on_added(self, wake: Callable[[], None]) -> None:
        """Tell `wake` after each commit that added something."""
        self._wake = wake


def _nobody() -> None:
    return None


@dataclass(frozen=True)
class _Row:
    position: int
    event_id: str
    routing_key: str
    envelope: bytes
    tries: int
    """How often the broker has refused it."""


class Relay:
    """Publishes what the outbox holds: claims rows by lease (several pods may), then marks them sent.

    A row that the broker refuses has reached every queue but the one that is full. It is tried again by
    itself: of such rows one a sweep, and twice as many each time that all of them were taken.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        bus: Bus,
        *,
        sweep_seconds: float = SWEEP_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        batch: int = BATCH,
    ) -> None:
        self._store = store
        self._table = outbox.table
        self._bus = bus
        self._sweep_seconds = sweep_seconds
        self._lease = timedelta(seconds=lease_seconds)
        self._batch = batch
        self._refused_batch = 1
        self._untold = 0
        self._next_line = float("-inf")
        self._added = asyncio.Event()
        outbox.on_added(self._added.set)

    async def run(self) -> None:
        """Until cancelled. Neither a broker nor a database that is away ends it."""
        # By itself: a confirm that does not come must hold up nobody else.
        trying = asyncio.create_task(self._keep_trying_refused(), name="refused events")
        try:
            inherited = True
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._sweep_seconds):
                        await self._added.wait()
                self._added.clear()
                with _going_on():
                    if inherited:
                        await self._store.write(self._drop_claims_of_the_dead)
                        inherited = False
                    while await to_its_end(self._turn(self._claim_fresh)) == self._batch:
                        pass
        finally:
            await cancel(trying)

    async def _keep_trying_refused(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            with _going_on():
                while await to_its_end(self._try_refused()):
                    pass

    async def _turn(self, claim: Callable[[Transaction], list[_Row]]) -> int:
        """Publish one batch; returns how many were confirmed. Not to be broken off: what it has claimed would
        wait for the lease."""
        if not self._bus.can_publish:
            return 0
        rows = await self._store.write(claim)
        if __debug__:
            crash.point("outbox.claimed", "some" if rows else "nothing")
        outcomes = await asyncio.gather(*(self._publish(row) for row in rows))
        if rows:
            sent = [row.position for row, error in zip(rows, outcomes, strict=True) if error is None]
            unsent = {row: error for row, error in zip(rows, outcomes, strict=True) if error is not None}
            # A broker that went away says nothing about these rows: they are not made to wait for it.
            is_away = bool(unsent) and not self._bus.can_publish
            self._tell(unsent, is_away=is_away)
            if __debug__:
                crash.point("outbox.mark_sent.before")
            await self._store.write(lambda tx: self._settle(tx, sent, list(unsent), is_away=is_away))
            if __debug__:
                crash.point("outbox.mark_sent.after")
            return len(sent)
        return 0

    async def _try_refused(self) -> bool:
        """Publish a few of those whose pause is over; True if more may follow at once."""
        limit = self._refused_batch
        sent = await self._turn(lambda tx: self._claim_refused(tx, limit))
        self._refused_batch = min(2 * limit, self._batch) if sent == limit else 1
        return sent == limit

    async def _publish(self, row: _Row) -> BusUnavailable | None:
        if __debug__:
            crash.point("outbox.publish.before", row.routing_key)
        try:
            await self._bus.publish(row.envelope, row.routing_key, event_id=row.event_id)
        except BusUnavailable as error:
            # In doubt at worst: it is published again, and the subscribers' inboxes absorb it.
            return error
        if __debug__:
            crash.point("outbox.publish.confirmed", row.routing_key)
        return None

    def _tell(self, unsent: Mapping[_Row, BusUnavailable], *, is_away: bool) -> None:
        if is_away:
            log.warning("%d events are in doubt: the broker went away; they are sent again", len(unsent))
            return
        self._untold += len(unsent)
        if not unsent or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + REFUSALS_LINE_SECONDS
        count, self._untold = self._untold, 0
        row, error = next(iter(unsent.items()))
        envelope = envelope_pb2.Envelope.FromString(row.envelope)
        with call.working_on(call.Call(envelope.correlation_id, envelope.causation_id)):
            log.warning(
                "%d events were not confirmed, such as %s (%d times now): %s; each waits by itself",
                count,
                row.event_id,
                row.tries + 1,
                error,
            )

    def _drop_claims_of_the_dead(self, tx: Transaction) -> None:
        """On SQLite a service is one process: a claim found at the start is of one that was killed, and its
        events need not wait for the lease. Elsewhere it may be another pod's."""
        if tx.dialect == "sqlite":
            columns = self._table.c
            claimed = columns.sent_time.is_(None) & columns.claim_until.is_not(None) & (columns.tries == 0)
            tx.execute(update(self._table).where(claimed).values(claim_until=None))

    def _claim_fresh(self, tx: Transaction) -> list[_Row]:
        columns = self._table.c
        free = or_(columns.claim_until.is_(None), self._is_over(tx))
        fresh = select(columns.position).where(columns.sent_time.is_(None), columns.tries == 0, free)
        return self._claim(tx, fresh.order_by(columns.position).limit(self._batch))

    def _claim_refused(self, tx: Transaction, limit: int) -> list[_Row]:
        columns = self._table.c
        due = select(columns.position).where(
            columns.sent_time.is_(None), columns.tries > 0, self._is_over(tx)
        )
        return self._claim(tx, due.order_by(columns.claim_until).limit(limit))

    def _is_over(self, tx: Transaction) -> ColumnElement[bool]:
        """Whether a lease or pause is over; also one longer than any is: the clock was ahead then."""
        until = self._table.c.claim_until
        longest = max(self._lease, timedelta(seconds=REFUSED_PAUSE_MAX_SECONDS))
        return or_(until < tx.now, until > tx.now + longest)

    def _claim(self, tx: Transaction, rows: Select[Any]) -> list[_Row]:
        columns = self._table.c
        if tx.dialect == "postgresql":
            rows = rows.with_for_update(skip_locked=True)
        claim = (
            update(self._table)
            .where(columns.position.in_(rows.scalar_subquery()))
            .values(claim_until=tx.now + self._lease)
            .returning(
                columns.position, columns.event_id, columns.routing_key, columns.envelope, columns.tries
            )
        )
        found = [
            _Row(row.position, row.event_id, row.routing_key, row.envelope, row.tries)
            for row in tx.execute(claim)
        ]
        if __debug__:
            crash.did(f"claims {'some' if found else 'nothing'}")
        return sorted(found, key=lambda row: row.position)

    def _settle(
        self, tx: Transaction, sent: Sequence[int], unsent: Sequence[_Row], *, is_away: bool = False
    ) -> None:
        columns = self._table.c
        if sent:
            tx.execute(update(self._table).where(columns.position.in_(sent)).values(sent_time=tx.now))
        if is_away:
            positions = [row.position for row in unsent]
            tx.execute(update(self._table).where(columns.position.in_(positions)).values(claim_until=tx.now))
        else:
            for tries in {row.tries for row in unsent}:
                positions = [row.position for row in unsent if row.tries == tries]
                refused = update(self._table).where(columns.position.in_(positions))
                tx.execute(refused.values(tries=tries + 1, claim_until=tx.now + pause(tries)))
        if __debug__:
            crash.did("marks")

    async def measure(self) -> None:
        """Bring the metrics up to date; by a clock, since a relay under load or without a broker has none."""
        telemetry.BROKER_BLOCKS.set(self._bus.blocked)
        try:
            count, age = await self._store.read(lambda tx: backlog(tx, self._table))
        except StoreUnavailable:
            return
        telemetry.OUTBOX_UNSENT.set(count)
        telemetry.OUTBOX_AGE.set(age.total_seconds())


def pause(tries: int) -> timedelta:
    """How long a row waits that was refused `tries` times before."""
    return timedelta(seconds=min(REFUSED_PAUSE_SECONDS * 2 ** min(tries, 30), REFUSED_PAUSE_MAX_SECONDS))


@contextmanager
def _going_on() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable:
        log.warning("the outbox cannot be read: the database is away")
    except Exception:
        telemetry.WORKER_FAILURES.labels("relay").inc()
        log.exception("the relay failed; the sweep tries again")


def backlog(tx: Transaction, table: Table) -> tuple[int, timedelta]:
    """How many events are unsent, and the age of the oldest."""
    unsent = select(func.count().label("rows"), func.min(table.c.create_time).label("oldest"))
    found = tx.execute(unsent.where(table.c.sent_time.is_(None))).one()
    return found.rows, tx.now - found.oldest if found.oldest is not None else timedelta()


def mark_unsent(tx: Transaction, table: Table, *, since: datetime | None = None) -> int:
    """Let the relay publish everything again (from `since` on), after the loss of a broker."""
    again = update(table).where(table.c.sent_time.is_not(None))
    again = again.values(sent_time=None, claim_until=None, tries=0)
    if since is not None:
        again = again.where(table.c.create_time >= bindparam("since", since, Instant))
    return tx.changed(again)
