"""Domain values to protobuf and back: the one place of conversions."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from datetime import date, datetime
from typing import NamedTuple

from google.protobuf.message import Message

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.deposit.v1 import events_pb2 as deposit_events_pb2
from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import paging, wire
from dinemesh.kit.form import Form
from dinemesh.kit.instants import to_micros
from dinemesh.kit.outbox import OutgoingEvent
from dinemesh.kit.refusal import invalid
from dinemesh.reservation.v1 import events_pb2, reservation_pb2, reservation_service_pb2
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events_pb2
from dinemesh.restaurant.v1 import restaurant_pb2
from reservation_svc.domain import (
    Acceptance,
    BookingSnapshot,
    BookingState,
    CancelledBy,
    Cause,
    Change,
    Charge,
    DeclineCause,
    DepositLine,
    DepositSnapshot,
    DepositState,
    EventType,
    Failure,
    Kind,
    Offer,
    Order,
    Policy,
    RequestedChange,
    Reservation,
    ReservationEvent,
    Restaurant,
    SlotSnapshot,
    State,
)

MAX_NOTE = 500
MAX_TOKEN = 128
MAX_ETAG = 64
MAX_PARTY = 1000  # the largest that any policy allows
_WHICH_POLICY = (
    "is required: the policy_etag of the answer of ListAvailableSlots (or GetRestaurant) that was shown"
)
# Days whose bounds are instants in every time zone, with room to spare.
_FIRST_YEAR, _LAST_YEAR = 1970, 9998
_WHICH_DAY = f'must be a day in the form "YYYY-MM-DD", of the years {_FIRST_YEAR} to {_LAST_YEAR}'
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

_ACCEPTANCE = {
    restaurant_pb2.ACCEPTANCE_MODE_AUTO: Acceptance.AUTO,
    restaurant_pb2.ACCEPTANCE_MODE_MANUAL: Acceptance.MANUAL,
}
_MODE = {acceptance: mode for mode, acceptance in _ACCEPTANCE.items()}
_STATE = {state: reservation_pb2.ReservationState.Value(f"RESERVATION_STATE_{state}") for state in State}
_CANCELLED_BY = {by: reservation_pb2.CancelledBy.Value(f"CANCELLED_BY_{by}") for by in CancelledBy}
_FAILURE = {cause: reservation_pb2.FailureCause.Value(f"FAILURE_CAUSE_{cause}") for cause in Failure}
_DECLINE = {cause: reservation_pb2.DeclineCause.Value(f"DECLINE_CAUSE_{cause}") for cause in DeclineCause}
_DEPOSIT_STATE = {state: deposit_pb2.DepositState.Value(f"DEPOSIT_STATE_{state}") for state in DepositState}
_HEARD_DEPOSIT_STATE = {number: state for state, number in _DEPOSIT_STATE.items()}
_HEARD_BOOKING_STATE = {
    restaurant_pb2.BookingState.Value(f"BOOKING_STATE_{state}"): state for state in BookingState
}

# --- requests -------------------------------------------------------------------------------------------


_WithDineTime = (
    reservation_service_pb2.CreateReservationRequest | reservation_service_pb2.ModifyReservationRequest
)


def dine_time(message: _WithDineTime) -> datetime:
    """The `dine_time` of a request, aware UTC in whole seconds."""
    wire.present(message, "dine_time")
    if message.dine_time.nanos:
        raise invalid("dine_time", "must be in whole seconds")
    return wire.from_timestamp(message.dine_time, "dine_time")


def day(field: str, value: str) -> date:
    """A day in the form YYYY-MM-DD whose bounds are instants in every time zone."""
    # date.fromisoformat alone takes the week dates of ISO 8601 too, such as 2027-W18-6.
    if _DAY.fullmatch(wire.required(field, value)):
        with suppress(ValueError):
            found = date.fromisoformat(value)
            if _FIRST_YEAR <= found.year <= _LAST_YEAR:
                return found
    raise invalid(field, _WHICH_DAY)


def from_create(request: reservation_service_pb2.CreateReservationRequest, customer_id: str) -> Order:
    """The order of the customer whose token came with the call. Refuses with all that is wrong with the
    request."""
    form = Form()
    request_id = form.read(wire.uuid_field, "request_id", request.request_id)
    restaurant_id = form.read(wire.uuid_field, "restaurant_id", request.restaurant_id)
    at = form.read(dine_time, request)
    party_size = form.read(wire.between, "party_size", request.party_size, 1, MAX_PARTY)
    shown = request.policy_etag
    if shown:
        form.read(wire.text, "policy_etag", shown, MAX_ETAG)
    else:
        form.wrong("policy_etag", _WHICH_POLICY)
    token = form.read(wire.text, "payment_token", request.payment_token, MAX_TOKEN)
    note = form.read(wire.text, "note", request.note, MAX_NOTE, optional=True, lines=True)
    form.close()
    body = _hash("CreateReservation", restaurant_id, to_micros(at), party_size, shown, token, note)
    return Order(customer_id, request_id, restaurant_id, at, party_size, shown, note, token, body)


def from_modify(request: reservation_service_pb2.ModifyReservationRequest, customer_id: str) -> Change:
    """The change of the customer whose token came with the call; what the request leaves out stays as it is.
    Refuses with all that is wrong with it, also if nothing is to change."""
    form = Form()
    reservation_id = form.read(wire.uuid_field, "reservation_id", request.reservation_id)
    request_id = form.read(wire.uuid_field, "request_id", request.request_id)
    etag = form.read(wire.text, "etag", request.etag, MAX_ETAG)
    at = form.read(dine_time, request) if request.HasField("dine_time") else None
    party_size = None
    if request.HasField("party_size"):
        party_size = form.read(wire.between, "party_size", request.party_size, 1, MAX_PARTY)
    note = None
    if request.HasField("note"):
        note = form.read(wire.text, "note", request.note, MAX_NOTE, optional=True, lines=True)
    token = form.read(wire.text, "payment_token", request.payment_token, MAX_TOKEN, optional=True)
    if not any(request.HasField(field) for field in ("dine_time", "party_size", "note")):
        for field in ("dine_time", "party_size", "note"):
            form.wrong(field, "one of dine_time, party_size and note is required")
    form.close()
    time = None if at is None else to_micros(at)
    body = _hash("ModifyReservation", reservation_id, etag, time, party_size, token, note)
    return Change(
        customer_id,
        request_id,
        reservation_id,
        etag,
        RequestedChange(at, party_size, note),
        token,
        body,
    )


def _hash(*values: object) -> str:
    """Of the contents of a request; the payment token is in it, and cannot be read from it."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class Place(NamedTuple):
    """The last reservation of a page; the next page starts before it."""

    create_time: datetime
    reservation_id: str


