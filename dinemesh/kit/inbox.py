"""Consuming events: each one takes effect once per subscriber, in the transaction that records it.

Nothing waits for a gap and nothing is refused: a handler that has nothing to do changes nothing. Only what
cannot be read, or fails again and again, becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import uuid_utils
from aio_pika.abc import AbstractIncomingMessage
from google.protobuf.message import DecodeError, Message
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    select,
)
from sqlalchemy.sql.dml import UpdateBase

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash, dead_letters, telemetry
from dinemesh.kit.bus import (
    BROKER_ERRORS,
    DELIVERY_LIMIT,
    MARK,
    Bus,
    BusUnavailable,
    Deliveries,
    is_own,
)
from dinemesh.kit.canaries import LOOK_SECONDS, Bindings, canaries_table, canary_of, matches
from dinemesh.kit.store import CommitInDoubt, Instant, Store, StoreUnavailable, Transaction
from dinemesh.kit.workers import cancel

log = logging.getLogger(__name__)

M = TypeVar("M")

# One commit and one acknowledgement for up to this many (measured: 4 times the throughput of singles).
PREFETCH = 200
# Under load a moment of patience makes fuller batches, which cost less each (measured: up to 25 %).
LINGER_SECONDS = 0.01
LINGER_FROM = 3
# A version further than this above the highest seen is none: taken for one, it would mute all that follow.
# Far above what a subscriber can have missed of one aggregate.
MOST_VERSIONS_AHEAD = 100_000
# What every database and every language keeps exactly.
HIGHEST_VERSION = 2**53
# A database that is away is asked again this often; meanwhile nothing is taken and nothing given back.
PAUSE_SECONDS = 0.5
# A failing message goes round at most once in this time, so that it cannot occupy the service.
REQUEUE_PAUSE_SECONDS = 0.2
RECONNECT_PAUSE_SECONDS = 0.2
# A guest's queue that is this full has lost messages by the time that its length is known.
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class InboxTables:
    """`inbox`: events that took effect. `inbox_versions`: the highest version seen of each aggregate.
    `subscriptions`: which queues have read what was said before they existed. `canaries`: up to when their
    bindings were seen to be there."""

    inbox: Table
    versions: Table
    subscriptions: Table
    canaries: Table


def inbox_tables(metadata: MetaData) -> InboxTables:
    """The tables of the inbox, one set per service database."""
    return InboxTables(
        inbox=Table(
            "inbox",
            metadata,
            Column("subscriber", Text, primary_key=True),
            Column("event_id", Text, primary_key=True),
            Column("receive_time", Instant, nullable=False),
        ),
        versions=Table(
            "inbox_versions",
            metadata,
            Column("subscriber", Text, primary_key=True),
            Column("aggregate", Text, primary_key=True),
            Column("version", BigInteger, nullable=False),
        ),
        subscriptions=Table(
            "subscriptions",
            metadata,
            Column("subscriber", Text, primary_key=True),
            Column("caught_up", Boolean, nullable=False),
        ),
        canaries=canaries_table(metadata),
    )


@dataclass(frozen=True)
class Received(Generic[M]):
    """An event as a handler gets it: the message and what its envelope says."""

    message: M
    event_id: str
    type: str
    source: str
    aggregate_id: str
    aggregate_version: int
    occur_time: datetime
    customer_id: str
    reservation_id: str
    correlation_id: str
    causation_id: str
    traceparent: str


Handler = Callable[[Transaction, Received[Any]], None]


@dataclass(frozen=True)
class Subscription:
    """What a subscriber listens to.

    `bindings` are routing key patterns (`reservation.v1.*`, `#`). A type without a handler goes to `other`
    (its message is then the undecoded bytes), or has no effect. With `newest_only` a version of an aggregate
    that is not higher than the highest seen has no effect: every event carries the whole state. Those of the
    types in `each_once` do not replace one another: every one of them has its effect, and the handler
    compares the versions that stand in it.

    A guest, which does not belong to the mesh, has a `max_length`: when so many messages wait in its queue,
    the oldest fall out, and it reads the log instead. Nobody else notices. That of a queue that exists
    cannot be changed: delete the queue; the next start reads the log.
    """

    queue: str
    bindings: Sequence[str]
    handlers: Mapping[type[Message], Handler]
    other: Handler | None = None
    newest_only: bool = True
    each_once: frozenset[type[Message]] = frozenset()
    max_length: int | None = None


@dataclass(frozen=True)
class _Statements:
    """Built once: to build a statement costs the processor more than to run it."""

    record: UpdateBase
    raise_version: UpdateBase
    seen: Select[tuple[int]]


class Undecodable(Exception):
    """The bytes are no event, or none that can be: a dead letter at once."""


class Inbox:
    """The part of a consumer that needs no broker: bytes in, effect committed."""

    def __init__(self, store: Store, tables: InboxTables, subscription: Subscription) -> None:
        self._store = store
        self._tables = tables
        self._subscription = subscription
        self._prepared: _Statements | None = None
        self._types = {
            kind.DESCRIPTOR.full_name: (kind, handle) for kind, handle in subscription.handlers.items()
        }

    def decode(self, body: bytes) -> Received[Any]:
        """Raises Undecodable. The message of a type without a handler stays bytes."""
        try:
            envelope = envelope_pb2.Envelope.FromString(body)
            kind, _ = self._types.get(envelope.type, (None, None))
            message = envelope.payload if kind is None else kind.FromString(envelope.payload)
            occur_time = envelope.occur_time.ToDatetime(UTC)
        except (DecodeError, ValueError) as error:  # ValueError: a time outside the calendar
            raise Undecodable(str(error)) from error
        if not (envelope.event_id and envelope.type and envelope.aggregate_id):
            raise Undecodable("an event needs event_id, type and aggregate_id")
        if not 0 <= envelope.aggregate_version <= HIGHEST_VERSION:
            raise Undecodable(f"{envelope.aggregate_version} is no version")
        return Received(
            message=message,
            event_id=envelope.event_id,
            type=envelope.type,
            source=envelope.source,
            aggregate_id=envelope.aggregate_id,
            aggregate_version=envelope.aggregate_version,
            occur_time=occur_time,
            customer_id=envelope.customer_id,
            reservation_id=envelope.reservation_id,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            traceparent=envelope.traceparent,
        )

    def handler(self, event: Received[Any]) -> Handler | None:
        """Who wants this event, if anybody."""
        _, handle = self._types.get(event.type, (None, self._subscription.other))
        return handle

    async def take(self, event: Received[Any]) -> bool:
        """Commit the event's effect; False if it had been taken before. Raises what the handler raises."""
        with call.working_on(_call_of(event)):
            return await self._store.write(functools.partial(self._apply, event=event))

    def _apply(self, tx: Transaction, event: Received[Any]) -> bool:
        statements = self._statements(tx)
        name = self._subscription.queue
        row = {"subscriber": name, "event_id": event.event_id, "receive_time": tx.now}
        if not tx.changed(statements.record, row):
            return False
        if __debug__:
            crash.point("inbox.recorded")
        handle = self.handler(event)
        if handle is not None and self._is_news(tx, statements, event):
            handle(tx, event)
        telemetry.INBOX_LAG.labels(name).observe(max(0.0, (tx.now - event.occur_time).total_seconds()))
        return True

    def _is_news(self, tx: Transaction, statements: _Statements, event: Received[Any]) -> bool:
        if not self._subscription.newest_only:
            return True
        if type(event.message) in self._subscription.each_once:
            return True
        row = {
            "subscriber": self._subscription.queue,
            "aggregate": f"{event.source}/{event.aggregate_id}",
            "version": event.aggregate_version,
        }
        if event.aggregate_version > MOST_VERSIONS_AHEAD:
            seen = tx.execute(statements.seen, row).scalar_one_or_none() or 0
            if event.aggregate_version > seen + MOST_VERSIONS_AHEAD:
                raise Undecodable(f"version {event.aggregate_version} cannot follow version {seen}")
        return tx.changed(statements.raise_version, row) == 1

    def _statements(self, tx: Transaction) -> _Statements:
        if self._prepared is None:
            versions = self._tables.versions
            insert = tx.insert(versions)
            raise_version = insert.on_conflict_do_update(
                index_elements=[versions.c.subscriber, versions.c.aggregate],
                set_={"version": insert.excluded.version},
                where=versions.c.version < insert.excluded.version,
            )
            seen = select(versions.c.version).where(
                versions.c.subscriber == bindparam("subscriber"),
                versions.c.aggregate == bindparam("aggregate"),
            )
            record = tx.insert(self._tables.inbox).on_conflict_do_nothing()
            self._prepared = _Statements(record, raise_version, seen)
        return self._prepared

    # Whether this subscriber has read what was said before its queue existed.

    async def caught_up(self) -> bool:
        table = self._tables.subscriptions
        query = select(table.c.caught_up).where(table.c.subscriber == self._subscription.queue)
        return bool(await self._store.read(lambda tx: tx.execute(query).scalar_one_or_none()))

    async def set_caught_up(self, value: bool) -> None:
        def change(tx: Transaction) -> None:
            insert = tx.insert(self._tables.subscriptions)
            values = insert.values(subscriber=self._subscription.queue, caught_up=value)
            tx.execute(
                values.on_conflict_do_update(
                    index_elements=[self._tables.subscriptions.c.subscriber], set_={"caught_up": value}
                )
            )

        await self._store.write(change)


