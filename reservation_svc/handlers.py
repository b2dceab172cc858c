"""What reservation listens to: restaurants, slots and bookings of restaurant, and the deposits."""

from __future__ import annotations

from typing import Any

from dinemesh.deposit.v1 import events_pb2 as deposit_events
from dinemesh.kit.inbox import Received, Subscription
from dinemesh.kit.store import Transaction
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from reservation_svc import messages
from reservation_svc.usecases import event_handlers
from reservation_svc.usecases.context import ReservationContext

RESTAURANTS_QUEUE = "reservation.restaurants"
DEPOSITS_QUEUE = "reservation.deposits"

_BOOKING_EVENTS = (
    restaurant_events.BookingReceived,
    restaurant_events.BookingAccepted,
    restaurant_events.BookingDeclined,
    restaurant_events.BookingSeated,
    restaurant_events.BookingNoShowMarked,
    restaurant_events.BookingCompleted,
    restaurant_events.BookingWithdrawn,
)
_DEPOSIT_EVENTS = (
    deposit_events.DepositCaptured,
    deposit_events.DepositDeclined,
    deposit_events.DepositVoided,
    deposit_events.DepositRefunded,
    deposit_events.DepositRefundFailed,
    deposit_events.DepositForfeited,
)


def restaurants(ctx: ReservationContext) -> Subscription:
    """Listens to all that restaurant tells: its terms and slots become our copy, its bookings move
    reservations."""

    def on_restaurant(tx: Transaction, event: Received[Any]) -> None:
        event_handlers.on_restaurant(tx, messages.from_restaurant(event.message.restaurant))

    def on_slots_changed(tx: Transaction, event: Received[restaurant_events.SlotsChanged]) -> None:
        event_handlers.on_slots(tx, event.message.restaurant_id, messages.from_slots(event.message))

    def on_booking(tx: Transaction, event: Received[Any]) -> None:
        booking = event.message.booking
        event_handlers.on_booking(ctx, tx, booking.reservation_id, messages.from_booking(booking))

    return Subscription(
        queue=RESTAURANTS_QUEUE,
        bindings=("restaurant.v1.*",),
        handlers={
            restaurant_events.RestaurantCreated: on_restaurant,
            restaurant_events.RestaurantUpdated: on_restaurant,
            restaurant_events.SlotsChanged: on_slots_changed,
            **dict.fromkeys(_BOOKING_EVENTS, on_booking),
        },
        # Each names the slots that changed, and each slot has its version.
        each_once=frozenset({restaurant_events.SlotsChanged}),
        effect_is_keyed=True,
    )


def deposits(ctx: ReservationContext) -> Subscription:
    """Listens to all that deposit tells; an outcome that a reservation still awaits is concluded by it."""

    def on_deposit(tx: Transaction, event: Received[Any]) -> None:
        deposit = event.message.deposit
        event_handlers.on_deposit(ctx, tx, deposit.reservation_id, messages.from_deposit(deposit))

    return Subscription(
        queue=DEPOSITS_QUEUE,
        bindings=("deposit.v1.*",),
        handlers=dict.fromkeys(_DEPOSIT_EVENTS, on_deposit),
    )
