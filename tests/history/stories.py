"""Events as the other services tell them: a small story of one reservation, and single events to order."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message

from dinemesh.deposit.v1 import deposit_pb2
from dinemesh.deposit.v1 import events_pb2 as deposit_events
from dinemesh.event.v1 import envelope_pb2
from dinemesh.history.v1 import history_pb2
from dinemesh.kit import wire
from dinemesh.kit.store import Transaction
from dinemesh.reservation.v1 import events_pb2 as reservation_events
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from dinemesh.restaurant.v1 import restaurant_pb2
from history_svc import persistence

START = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
DINE_TIME = datetime(2026, 12, 12, 19, 0, tzinfo=UTC)
RESTAURANT = "00000000-0000-4000-8000-00000000e57a"


def envelope(
    message: Message,
    *,
    aggregate_id: str,
    version: int = 1,
    customer_id: str = "",
    reservation_id: str = "",
    event_id: str = "",
    at: datetime = START,
    kind: str = "",
) -> bytes:
    """The bytes that travel. `kind` pretends to be a type that nobody knows."""
    name = kind or message.DESCRIPTOR.full_name
    return envelope_pb2.Envelope(
        event_id=event_id or str(uuid.uuid4()),
        type=name,
        source=name.split(".")[1],
        aggregate_id=aggregate_id,
        aggregate_version=version,
        occur_time=wire.to_timestamp(at),
        customer_id=customer_id,
        reservation_id=reservation_id,
        correlation_id="the request",
        causation_id="the cause",
        payload=message.SerializeToString(),
    ).SerializeToString()


def empty(tx: Transaction, subscriber: str) -> None:
    """Leave nothing in the view and its archive, and a subscriber that has taken nothing."""
    for table in (persistence.timeline_entries, persistence.archived_events):
        tx.execute(table.delete())
    persistence.forget(tx, subscriber)


def reservation(
    reservation_id: str, customer_id: str, **fields: Any
) -> reservation_events.ReservationSnapshot:
    """A reservation of a table for four."""
    values: dict[str, Any] = {
        "restaurant_id": RESTAURANT,
        "dine_time": wire.to_timestamp(DINE_TIME),
        "party_size": 4,
        "revision": 1,
        "price": wire.to_money(8000, "EUR"),
        "state": reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE,
    }
    return reservation_events.ReservationSnapshot(
        reservation_id=reservation_id, customer_id=customer_id, **(values | fields)
    )


def deposit(
    deposit_id: str, reservation_id: str, customer_id: str, **fields: Any
) -> deposit_events.DepositSnapshot:
    """A deposit of 80.00 EUR, captured."""
    values: dict[str, Any] = {
        "amount": wire.to_money(8000, "EUR"),
        "captured": wire.to_money(8000, "EUR"),
        "state": deposit_pb2.DEPOSIT_STATE_CAPTURED,
    }
    return deposit_events.DepositSnapshot(
        deposit_id=deposit_id, reservation_id=reservation_id, customer_id=customer_id, **(values | fields)
    )


def booking(reservation_id: str, customer_id: str, **fields: Any) -> restaurant_events.BookingSnapshot:
    """The restaurant's copy of it."""
    values: dict[str, Any] = {
        "restaurant_id": RESTAURANT,
        "dine_time": wire.to_timestamp(DINE_TIME),
        "party_size": 4,
        "revision": 1,
        "state": restaurant_pb2.BOOKING_STATE_RECEIVED,
    }
    return restaurant_events.BookingSnapshot(
        reservation_id=reservation_id, customer_id=customer_id, **(values | fields)
    )


def booked_and_cancelled(customer_id: str, reservation_id: str) -> list[bytes]:
    """Charged, placed, received, accepted, confirmed, cancelled, withdrawn, refunded; a minute apart."""
    deposit_id = str(uuid.uuid4())
    cancelled = reservation(
        reservation_id,
        customer_id,
        state=reservation_pb2.RESERVATION_STATE_CANCELLED,
        cancelled_by=reservation_pb2.CANCELLED_BY_CUSTOMER,
    )
    confirmed = reservation(reservation_id, customer_id, state=reservation_pb2.RESERVATION_STATE_CONFIRMED)
    accepted = booking(reservation_id, customer_id, state=restaurant_pb2.BOOKING_STATE_ACCEPTED)
    withdrawn = booking(reservation_id, customer_id, state=restaurant_pb2.BOOKING_STATE_WITHDRAWN)
    captured = deposit(deposit_id, reservation_id, customer_id)
    returned = deposit(deposit_id, reservation_id, customer_id, state=deposit_pb2.DEPOSIT_STATE_REFUNDED)
    money = wire.to_money(8000, "EUR")
    told: list[tuple[str, int, Message]] = [
        (deposit_id, 1, deposit_events.DepositCaptured(deposit=captured)),
        (
            reservation_id,
            1,
            reservation_events.ReservationPlaced(reservation=reservation(reservation_id, customer_id)),
        ),
        (reservation_id, 1, restaurant_events.BookingReceived(booking=booking(reservation_id, customer_id))),
        (reservation_id, 2, restaurant_events.BookingAccepted(booking=accepted)),
        (reservation_id, 2, reservation_events.ReservationConfirmed(reservation=confirmed)),
        (reservation_id, 3, reservation_events.ReservationCancelled(reservation=cancelled, refunded=money)),
        (reservation_id, 3, restaurant_events.BookingWithdrawn(booking=withdrawn)),
        (deposit_id, 2, deposit_events.DepositRefunded(deposit=returned, refund_id="r", amount=money)),
    ]
    return [
        envelope(
            message,
            aggregate_id=aggregate_id,
            version=version,
            customer_id=customer_id,
            reservation_id=reservation_id,
            at=START + timedelta(minutes=minute),
        )
        for minute, (aggregate_id, version, message) in enumerate(told)
    ]


KINDS_OF_THE_STORY = (
    "DEPOSIT_CAPTURED",
    "RESERVATION_PLACED",
    "BOOKING_RECEIVED",
    "BOOKING_ACCEPTED",
    "RESERVATION_CONFIRMED",
    "RESERVATION_CANCELLED",
    "BOOKING_WITHDRAWN",
    "DEPOSIT_REFUNDED",
)


def all_events() -> list[type[Message]]:
    """Every event of every service: the messages of the contracts that have a routing key."""
    found: list[type[Message]] = []
    for module in (reservation_events, deposit_events, restaurant_events):
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items():
            if descriptor.GetOptions().HasExtension(envelope_pb2.routing_key):
                found.append(getattr(module, name))
    return found


def kind_name(kind: int) -> str:
    """The name of a TimelineEntryKind without its prefix."""
    number: Any = kind
    return history_pb2.TimelineEntryKind.Name(number).removeprefix("TIMELINE_ENTRY_KIND_")