class SlotPlace(NamedTuple):
    """The last slot of a page; the next page starts after it."""

    dine_time: datetime


# Scope: customer_id.
PAGES = paging.Tokens("ListReservations", Place, paging.INSTANT, paging.UUID)
# Scope: restaurant_id, date, party_size.
SLOT_PAGES = paging.Tokens("ListAvailableSlots", SlotPlace, paging.INSTANT)


# --- answers --------------------------------------------------------------------------------------------


def to_reservation(reservation: Reservation) -> reservation_pb2.Reservation:
    """A reservation as its customer and the staff see it: with the note and what each deposit holds, without
    instructions."""
    terms, currency, held = reservation.terms, reservation.policy.currency, reservation.held
    message = reservation_pb2.Reservation(
        reservation_id=reservation.reservation_id,
        customer_id=reservation.customer_id,
        restaurant_id=reservation.restaurant_id,
        dine_time=wire.to_timestamp(terms.dine_time),
        party_size=terms.party_size,
        revision=terms.revision,
        state=_STATE[reservation.state],
        deposits=[_to_deposit(line, held[line.deposit_id], currency) for line in reservation.deposits],
        policy=to_policy(reservation.policy),
        free_cancel_time=wire.to_timestamp(reservation.free_cancel_time),
        create_time=wire.to_timestamp(reservation.create_time),
        update_time=wire.to_timestamp(reservation.update_time),
        etag=reservation.etag,
        note=reservation.note,
    )
    _set_ends(message, reservation)
    return message


def _to_deposit(line: DepositLine, held: int, currency: str) -> reservation_pb2.ReservationDeposit:
    return reservation_pb2.ReservationDeposit(
        deposit_id=line.deposit_id,
        amount=wire.to_money(line.amount, currency),
        held=wire.to_money(held, currency),
        state=_DEPOSIT_STATE[line.state],
    )


