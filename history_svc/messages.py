"""Events of all services into entries, and entries into the messages of the history contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.type import money_pb2

from dinemesh.deposit.v1 import deposit_pb2
from dinemesh.deposit.v1 import events_pb2 as deposit_events
from dinemesh.history.v1 import history_pb2
from dinemesh.kit import paging, wire
from dinemesh.kit.inbox import Received
from dinemesh.reservation.v1 import events_pb2 as reservation_events
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from dinemesh.restaurant.v1 import restaurant_pb2
from history_svc import domain
from history_svc.domain import (
    Archived,
    Cause,
    Cursor,
    Entry,
    Facts,
    Kind,
    Live,
    Money,
    Origin,
    Past,
    Place,
    Terms,
)

# Events in


def from_event(event: Received[Any]) -> Entry:
    """The entry of an event. One whose type is not among `READERS` is kept by its type and its ids."""
    reader = READERS.get(type(event.message))
    if reader is None:
        return domain.unknown(_origin(event))
    kind, facts = reader(event.message)
    return domain.entry(_origin(event), kind, facts)


def from_events(events: Sequence[Received[Any]]) -> tuple[list[Entry], list[Archived]]:
    """The entries of events, and the events as they came."""
    archived = [Archived(event.event_id, event.envelope.SerializeToString()) for event in events]
    return [from_event(event) for event in events], archived


Reader = Callable[[Any], tuple[Kind, Facts]]


def _reservation(
    kind: Kind, more: Callable[[Any, reservation_events.ReservationSnapshot], dict[str, Any]] | None = None
) -> Reader:
    def read(message: Any) -> tuple[Kind, Facts]:
        snapshot = message.reservation
        facts: dict[str, Any] = {
            "restaurant_id": snapshot.restaurant_id,
            "state": _name(reservation_pb2.ReservationState, snapshot.state, "RESERVATION_STATE_"),
            "revision": snapshot.revision,
            "terms": _terms(snapshot),
            "amount": _money(snapshot, "price"),
        }
        if more is not None:
            facts |= more(message, snapshot)
        return kind, Facts(**facts)

    return read


def _modified(message: Any, _snapshot: Any) -> dict[str, Any]:
    return {"previous": _terms(message.previous)}


def _modification_failed(message: Any, _snapshot: Any) -> dict[str, Any]:
    return {"cause": _FAILURE_CAUSES.get(message.cause)}


def _declined(_message: Any, snapshot: reservation_events.ReservationSnapshot) -> dict[str, Any]:
    late = snapshot.decline_cause == reservation_pb2.DECLINE_CAUSE_DEADLINE
    return {"cause": Cause.DEADLINE if late else Cause.RESTAURANT}


def _cancelled(message: Any, snapshot: reservation_events.ReservationSnapshot) -> dict[str, Any]:
    by_customer = snapshot.cancelled_by == reservation_pb2.CANCELLED_BY_CUSTOMER
    return {
        "cause": Cause.CUSTOMER if by_customer else Cause.RESTAURANT,
        "refunded": _money(message, "refunded"),
        "forfeited": _money(message, "forfeited"),
    }


def _failed(_message: Any, snapshot: reservation_events.ReservationSnapshot) -> dict[str, Any]:
    return {"cause": _FAILURE_CAUSES.get(snapshot.failure_cause)}


def _no_show(_message: Any, snapshot: reservation_events.ReservationSnapshot) -> dict[str, Any]:
    price = _money(snapshot, "price")
    kept = [_required_money(one.amount) for one in snapshot.forfeits]
    if price is None:
        return {}
    return {"forfeited": price._replace(minor=sum(amount.minor for amount in kept))}


def _deposit(kind: Kind, amount_field: str = "") -> Reader:
    """`amount_field` is a field of the event itself or, if it has none of that name, of its snapshot."""

    def read(message: Any) -> tuple[Kind, Facts]:
        snapshot: deposit_events.DepositSnapshot = message.deposit
        holder: Any = message if amount_field in message.DESCRIPTOR.fields_by_name else snapshot
        return kind, Facts(
            deposit_id=snapshot.deposit_id,
            state=_name(deposit_pb2.DepositState, snapshot.state, "DEPOSIT_STATE_"),
            amount=_money(holder, amount_field) if amount_field else None,
            code=snapshot.decline_code,
        )

    return read


def _booking(kind: Kind) -> Reader:
    def read(message: Any) -> tuple[Kind, Facts]:
        snapshot: restaurant_events.BookingSnapshot = message.booking
        return kind, Facts(
            restaurant_id=snapshot.restaurant_id,
            state=_name(restaurant_pb2.BookingState, snapshot.state, "BOOKING_STATE_"),
            revision=snapshot.revision,
            terms=_terms(snapshot),
        )

    return read


_FAILURE_CAUSES: dict[int, Cause] = {
    reservation_pb2.FAILURE_CAUSE_CARD_DECLINED: Cause.CARD_DECLINED,
    reservation_pb2.FAILURE_CAUSE_DEPOSIT_OVERLOADED: Cause.DEPOSIT_OVERLOADED,
    reservation_pb2.FAILURE_CAUSE_DEPOSIT_UNKNOWN: Cause.DEPOSIT_UNKNOWN,
    reservation_pb2.FAILURE_CAUSE_DEPOSIT_VOIDED: Cause.DEPOSIT_VOIDED,
}

READERS: dict[type[Message], Reader] = {
    reservation_events.ReservationPlaced: _reservation(Kind.RESERVATION_PLACED),
    reservation_events.ReservationConfirmed: _reservation(Kind.RESERVATION_CONFIRMED),
    reservation_events.ReservationModified: _reservation(Kind.RESERVATION_MODIFIED, _modified),
    reservation_events.ReservationModificationFailed: _reservation(
        Kind.RESERVATION_MODIFICATION_FAILED, _modification_failed
    ),
    reservation_events.ReservationDeclined: _reservation(Kind.RESERVATION_DECLINED, _declined),
    reservation_events.ReservationCancelled: _reservation(Kind.RESERVATION_CANCELLED, _cancelled),
    reservation_events.ReservationFailed: _reservation(Kind.RESERVATION_FAILED, _failed),
    reservation_events.ReservationSeated: _reservation(Kind.RESERVATION_SEATED),
    reservation_events.ReservationCompleted: _reservation(Kind.RESERVATION_COMPLETED),
    reservation_events.ReservationNoShowRecorded: _reservation(Kind.RESERVATION_NO_SHOW_RECORDED, _no_show),
    deposit_events.DepositCaptured: _deposit(Kind.DEPOSIT_CAPTURED, "captured"),
    deposit_events.DepositDeclined: _deposit(Kind.DEPOSIT_DECLINED, "amount"),
    deposit_events.DepositVoided: _deposit(Kind.DEPOSIT_VOIDED),
    deposit_events.DepositRefunded: _deposit(Kind.DEPOSIT_REFUNDED, "amount"),
    deposit_events.DepositRefundFailed: _deposit(Kind.DEPOSIT_REFUND_FAILED, "amount"),
    deposit_events.DepositForfeited: _deposit(Kind.DEPOSIT_FORFEITED, "amount"),
    restaurant_events.BookingReceived: _booking(Kind.BOOKING_RECEIVED),
    restaurant_events.BookingAccepted: _booking(Kind.BOOKING_ACCEPTED),
    restaurant_events.BookingDeclined: _booking(Kind.BOOKING_DECLINED),
    restaurant_events.BookingSeated: _booking(Kind.BOOKING_SEATED),
    restaurant_events.BookingNoShowMarked: _booking(Kind.BOOKING_NO_SHOW_MARKED),
    restaurant_events.BookingCompleted: _booking(Kind.BOOKING_COMPLETED),
    restaurant_events.BookingWithdrawn: _booking(Kind.BOOKING_WITHDRAWN),
}
"""What each event tells a customer. One that is not here concerns none, or is newer than this version."""


def _origin(event: Received[Any]) -> Origin:
    return Origin(
        event_id=event.event_id,
        type=event.type,
        source=event.source,
        aggregate_id=event.aggregate_id,
        aggregate_version=event.aggregate_version,
        occur_time=event.occur_time,
        customer_id=event.customer_id,
        reservation_id=event.reservation_id,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
    )


def _terms(holder: Any) -> Terms | None:
    if not holder.HasField("dine_time"):
        return None
    return Terms(wire.from_timestamp(holder.dine_time, "dine_time"), holder.party_size)


def _money(holder: Any, field: str) -> Money | None:
    return _required_money(getattr(holder, field)) if holder.HasField(field) else None


def _required_money(value: money_pb2.Money) -> Money:
    return Money(*wire.from_money(value, "amount"))


def _name(enum: Any, value: int, prefix: str) -> str:
    """The value's name without its prefix; a value of a later version by its number."""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else str(value)


