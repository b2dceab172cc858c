"""What the answers are held against: the audit's snapshot, and what the services said over time.

Read from outside like the snapshot. The outbox keeps every event, and each carries the whole state.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from dinemesh.event.v1 import envelope_pb2
from dinemesh.reservation.v1 import events_pb2 as reservation_events
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from dinemesh.restaurant.v1 import restaurant_pb2
from operations import snapshot
from operations.snapshot import Snapshot, Sources
from tests.torture.record import Terms

T = TypeVar("T")

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stage:
    """A state that a reservation went through, told by an event of its own. `happened`: the event's name;
    `time`: when, by the service's clock."""

    happened: str
    state: str
    revision: int
    terms: Terms
    time: datetime = LONG_AGO


@dataclass(frozen=True)
class BookingStage:
    state: str
    revision: int


@dataclass(frozen=True)
class Books:
    """`requests`: the reservation that a (customer, request_id) ended with. `stages` and `bookings`: what was
    told of each reservation, oldest first."""

    snapshot: Snapshot
    requests: Mapping[tuple[str, str], str] = field(default_factory=dict)
    stages: Mapping[str, Sequence[Stage]] = field(default_factory=dict)
    bookings: Mapping[str, Sequence[BookingStage]] = field(default_factory=dict)
    taken: Mapping[str, Set[str]] = field(default_factory=dict)
    """Event ids by subscriber, out of its inbox."""

    @cached_property
    def returned(self) -> Mapping[str, int]:
        """What the provider gave back, by deposit."""
        return {
            charge.key: sum(refund.minor for refund in charge.refunds if refund.succeeded)
            for charge in self.snapshot.charges
        }

    @cached_property
    def forfeited(self) -> Mapping[str, int]:
        """What was kept for good, by deposit."""
        sums: Counter[str] = Counter()
        for forfeit in self.snapshot.forfeits:
            sums[forfeit.deposit_id] += forfeit.amount_minor
        return sums


# Who listens to whom. An audit sees the effects; this sees each event.
_LISTENS: Mapping[str, tuple[str, ...]] = {
    "reservation.restaurants": ("restaurant",),
    "reservation.deposits": ("deposit",),
    "deposit.instructions": ("reservation",),
    "restaurant.bookings": ("reservation",),
    "history.timeline": ("reservation", "deposit", "restaurant"),
}


def missing(books: Books) -> Iterator[tuple[str, str, str]]:
    """(queue, routing key, event id) of each event that was committed, and that a subscriber never took."""
    for queue, sources in _LISTENS.items():
        for event in books.snapshot.outgoing:
            if event.source in sources and event.event_id not in books.taken[queue]:
                yield queue, event.routing_key, event.event_id


async def read(sources: Sources) -> Books:
    assert sources.reservation_db is not None and sources.restaurant_db is not None
    seen = await snapshot.take(sources)
    requests, stages = await asyncio.to_thread(look, sources.reservation_db, _reservation)
    bookings = await asyncio.to_thread(look, sources.restaurant_db, _restaurant)
    taken: dict[str, set[str]] = {queue: set() for queue in _LISTENS}
    for url in (sources.reservation_db, sources.deposit_db, sources.restaurant_db, sources.history_db):
        assert url is not None
        for subscriber, event_id in await asyncio.to_thread(look, url, _inbox):
            taken[subscriber].add(event_id)
    return Books(seen, requests, stages, bookings, taken)


def look(url: str, ask: Callable[[Connection], T]) -> T:
    """One reading of a service's database."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return ask(connection)
    finally:
        engine.dispose()


def _inbox(connection: Connection) -> list[tuple[str, str]]:
    rows = connection.execute(text("SELECT subscriber, event_id FROM inbox"))
    return [(row.subscriber, row.event_id) for row in rows]


def _reservation(connection: Connection) -> tuple[dict[tuple[str, str], str], dict[str, list[Stage]]]:
    rows = connection.execute(text("SELECT customer_id, request_id, reservation_id FROM requests"))
    requests = {(row.customer_id, row.request_id): row.reservation_id for row in rows}
    stages: dict[str, list[Stage]] = {}
    for name, message, time in _events(connection, reservation_events, "reservation"):
        said = message.reservation
        stages.setdefault(said.reservation_id, []).append(
            Stage(
                name,
                state_name(said.state),
                said.revision,
                Terms(said.restaurant_id, said.dine_time.ToDatetime(UTC), said.party_size),
                time,
            )
        )
    return requests, stages


def _restaurant(connection: Connection) -> dict[str, list[BookingStage]]:
    stages: dict[str, list[BookingStage]] = {}
    for _, message, _ in _events(connection, restaurant_events, "booking"):
        said = message.booking
        stages.setdefault(said.reservation_id, []).append(
            BookingStage(booking_state_name(said.state), said.revision)
        )
    return stages


def _events(connection: Connection, module: Any, about: str) -> list[tuple[str, Any, datetime]]:
    """The events that have a field `about`, by aggregate in the order of their versions; with their times."""
    found: list[tuple[str, int, str, Message, datetime]] = []
    for (body,) in connection.execute(text("SELECT envelope FROM outbox")):
        envelope = envelope_pb2.Envelope.FromString(bytes(body))
        name = envelope.type.rpartition(".")[2]
        kind = getattr(module, name)
        if about in kind.DESCRIPTOR.fields_by_name:
            message = kind.FromString(envelope.payload)
            time = envelope.occur_time.ToDatetime(UTC)
            found.append((envelope.aggregate_id, envelope.aggregate_version, name, message, time))
    found.sort(key=lambda one: one[:2])
    return [(name, message, time) for _, _, name, message, time in found]


def state_name(state: reservation_pb2.ReservationState.ValueType) -> str:
    return reservation_pb2.ReservationState.Name(state).removeprefix("RESERVATION_STATE_")


def booking_state_name(state: restaurant_pb2.BookingState.ValueType) -> str:
    return restaurant_pb2.BookingState.Name(state).removeprefix("BOOKING_STATE_")
