"""Domain values to protobuf and back: the one place of conversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, Literal, NamedTuple

from google.protobuf.message import Message
from google.type import timeofday_pb2

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import paging, wire
from dinemesh.kit.form import Form
from dinemesh.kit.outbox import OutgoingEvent
from dinemesh.kit.refusal import invalid
from dinemesh.reservation.v1 import events_pb2 as reservation_events_pb2
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import events_pb2, restaurant_pb2, restaurant_service_pb2
from restaurant_svc import domain
from restaurant_svc.domain import (
    Acceptance,
    Booking,
    BookingEvent,
    BookingFilter,
    BookingState,
    Cursor,
    Policy,
    ReservationSnapshot,
    ReservationState,
    Restaurant,
    Slot,
    Span,
    Terms,
)

_ACCEPTANCE = {
    restaurant_pb2.ACCEPTANCE_MODE_AUTO: Acceptance.AUTO,
    restaurant_pb2.ACCEPTANCE_MODE_MANUAL: Acceptance.MANUAL,
}
_ACCEPTANCE_MODE = {acceptance: mode for mode, acceptance in _ACCEPTANCE.items()}
_BOOKING_STATE = {
    restaurant_pb2.BOOKING_STATE_RECEIVED: BookingState.RECEIVED,
    restaurant_pb2.BOOKING_STATE_ACCEPTED: BookingState.ACCEPTED,
    restaurant_pb2.BOOKING_STATE_DECLINED: BookingState.DECLINED,
    restaurant_pb2.BOOKING_STATE_SEATED: BookingState.SEATED,
    restaurant_pb2.BOOKING_STATE_COMPLETED: BookingState.COMPLETED,
    restaurant_pb2.BOOKING_STATE_NO_SHOW: BookingState.NO_SHOW,
    restaurant_pb2.BOOKING_STATE_WITHDRAWN: BookingState.WITHDRAWN,
}
_BOOKING_STATE_NUMBER = {state: number for number, state in _BOOKING_STATE.items()}
_RESERVATION_STATE = {
    reservation_pb2.RESERVATION_STATE_PENDING_DEPOSIT: ReservationState.PENDING_DEPOSIT,
    reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE: ReservationState.PENDING_ACCEPTANCE,
    reservation_pb2.RESERVATION_STATE_CONFIRMED: ReservationState.CONFIRMED,
    reservation_pb2.RESERVATION_STATE_SEATED: ReservationState.SEATED,
    reservation_pb2.RESERVATION_STATE_COMPLETED: ReservationState.COMPLETED,
    reservation_pb2.RESERVATION_STATE_NO_SHOW: ReservationState.NO_SHOW,
    reservation_pb2.RESERVATION_STATE_FAILED: ReservationState.FAILED,
    reservation_pb2.RESERVATION_STATE_DECLINED: ReservationState.DECLINED,
    reservation_pb2.RESERVATION_STATE_CANCELLED: ReservationState.CANCELLED,
}

# --- restaurants and slots


def to_restaurant(restaurant: Restaurant) -> restaurant_pb2.Restaurant:
    """A restaurant as an answer shows it, with two etags: of the whole, and of the policy alone."""
    return restaurant_pb2.Restaurant(
        restaurant_id=restaurant.restaurant_id,
        name=restaurant.name,
        time_zone=restaurant.time_zone,
        policy=to_policy(restaurant.policy),
        policy_etag=restaurant.policy.etag,
        etag=restaurant.etag,
        create_time=wire.to_timestamp(restaurant.create_time),
        update_time=wire.to_timestamp(restaurant.update_time),
    )


def to_policy(policy: Policy) -> restaurant_pb2.Policy:
    """A policy for answers and events; its deposit in minor units becomes Money."""
    return restaurant_pb2.Policy(
        deposit_per_person=wire.to_money(policy.deposit_per_person, policy.currency),
        free_cancel_window_seconds=policy.free_cancel_window_seconds,
        acceptance=_ACCEPTANCE_MODE[policy.acceptance],
        acceptance_limit_seconds=policy.acceptance_limit_seconds,
        acceptance_lead_seconds=policy.acceptance_lead_seconds,
        no_show_grace_seconds=policy.no_show_grace_seconds,
        slot_interval_seconds=policy.slot_interval_seconds,
        service_duration_seconds=policy.service_duration_seconds,
        max_party_size=policy.max_party_size,
    )


def from_policy(policy: restaurant_pb2.Policy, field: str) -> Policy:
    """The policy of a request; its bounds are the domain's to check."""
    form = Form()
    deposit = form.read(_deposit_of, policy, f"{field}.deposit_per_person")
    acceptance = form.read(_acceptance_of, policy, f"{field}.acceptance")
    form.close()
    amount, currency = deposit
    return Policy(
        deposit_per_person=amount,
        currency=currency,
        free_cancel_window_seconds=policy.free_cancel_window_seconds,
        acceptance=acceptance,
        acceptance_limit_seconds=policy.acceptance_limit_seconds,
        acceptance_lead_seconds=policy.acceptance_lead_seconds,
        no_show_grace_seconds=policy.no_show_grace_seconds,
        slot_interval_seconds=policy.slot_interval_seconds,
        service_duration_seconds=policy.service_duration_seconds,
        max_party_size=policy.max_party_size,
    )


