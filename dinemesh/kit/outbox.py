"""The transactional outbox: an event is inserted with the change it tells of, and a relay publishes it.

Delivery is at least once: a row is marked sent after the broker's confirm, never inside a transaction
that waits for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import uuid_utils
from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    select,
    update,
)

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash
from dinemesh.kit.store import Instant, Transaction

# What a dead process had claimed is free again after this; far above the time of one batch.
LEASE_SECONDS = 30.0


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


@dataclass(frozen=True)
class Row:
    """What a relay has to know of an event in the outbox."""

    event_id: str
    routing_key: str
    envelope: bytes
    tries: int = 0
    """How often the broker has refused it."""


class Publisher(Protocol):
    """Who publishes what is added, in the same process."""

    @property
    def lease(self) -> timedelta | None:
        """For how long a row that is inserted now is claimed for it; None if it is not to be."""

    def take(self, rows: Sequence[Row]) -> None:
        """Rows that have just been committed, claimed for it."""


class Outbox:
    """Adds events to the transaction that changes the state. `encode` turns a domain event into a message."""

    def __init__(self, table: Table, encode: Callable[[Any], OutgoingEvent], source: str) -> None:
        self.table = table
        self._encode = encode
        self.source = source
        self._insert = table.insert()
        self._publisher: Publisher | None = None

    def add(self, tx: Transaction, event: Any) -> str:
        """Insert `event`, hand it to the relay after the commit, and return the event's id."""
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
        publisher = self._publisher
        lease = publisher.lease if publisher is not None else None
        row = Row(event_id, outgoing.routing_key, envelope.SerializeToString())
        tx.append(
            self._insert,
            {
                "event_id": row.event_id,
                "aggregate_id": outgoing.aggregate_id,
                "aggregate_version": outgoing.aggregate_version,
                "routing_key": row.routing_key,
                "envelope": row.envelope,
                "create_time": now,
                "claim_until": now + lease if lease is not None else None,
            },
        )
        if publisher is not None and lease is not None:
            tx.after_commit(partial(publisher.take, [row]))
        if __debug__:
            crash.did(outgoing.routing_key)
        return event_id

    def hand_over_to(self, publisher: Publisher) -> None:
        """Whoever publishes gets what is added from now on, after each commit."""
        self._publisher = publisher


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
