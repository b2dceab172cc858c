"""Consuming events: each one takes effect once per subscriber, in the transaction that records it.

Nothing waits for a gap and nothing is refused: a handler that has nothing to do changes nothing. Only what
cannot be read, or fails again and again, becomes a dead letter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
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
from sqlalchemy.sql.dml import ReturningInsert

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash, telemetry
from dinemesh.kit.batches import DecodeError
from dinemesh.kit.canaries import canaries_table
from dinemesh.kit.store import Instant, Store, Transaction

M = TypeVar("M")

# A version further than this above the highest seen is none: taken for one, it would mute all that follow.
# Far above what a subscriber can have missed of one aggregate.
MOST_VERSIONS_AHEAD = 100_000
# What every database and every language keeps exactly.
HIGHEST_VERSION = 2**53


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
    envelope: envelope_pb2.Envelope = field(repr=False)
    """The whole of it, as it came."""


Handler = Callable[[Transaction, Received[Any]], None]


@dataclass(frozen=True)
class Subscription:
    """What a subscriber listens to.

    `bindings` are routing key patterns (`reservation.v1.*`, `#`). A type without a handler goes to `other`
    (its message is then the undecoded bytes), or has no effect. With `newest_only` a version of an aggregate
    that is not higher than the highest seen has no effect: every event carries the whole state. Those of the
    types in `each_once` do not replace one another: every one of them has its effect, and the handler
    compares the versions that stand in it.

    With `effect_is_keyed` an event that is taken twice has the effect of one, by what its handler writes: a
    key of the event or of what stands in it, or a version. Where neither that nor `newest_only` says so for
    all events, the inbox alone knows the duplicates, and its rows are kept for ever.

    `together` does for several events at once, in fewer statements, what handlers do for each.

    A subscriber that does not belong to the mesh has a `max_length`: when so many messages wait in its queue,
    the oldest fall out, and it reads the log instead. Nobody else notices. That of a queue that exists
    cannot be changed: delete the queue; the next start reads the log.
    """

    queue: str
    bindings: Sequence[str]
    handlers: Mapping[type[Message], Handler]
    other: Handler | None = None
    together: Callable[[Transaction, Sequence[Received[Any]]], None] | None = None
    newest_only: bool = True
    each_once: frozenset[type[Message]] = frozenset()
    effect_is_keyed: bool = False
    max_length: int | None = None

    @property
    def outlives_inbox(self) -> bool:
        """Whether a duplicate changes nothing even when its row in the inbox is gone."""
        return self.effect_is_keyed or (self.newest_only and not self.each_once)


@dataclass(frozen=True)
class _Statements:
    """Built once: to build a statement costs the processor more than to run it."""

    record: ReturningInsert[Any]
    raise_version: ReturningInsert[Any]
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
        """The event in the bytes of an envelope. Raises Undecodable."""
        try:
            return self.received(envelope_pb2.Envelope.FromString(body))
        except DecodeError as error:
            raise Undecodable(str(error)) from error

    def received(self, envelope: envelope_pb2.Envelope) -> Received[Any]:
        """The event in an envelope. Raises Undecodable. The message of a type without a handler stays
        bytes."""
        try:
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
            envelope=envelope,
        )

    def handler(self, event: Received[Any]) -> Handler | None:
        """Who wants this event, if anybody."""
        _, handle = self._types.get(event.type, (None, self._subscription.other))
        return handle

    async def take(self, event: Received[Any]) -> bool:
        """Commit the event's effect; False if it had been taken before. Raises what the handler raises."""
        with call.working_on(call_of(event)):
            (first,) = await self.take_all([event])
        return first

    async def take_all(self, events: Sequence[Received[Any]]) -> list[bool]:
        """Commit the effects of all these events together; for each, False if it had been taken before.
        Raises what a handler raises: then none has had an effect."""
        return await self._store.write(functools.partial(self._apply, events=events))

    def _apply(self, tx: Transaction, events: Sequence[Received[Any]]) -> list[bool]:
        statements = self._statements(tx)
        unseen = self._record(tx, statements, events)
        if __debug__ and unseen:
            crash.point("inbox.recorded")
        first: list[bool] = []
        fresh: list[Received[Any]] = []
        for event in events:
            first.append(event.event_id in unseen)
            if first[-1]:
                unseen.discard(event.event_id)
                fresh.append(event)
        newest = [event for event in self._newest(tx, statements, fresh) if self.handler(event) is not None]
        if self._subscription.together is not None:
            self._subscription.together(tx, newest)
        else:
            for event in newest:
                self._handle(tx, event)
        lag = telemetry.INBOX_LAG.labels(self._subscription.queue)
        for event in fresh:
            lag.observe(max(0.0, (tx.now - event.occur_time).total_seconds()))
        return first

    def _record(self, tx: Transaction, statements: _Statements, events: Sequence[Received[Any]]) -> set[str]:
        """The ids of those that were not known."""
        rows = [
            {"subscriber": self._subscription.queue, "event_id": event_id, "receive_time": tx.now}
            # In one order, so that two pods do not wait for each other.
            for event_id in sorted({event.event_id for event in events})
        ]
        return set(tx.execute(statements.record, rows).scalars())

    def _handle(self, tx: Transaction, event: Received[Any]) -> None:
        handle = self.handler(event)
        assert handle is not None
        with call.working_on(call_of(event)):
            handle(tx, event)

    def _newest(
        self, tx: Transaction, statements: _Statements, events: Sequence[Received[Any]]
    ) -> list[Received[Any]]:
        """Those that no other replaces, neither of these nor one that was taken before."""
        if not self._subscription.newest_only:
            return list(events)
        highest: dict[str, Received[Any]] = {}
        for event in events:
            if self.handler(event) is None or type(event.message) in self._subscription.each_once:
                continue
            known = highest.setdefault(_aggregate_of(event), event)
            if event.aggregate_version > known.aggregate_version:
                highest[_aggregate_of(event)] = event
        raised: set[str] = set()
        if highest:
            rows = [self._version(tx, statements, highest[aggregate]) for aggregate in sorted(highest)]
            raised = set(tx.execute(statements.raise_version, rows).scalars())
        winners = {id(event) for aggregate, event in highest.items() if aggregate in raised}
        return [
            event
            for event in events
            if id(event) in winners or type(event.message) in self._subscription.each_once
        ]

    def _version(self, tx: Transaction, statements: _Statements, event: Received[Any]) -> dict[str, Any]:
        row = {
            "subscriber": self._subscription.queue,
            "aggregate": _aggregate_of(event),
            "version": event.aggregate_version,
        }
        if event.aggregate_version > MOST_VERSIONS_AHEAD:
            seen = tx.execute(statements.seen, row).scalar_one_or_none() or 0
            if event.aggregate_version > seen + MOST_VERSIONS_AHEAD:
                raise Undecodable(f"version {event.aggregate_version} cannot follow version {seen}")
        return row

    def _statements(self, tx: Transaction) -> _Statements:
        if self._prepared is None:
            versions = self._tables.versions
            insert = tx.insert(versions)
            raise_version = insert.on_conflict_do_update(
                index_elements=[versions.c.subscriber, versions.c.aggregate],
                set_={"version": insert.excluded.version},
                where=versions.c.version < insert.excluded.version,
            ).returning(versions.c.aggregate)
            seen = select(versions.c.version).where(
                versions.c.subscriber == bindparam("subscriber"),
                versions.c.aggregate == bindparam("aggregate"),
            )
            inbox = self._tables.inbox
            record = tx.insert(inbox).on_conflict_do_nothing().returning(inbox.c.event_id)
            self._prepared = _Statements(record, raise_version, seen)
        return self._prepared

    # Whether this subscriber has read what was said before its queue existed.

    async def caught_up(self) -> bool:
        """Tells whether this subscriber has read the log since its queue was made; False without a record."""
        table = self._tables.subscriptions
        query = select(table.c.caught_up).where(table.c.subscriber == self._subscription.queue)
        return bool(await self._store.read(lambda tx: tx.execute(query).scalar_one_or_none()))

    async def set_caught_up(self, value: bool) -> None:
        """Records the answer of `caught_up`, in a transaction of its own."""

        def change(tx: Transaction) -> None:
            insert = tx.insert(self._tables.subscriptions)
            values = insert.values(subscriber=self._subscription.queue, caught_up=value)
            tx.execute(
                values.on_conflict_do_update(
                    index_elements=[self._tables.subscriptions.c.subscriber], set_={"caught_up": value}
                )
            )

        await self._store.write(change)


def _aggregate_of(event: Received[Any]) -> str:
    return f"{event.source}/{event.aggregate_id}"


def call_of(event: Received[Any]) -> call.Call:
    """The work that an event causes."""
    return replace(
        call.current.get(),
        correlation_id=event.correlation_id,
        causation_id=event.event_id,
        traceparent=event.traceparent,
        method=event.type,
    )


def forget(tx: Transaction, tables: InboxTables, subscriber: str) -> None:
    """Forget all that `subscriber` took, so that its next start reads the whole log again."""
    for table in (tables.inbox, tables.versions, tables.subscriptions, tables.canaries):
        tx.execute(delete(table).where(and_(table.c.subscriber == subscriber)))


__all__ = [
    "Handler",
    "Inbox",
    "InboxTables",
    "Received",
    "Subscription",
    "Undecodable",
    "call_of",
    "forget",
    "inbox_tables",
]