# Entries out


def to_entry(entry: Entry) -> history_pb2.TimelineEntry:
    """An entry as the contract shows it."""
    origin, facts = entry.origin, entry.facts
    message = history_pb2.TimelineEntry(
        event_id=origin.event_id,
        kind=_KINDS[entry.kind],
        occur_time=wire.to_timestamp(origin.occur_time),
        reservation_id=origin.reservation_id,
        restaurant_id=facts.restaurant_id,
        deposit_id=facts.deposit_id,
        state=facts.state,
        revision=facts.revision,
        correlation_id=origin.correlation_id,
        summary=entry.summary,
    )
    for field, amount in (
        ("amount", facts.amount),
        ("refunded", facts.refunded),
        ("forfeited", facts.forfeited),
    ):
        if amount is not None:
            getattr(message, field).CopyFrom(wire.to_money(amount.minor, amount.currency))
    if facts.terms is not None:
        message.dine_time.CopyFrom(wire.to_timestamp(facts.terms.dine_time))
        message.party_size = facts.terms.party_size
    return message


_KINDS: dict[Kind, history_pb2.TimelineEntryKind.ValueType] = {
    kind: history_pb2.TIMELINE_ENTRY_KIND_UNSPECIFIED
    if kind is Kind.UNKNOWN
    else history_pb2.TimelineEntryKind.Value(f"TIMELINE_ENTRY_KIND_{kind.value}")
    for kind in Kind
}

