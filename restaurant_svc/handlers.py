"""What the restaurant listens to: whatever becomes of a reservation."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from dinemesh.kit.inbox import Received, Subscription
from dinemesh.kit.store import Transaction
from dinemesh.reservation.v1 import events_pb2
from restaurant_svc import messages
from restaurant_svc.usecases import Restaurants

QUEUE = "restaurant.bookings"

# Each carries the whole reservation, so one handler serves them all.
_EVENTS: tuple[type[Message], ...] = (
    events_pb2.ReservationPlaced,
    events_pb2.ReservationConfirmed,
    events_pb2.ReservationModified,
    events_pb2.ReservationModificationFailed,
    events_pb2.ReservationDeclined,
    events_pb2.ReservationCancelled,
    events_pb2.ReservationFailed,
    events_pb2.ReservationSeated,
    events_pb2.ReservationCompleted,
    events_pb2.ReservationNoShowRecorded,
)


def subscription(restaurants: Restaurants) -> Subscription:
    """What the queue of bookings is bound to, and what is done with it."""

    def on_reservation_changed(tx: Transaction, event: Received[Any]) -> None:
        restaurants.on_reservation(
            tx, messages.from_reservation(event.message.reservation, event.aggregate_version)
        )

    return Subscription(
        queue=QUEUE,
        bindings=["reservation.v1.*"],
        handlers=dict.fromkeys(_EVENTS, on_reservation_changed),
    )