def _deposit_of(policy: restaurant_pb2.Policy, field: str) -> tuple[int, str]:
    wire.present(policy, "deposit_per_person", field)
    return wire.from_money(policy.deposit_per_person, field)


def _acceptance_of(policy: restaurant_pb2.Policy, field: str) -> Acceptance:
    acceptance = _ACCEPTANCE.get(policy.acceptance)
    if acceptance is None:
        raise invalid(field, "must be ACCEPTANCE_MODE_AUTO or ACCEPTANCE_MODE_MANUAL")
    return acceptance


def to_slot(slot: Slot) -> restaurant_pb2.Slot:
    """A slot for answers and events; a capacity of 0 is a closed one."""
    return restaurant_pb2.Slot(
        dine_time=wire.to_timestamp(slot.dine_time), capacity=slot.capacity, version=slot.version
    )


def from_opening(request: restaurant_service_pb2.OpenSlotsRequest) -> Span:
    """Which slots to open. An empty list of times is refused: what was lost on the way must not mean all."""
    form = Form()
    span = form.read(_span, request, request.times)
    if not request.times:
        form.wrong("times", "must have at least one entry, such as 19:00; nothing stands for all of them")
    form.close()
    return span


def from_closing(request: restaurant_service_pb2.CloseSlotsRequest) -> Span:
    """Which slots to close: exactly one of `times` and `all_times` says so, for the reason above."""
    form = Form()
    span = form.read(_span, request, None if request.all_times else request.times)
    if bool(request.times) == request.all_times:
        form.wrong("times", "must have at least one entry, unless all_times is true")
        form.wrong("all_times", "must be true to close all slots of the days, and only if times is empty")
    form.close()
    return span


def _span(
    request: restaurant_service_pb2.OpenSlotsRequest | restaurant_service_pb2.CloseSlotsRequest,
    times: Sequence[timeofday_pb2.TimeOfDay] | None,
) -> Span:
    form = Form()
    first, last = form.read(_date, request, "first_date"), form.read(_date, request, "last_date")
    # Before any of them is looked at: a call over gRPC may bring hundreds of thousands.
    read: tuple[time, ...] | None = None
    if times is not None and len(times) > domain.MAX_SLOTS_OF_DAY:
        form.wrong(
            "times", f"must have at most {domain.MAX_SLOTS_OF_DAY} entries, one for each minute of a day"
        )
    elif times is not None:
        read = tuple(
            form.read(wire.from_time_of_day, at, f"times[{number}]") for number, at in enumerate(times)
        )
    form.close()
    return Span(first_date=first, last_date=last, times=read)


def _date(
    request: restaurant_service_pb2.OpenSlotsRequest | restaurant_service_pb2.CloseSlotsRequest,
    field: Literal["first_date", "last_date"],
) -> date:
    wire.present(request, field)
    return wire.from_date(getattr(request, field), field)


# --- bookings


def to_booking(booking: Booking) -> restaurant_pb2.Booking:
    """A booking as staff see it, with the time from which a no-show can be marked."""
    terms = booking.terms
    message = restaurant_pb2.Booking(
        reservation_id=booking.reservation_id,
        restaurant_id=booking.restaurant_id,
        customer_id=booking.customer_id,
        dine_time=wire.to_timestamp(terms.dine_time),
        party_size=terms.party_size,
        revision=terms.revision,
        state=_BOOKING_STATE_NUMBER[booking.state],
        confirmed=booking.confirmed,
        no_show_time=wire.to_timestamp(booking.no_show_time),
        create_time=wire.to_timestamp(booking.create_time),
        update_time=wire.to_timestamp(booking.update_time),
    )
    if terms.accept_deadline is not None:
        message.accept_deadline.CopyFrom(wire.to_timestamp(terms.accept_deadline))
    return message


def from_booking_state(number: int, field: str) -> BookingState:
    """A state to filter by. Refuses an unspecified or unknown one, naming `field`."""
    state = _BOOKING_STATE.get(restaurant_pb2.BookingState.ValueType(number))
    if state is None:
        raise invalid(field, "is not a state of a booking")
    return state