# Tokens. Each names what it was made for, so that it cannot be used with another request.


_MAX_EVENT_ID = 200


class _ResumePlace(NamedTuple):
    """Live at an arrival, or (with the other two) in the Past up to that arrival, after a place."""

    arrival: int
    occur_time: datetime | None
    event_id: str | None


# Scope of both: customer_id, reservation_id.
PAGES = paging.Tokens("ListTimelineEntries", Place, paging.INSTANT, paging.Text(_MAX_EVENT_ID))
_WATCH = paging.Tokens(
    "WatchTimeline",
    _ResumePlace,
    paging.NUMBER,
    paging.OrNone(paging.INSTANT),
    paging.OrNone(paging.Text(_MAX_EVENT_ID)),
    field="resume_token",
)


def resume_token(cursor: Cursor, customer_id: str, reservation_id: str) -> str:
    """Where a watch has come to."""
    if isinstance(cursor, Live):
        place = _ResumePlace(cursor.position, None, None)
    elif cursor.after is not None:
        place = _ResumePlace(cursor.head, *cursor.after)
    else:
        return ""
    return _WATCH.encode(place, customer_id, reservation_id)


def cursor_of(token: str, customer_id: str, reservation_id: str) -> Cursor | None:
    """The cursor in a resume token; None for the beginning."""
    match _WATCH.decode(token, customer_id, reservation_id):
        case None:
            return None
        case _ResumePlace(position, None, None):
            return Live(position)
        case _ResumePlace(head, datetime() as occur_time, str(event_id)):
            return Past(head, Place(occur_time, event_id))
    raise _WATCH.refusal()  # half of a place