def _call_of(event: Received[Any]) -> call.Call:
    """The work that an event causes."""
    return replace(
        call.current.get(),
        correlation_id=event.correlation_id,
        causation_id=event.event_id,
        traceparent=event.traceparent,
        method=event.type,
    )


def _correlation_of(body: bytes) -> str:
    """Of a message that cannot be read the envelope may still be readable; "" if it is not."""
    try:
        return envelope_pb2.Envelope.FromString(body).correlation_id
    except DecodeError:
        return ""


def forget(tx: Transaction, tables: InboxTables, subscriber: str) -> None:
    """Forget all that `subscriber` took, so that its next start reads the whole log again."""
    for table in (tables.inbox, tables.versions, tables.subscriptions, tables.canaries):
        tx.execute(delete(table).where(and_(table.c.subscriber == subscriber)))


class Consumer:
    """Keeps a subscription: declares its queue, reads the log first if the queue is new, then consumes."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        tables: InboxTables,
        subscription: Subscription,
        *,
        prefetch: int = PREFETCH,
    ) -> None:
        self._bus = bus
        self._inbox = Inbox(store, tables, subscription)
        self._prefetch = prefetch
        self.subscription = subscription
        self.caught_up = asyncio.Event()
        self._in_hand = 0
        self._arrived: Deliveries = asyncio.Queue()
        self._bindings = Bindings(
            store,
            bus,
            tables.canaries,
            subscription.queue,
            subscription.bindings,
            self._read_log,
            lambda: self._in_hand > 0 or not self._arrived.empty(),
        )

    async def run(self) -> None:
        """Until cancelled. A lost connection, a deleted queue or a database that is away end nothing."""
        while True:
            try:
                await self._consume()
            except (*BROKER_ERRORS, BusUnavailable, StoreUnavailable, CommitInDoubt) as error:
                log.warning(
                    "subscription %s starts again: %s", self.subscription.queue, error or type(error).__name__
                )
            except Exception:
                telemetry.WORKER_FAILURES.labels(self.subscription.queue).inc()
                log.exception("subscription %s failed and starts again", self.subscription.queue)
            await asyncio.sleep(RECONNECT_PAUSE_SECONDS)

    async def _consume(self) -> None:
        queue = self.subscription.queue
        is_there = await self._bus.has_queue(queue)
        if not is_there and await self._inbox.caught_up():
            # Recorded before the queue is made: a crash in between must not hide that the log is unread.
            await self._inbox.set_caught_up(False)
        async with self._bus.channel(self._prefetch) as channel:
            is_new = not is_there or not await self._inbox.caught_up()
            bindings = self.subscription.bindings
            hidden_since = None if is_new else await self._bindings.note_hidden()
            await self._bus.declare_subscriber(
                channel, queue, bindings, max_length=self.subscription.max_length
            )
            await self._bindings.begin(bindings if is_new else await self._bindings.unknown())
            if is_new:
                await self._read_log(None)
                if __debug__:
                    crash.point("inbox.log.read")
                await self._inbox.set_caught_up(True)
                if __debug__:
                    crash.point("inbox.log.recorded")
            await self._mind_the_place()
            self.caught_up.set()
            self._arrived = await self._bus.deliveries(channel, queue)
            looking = asyncio.create_task(self._keep_looking(hidden_since), name=f"bindings of {queue}")
            try:
                await self._take_all(self._arrived)
            finally:
                await cancel(looking)

    async def _take_all(self, arrived: Deliveries) -> None:
        last = 0
        while True:
            if last >= LINGER_FROM:
                await asyncio.sleep(LINGER_SECONDS)
            batch = await _next_batch(arrived, self._prefetch)
            if batch is None:
                raise BusUnavailable("the queue or its channel is gone")
            last = self._in_hand = len(batch)
            await self._take(batch)
            self._in_hand = 0

    async def _keep_looking(self, hidden_since: datetime | None) -> None:
        """Whether the bindings are there and, of a guest, whether its queue overflows."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if hidden_since is not None:
                    await self._read_log(hidden_since)
                    await self._bindings.hidden_is_read()
                    hidden_since = None
                await self._bus.declare_dead_letters(self.subscription.queue)
                await self._mind_the_place()
                await self._bindings.look()
            except (*BROKER_ERRORS, BusUnavailable, StoreUnavailable, CommitInDoubt) as error:
                # If it lasts, those who consume and publish say so.
                log.debug("the bindings of %s were not looked at: %r", self.subscription.queue, error)
            except Exception:
                telemetry.WORKER_FAILURES.labels(f"bindings of {self.subscription.queue}").inc()
                log.exception("the bindings of %s were not looked at", self.subscription.queue)

    async def _mind_the_place(self) -> None:
        """A guest whose queue is as good as full has lost messages, or is about to: it reads the log."""
        limit, queue = self.subscription.max_length, self.subscription.queue
        if limit is None or await self._bus.waiting(queue) < limit * NEARLY_FULL:
            return
        telemetry.PLACES_LOST.labels(queue).inc()
        log.error("the queue %s was full (%d messages) and lost some; it reads the log", queue, limit)
        await self._read_log(await self._bindings.begin_of_gap())

    async def _read_log(self, since: datetime | None) -> int:
        """Take the events of the log, all or `since` then; how many were new."""
        queue = self.subscription.queue
        mark = str(uuid_utils.uuid7())
        await self._bus.mark_log(mark)
        log.info("subscription %s reads the log", queue)
        batch: list[bytes] = []
        count = news = 0
        async for message in self._bus.read_log_messages(mark, since):
            if MARK in message.headers or not is_own(message):
                continue
            # A log that is read again holds more than the subscription wants; one that is read first too, and
            # there it always took what it has a handler for.
            if since is not None and not self._wants(message.routing_key or ""):
                continue
            batch.append(message.body)
            count += 1
            if len(batch) >= self._prefetch:
                news += sum(await asyncio.gather(*map(self._take_logged, batch)))
                batch.clear()
        news += sum(await asyncio.gather(*map(self._take_logged, batch)))
        log.info("subscription %s has read %d events of the log, %d new", queue, count, news)
        return news

    def _wants(self, key: str) -> bool:
        return any(matches(binding, key) for binding in self.subscription.bindings)

    async def _take_logged(self, body: bytes) -> bool:
        """The log cannot be given back to: what fails there becomes a dead letter and blocks nothing."""
        try:
            event = self._inbox.decode(body)
            return self._inbox.handler(event) is not None and await self._inbox.take(event)
        except Undecodable:
            log.warning(
                "the log holds bytes that are no event; they are a dead letter of those who saw them live"
            )
        except (StoreUnavailable, CommitInDoubt):
            raise
        except Exception:
            self._count(_FAILED)
            with call.working_on(_call_of(event)):
                log.exception("an event of the log failed and becomes a dead letter")
            await self._bus.publish_dead(body, self.subscription.queue, event_id=event.event_id)
        return False

    async def _take(self, batch: Sequence[AbstractIncomingMessage]) -> None:
        """Commit the effects of a batch, then acknowledge it, at once where all went well."""
        outcomes = await asyncio.gather(*map(self._take_one, batch))
        if _DONE.issuperset(outcomes):
            if __debug__:
                crash.point("inbox.ack.before")
            await batch[-1].ack(multiple=True)
            if __debug__:
                crash.point("inbox.ack.after")
            return
        pause = False
        for message, outcome in zip(batch, outcomes, strict=True):
            if outcome in _DONE or await self._lay_aside(message, outcome):
                await message.ack()
            elif outcome == _UNREADABLE:
                await message.reject(requeue=False)
            else:
                await message.nack(requeue=True)
                pause = True
        if pause:
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)

    async def _lay_aside(self, message: AbstractIncomingMessage, outcome: str) -> bool:
        """The broker does this for the mesh's own. From a guest's queue messages also fall out, and those
        are no dead letters, so that a guest lays aside itself what it cannot take."""
        if self.subscription.max_length is None:
            return False
        if outcome == _FAILED and int(str(message.headers.get("x-delivery-count", 0))) < DELIVERY_LIMIT:
            return False
        queue = self.subscription.queue
        await self._bus.publish_dead(message.body, queue, event_id=message.message_id or "unreadable")
        return True

    async def _take_one(self, message: AbstractIncomingMessage) -> str:
        if MARK in message.headers:
            return await self._take_mark(message)
        try:
            if not is_own(message):
                raise Undecodable(f"{message.routing_key} of {message.exchange} may not say it")
            event = self._inbox.decode(message.body)
        except Undecodable as error:
            with call.working_on(call.Call(_correlation_of(message.body))):
                log.error(
                    "message %s cannot be read and becomes a dead letter: %s", message.message_id, error
                )
            return self._count(_UNREADABLE)
        while True:
            try:
                first = await self._inbox.take(event)
            except Undecodable as error:
                with call.working_on(_call_of(event)):
                    log.error("event %s becomes a dead letter: %s", event.event_id, error)
                return self._count(_UNREADABLE)
            except (StoreUnavailable, CommitInDoubt):
                # Stop consuming and keep the message: giving it back would use up its deliveries.
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:
                with call.working_on(_call_of(event)):
                    log.exception("event %s (%s) failed and goes round", event.event_id, event.type)
                return self._count(_FAILED)
            else:
                return self._count(_TAKEN if first else _TAKEN_BEFORE)

    async def _take_mark(self, message: AbstractIncomingMessage) -> str:
        """No event: it has told by coming whatever it has to tell."""
        canary = canary_of(message)
        while canary is not None:
            try:
                await self._bindings.see(canary)
                break
            except (StoreUnavailable, CommitInDoubt):
                await asyncio.sleep(PAUSE_SECONDS)
        return _TAKEN

    def _count(self, outcome: str) -> str:
        telemetry.INBOX_EVENTS.labels(self.subscription.queue, outcome).inc()
        return outcome

    async def measure(self) -> None:
        """Count the dead letters for the metrics."""
        if self._bus.can_publish:
            with suppress(*BROKER_ERRORS):
                queue = self.subscription.queue
                telemetry.DEAD_LETTERS.labels(queue).set(await dead_letters.count_dead(self._bus, queue))


_TAKEN, _TAKEN_BEFORE, _UNREADABLE, _FAILED = "taken", "taken before", "unreadable", "failed"
_DONE = frozenset({_TAKEN, _TAKEN_BEFORE})


async def _next_batch(arrived: Deliveries, limit: int) -> list[AbstractIncomingMessage] | None:
    """What has arrived, at least one; None when no more will come."""
    batch: list[AbstractIncomingMessage] = []
    message = await arrived.get()
    while message is not None:
        batch.append(message)
        if len(batch) == limit or arrived.empty():
            return batch
        message = arrived.get_nowait()
    return None


__all__ = [
    "Consumer",
    "Handler",
    "Inbox",
    "InboxTables",
    "Received",
    "Subscription",
    "forget",
    "inbox_tables",
]