def _set_ends(
    message: reservation_pb2.Reservation | events_pb2.ReservationSnapshot, reservation: Reservation
) -> None:
    if reservation.accept_deadline is not None:
        message.accept_deadline.CopyFrom(wire.to_timestamp(reservation.accept_deadline))
    if reservation.cancelled_by is not None:
        message.cancelled_by = _CANCELLED_BY[reservation.cancelled_by]
    if reservation.failure is not None:
        message.failure_cause = _FAILURE[reservation.failure]
    if reservation.decline_cause is not None:
        message.decline_cause = _DECLINE[reservation.decline_cause]


def to_slot(offer: Offer, currency: str) -> reservation_pb2.AvailableSlot:
    """An offer on the wire; `currency` is that of its deposit."""
    return reservation_pb2.AvailableSlot(
        dine_time=wire.to_timestamp(offer.dine_time),
        available=offer.is_available,
        deposit=wire.to_money(offer.deposit, currency),
        free_cancel_time=wire.to_timestamp(offer.free_cancel_time),
    )


def to_policy(policy: Policy) -> restaurant_pb2.Policy:
    """A policy as restaurant's own message has it: the deposit as Money, times in seconds."""
    return restaurant_pb2.Policy(
        deposit_per_person=wire.to_money(policy.deposit_per_person, policy.currency),
        free_cancel_window_seconds=policy.free_cancel_window_seconds,
        acceptance=_MODE[policy.acceptance],
        acceptance_limit_seconds=policy.acceptance_limit_seconds,
        acceptance_lead_seconds=policy.acceptance_lead_seconds,
        no_show_grace_seconds=policy.no_show_grace_seconds,
        slot_interval_seconds=policy.slot_interval_seconds,
        service_duration_seconds=policy.service_duration_seconds,
        max_party_size=policy.max_party_size,
    )


# --- calls to deposit -----------------------------------------------------------------------------------


def to_create_deposit(charge: Charge) -> deposit_service_pb2.CreateDepositRequest:
    """The one message that carries the payment token on."""
    return deposit_service_pb2.CreateDepositRequest(
        deposit_id=charge.deposit_id,
        reservation_id=charge.reservation_id,
        customer_id=charge.customer_id,
        amount=wire.to_money(charge.amount, charge.currency),
        payment_token=charge.payment_token,
    )


def is_captured(deposit: deposit_pb2.Deposit) -> bool:
    """Whether CreateDeposit answered that the money is with us; any other state leaves the outcome
    unknown."""
    return deposit.state == deposit_pb2.DEPOSIT_STATE_CAPTURED


# --- events of others -----------------------------------------------------------------------------------


def from_restaurant(snapshot: restaurant_events_pb2.RestaurantSnapshot) -> Restaurant:
    """Our copy of what an event says of a restaurant. Fails on an acceptance mode that this version does not
    know."""
    policy = snapshot.policy
    amount, currency = wire.from_money(policy.deposit_per_person, "deposit_per_person")
    return Restaurant(
        snapshot.restaurant_id,
        snapshot.time_zone,
        Policy(
            deposit_per_person=amount,
            currency=currency,
            free_cancel_window_seconds=policy.free_cancel_window_seconds,
            acceptance=_ACCEPTANCE[policy.acceptance],
            acceptance_limit_seconds=policy.acceptance_limit_seconds,
            acceptance_lead_seconds=policy.acceptance_lead_seconds,
            no_show_grace_seconds=policy.no_show_grace_seconds,
            slot_interval_seconds=policy.slot_interval_seconds,
            service_duration_seconds=policy.service_duration_seconds,
            max_party_size=policy.max_party_size,
        ),
    )


def from_slots(event: restaurant_events_pb2.SlotsChanged) -> list[SlotSnapshot]:
    """The slots that changed, and no others; a capacity of 0 is a closed one."""
    return [
        SlotSnapshot(wire.from_timestamp(slot.dine_time, "dine_time"), slot.capacity, slot.version)
        for slot in event.slots
    ]


def from_booking(snapshot: restaurant_events_pb2.BookingSnapshot) -> BookingSnapshot:
    """A booking as an event tells it; it is `accepted` if its present revision is the one accepted last."""
    accepted = snapshot.accepted_revision == snapshot.revision
    return BookingSnapshot(_HEARD_BOOKING_STATE[snapshot.state], snapshot.revision, accepted)