def from_reservation(
    snapshot: reservation_events_pb2.ReservationSnapshot, version: int
) -> ReservationSnapshot:
    """What an event says of a reservation. Fails on a state that this version does not know."""
    deadline = None
    if snapshot.HasField("accept_deadline"):
        deadline = wire.from_timestamp(snapshot.accept_deadline, "accept_deadline")
    return ReservationSnapshot(
        reservation_id=snapshot.reservation_id,
        restaurant_id=snapshot.restaurant_id,
        customer_id=snapshot.customer_id,
        version=version,
        state=_RESERVATION_STATE[snapshot.state],
        terms=Terms(
            revision=snapshot.revision,
            dine_time=wire.from_timestamp(snapshot.dine_time, "dine_time"),
            party_size=snapshot.party_size,
            acceptance=_ACCEPTANCE[snapshot.policy.acceptance],
            accept_deadline=deadline,
            no_show_grace=timedelta(seconds=snapshot.policy.no_show_grace_seconds),
            service=timedelta(seconds=snapshot.policy.service_duration_seconds),
        ),
    )


# --- events

_BOOKING_EVENTS: dict[type[BookingEvent], Callable[..., Message]] = {
    domain.BookingReceived: events_pb2.BookingReceived,
    domain.BookingAccepted: events_pb2.BookingAccepted,
    domain.BookingDeclined: events_pb2.BookingDeclined,
    domain.BookingSeated: events_pb2.BookingSeated,
    domain.BookingNoShowMarked: events_pb2.BookingNoShowMarked,
    domain.BookingCompleted: events_pb2.BookingCompleted,
    domain.BookingWithdrawn: events_pb2.BookingWithdrawn,
}


def encode_event(event: Any) -> OutgoingEvent:
    """A domain event as the outbox takes it."""
    match event:
        case domain.RestaurantCreated(restaurant):
            return _restaurant_event(
                restaurant, events_pb2.RestaurantCreated(restaurant=_restaurant_snapshot(restaurant))
            )
        case domain.RestaurantUpdated(restaurant):
            return _restaurant_event(
                restaurant, events_pb2.RestaurantUpdated(restaurant=_restaurant_snapshot(restaurant))
            )
        case domain.SlotsChanged(restaurant_id, local_date, number, slots):
            message = events_pb2.SlotsChanged(
                restaurant_id=restaurant_id,
                date=wire.to_date(local_date),
                slots=[to_slot(slot) for slot in slots],
            )
            # An aggregate of its own, of one version: no later event makes this one void, since it names
            # other slots.
            change = f"{restaurant_id}/{local_date.isoformat()}/{number}"
            return OutgoingEvent(message, _routing_key(message), change, aggregate_version=1)
        case _:
            booking: Booking = event.booking
            message_of_booking = _BOOKING_EVENTS[type(event)](booking=_booking_snapshot(booking))
            return OutgoingEvent(
                message_of_booking,
                _routing_key(message_of_booking),
                aggregate_id=booking.reservation_id,
                aggregate_version=booking.version,
                customer_id=booking.customer_id,
                reservation_id=booking.reservation_id,
            )


def _restaurant_event(restaurant: Restaurant, message: Message) -> OutgoingEvent:
    return OutgoingEvent(message, _routing_key(message), restaurant.restaurant_id, restaurant.version)


def _restaurant_snapshot(restaurant: Restaurant) -> events_pb2.RestaurantSnapshot:
    return events_pb2.RestaurantSnapshot(
        restaurant_id=restaurant.restaurant_id,
        name=restaurant.name,
        time_zone=restaurant.time_zone,
        policy=to_policy(restaurant.policy),
    )


def _booking_snapshot(booking: Booking) -> events_pb2.BookingSnapshot:
    shown = to_booking(booking)
    return events_pb2.BookingSnapshot(
        reservation_id=shown.reservation_id,
        restaurant_id=shown.restaurant_id,
        customer_id=shown.customer_id,
        dine_time=shown.dine_time,
        party_size=shown.party_size,
        revision=shown.revision,
        state=shown.state,
        confirmed=shown.confirmed,
        accept_deadline=shown.accept_deadline if shown.HasField("accept_deadline") else None,
        accepted_revision=booking.accepted_revision,
    )


def _routing_key(message: Message) -> str:
    return message.DESCRIPTOR.GetOptions().Extensions[envelope_pb2.routing_key]


# --- tokens


class RestaurantPlace(NamedTuple):
    """The last restaurant of a page."""

    name: str
    restaurant_id: str


class BookingPlace(NamedTuple):
    """The last booking of a page."""

    dine_time: datetime
    reservation_id: str


RESTAURANT_PAGES = paging.Tokens(
    "ListRestaurants", RestaurantPlace, paging.Text(domain.MAX_NAME), paging.UUID
)
# Scope: `scope_of` the filter.
BOOKING_PAGES = paging.Tokens("ListBookings", BookingPlace, paging.INSTANT, paging.UUID)
# Scope: restaurant_id.
WATCH = paging.Tokens(
    "WatchBookings",
    Cursor,
    paging.OrNone(paging.INSTANT),
    paging.INSTANT,
    paging.OrNone(paging.UUID),
    field="resume_token",
)


def scope_of(which: BookingFilter) -> tuple[str, ...]:
    """All that decides on the rows of the list."""
    bounds = ("" if bound is None else bound.isoformat() for bound in (which.start, which.end))
    return which.restaurant_id, *bounds, *sorted(which.states)