def from_deposit(snapshot: deposit_events_pb2.DepositSnapshot) -> DepositSnapshot:
    """A deposit as an event tells it; it is `captured` if money was ever taken, whatever became of that."""
    captured = snapshot.captured.units > 0 or snapshot.captured.nanos > 0
    state = _HEARD_DEPOSIT_STATE[snapshot.state]
    return DepositSnapshot(snapshot.deposit_id, state, captured, snapshot.decline_code)


# --- events ---------------------------------------------------------------------------------------------


def encode_event(event: ReservationEvent) -> OutgoingEvent:
    """A domain event as the outbox takes it. The note and the payment token stay here."""
    reservation = event.reservation
    snapshot = to_snapshot(reservation)
    currency = reservation.policy.currency
    message: Message
    match event.what:
        case EventType.MODIFIED:
            previous = event.previous
            assert previous is not None
            message = events_pb2.ReservationModified(
                reservation=snapshot,
                previous=events_pb2.PreviousTerms(
                    revision=previous.revision,
                    dine_time=wire.to_timestamp(previous.dine_time),
                    party_size=previous.party_size,
                    price=wire.to_money(previous.price, currency),
                ),
            )
        case EventType.MODIFICATION_FAILED:
            cause = _FAILURE[event.failure or Failure.DEPOSIT_UNKNOWN]
            message = events_pb2.ReservationModificationFailed(reservation=snapshot, cause=cause)
        case EventType.CANCELLED:
            message = events_pb2.ReservationCancelled(
                reservation=snapshot,
                refunded=wire.to_money(reservation.ordered(Kind.REFUND, Cause.CANCELLED), currency),
                forfeited=wire.to_money(reservation.ordered(Kind.FORFEIT, Cause.CANCELLED), currency),
            )
        case EventType.PLACED:
            message = events_pb2.ReservationPlaced(reservation=snapshot)
        case EventType.CONFIRMED:
            message = events_pb2.ReservationConfirmed(reservation=snapshot)
        case EventType.DECLINED:
            message = events_pb2.ReservationDeclined(reservation=snapshot)
        case EventType.FAILED:
            message = events_pb2.ReservationFailed(reservation=snapshot)
        case EventType.SEATED:
            message = events_pb2.ReservationSeated(reservation=snapshot)
        case EventType.COMPLETED:
            message = events_pb2.ReservationCompleted(reservation=snapshot)
        case EventType.NO_SHOW_RECORDED:
            message = events_pb2.ReservationNoShowRecorded(reservation=snapshot)
    return OutgoingEvent(
        message,
        message.DESCRIPTOR.GetOptions().Extensions[envelope_pb2.routing_key],
        aggregate_id=reservation.reservation_id,
        aggregate_version=reservation.version,
        customer_id=reservation.customer_id,
        reservation_id=reservation.reservation_id,
    )


def to_snapshot(reservation: Reservation) -> events_pb2.ReservationSnapshot:
    """The whole reservation as an event carries it: with every instruction so far, without the note."""
    terms, currency, held = reservation.terms, reservation.policy.currency, reservation.held
    snapshot = events_pb2.ReservationSnapshot(
        reservation_id=reservation.reservation_id,
        customer_id=reservation.customer_id,
        restaurant_id=reservation.restaurant_id,
        dine_time=wire.to_timestamp(terms.dine_time),
        party_size=terms.party_size,
        revision=terms.revision,
        state=_STATE[reservation.state],
        policy=to_policy(reservation.policy),
        price=wire.to_money(terms.price, currency),
        free_cancel_time=wire.to_timestamp(reservation.free_cancel_time),
        deposits=[
            events_pb2.DepositSummary(
                deposit_id=line.deposit_id,
                amount=wire.to_money(line.amount, currency),
                held=wire.to_money(held[line.deposit_id], currency),
                state=_DEPOSIT_STATE[line.state],
            )
            for line in reservation.deposits
        ],
        create_time=wire.to_timestamp(reservation.create_time),
    )
    _set_ends(snapshot, reservation)
    for order in reservation.instructions:
        match order.kind:
            case Kind.VOID:
                snapshot.voids.add(deposit_id=order.deposit_id)
            case Kind.REFUND:
                amount = wire.to_money(order.amount, currency)
                snapshot.refunds.add(
                    refund_id=order.instruction_id, deposit_id=order.deposit_id, amount=amount
                )
            case Kind.FORFEIT:
                amount = wire.to_money(order.amount, currency)
                snapshot.forfeits.add(
                    forfeit_id=order.instruction_id, deposit_id=order.deposit_id, amount=amount
                )
    return snapshot
