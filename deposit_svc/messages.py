"""Deposits as protobuf and back: the only place of conversions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from deposit_svc import domain
from deposit_svc.domain import Deposit, Event, ForfeitOrder, Instruction, Money, Order, RefundOrder, VoidOrder
from dinemesh.deposit.v1 import deposit_pb2 as pb
from dinemesh.deposit.v1 import deposit_service_pb2 as service_pb
from dinemesh.deposit.v1 import events_pb2
from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import paging, wire
from dinemesh.kit.form import Form
from dinemesh.kit.outbox import OutgoingEvent
from dinemesh.kit.refusal import invalid
from dinemesh.reservation.v1 import events_pb2 as reservation_events

MAX_CUSTOMER_ID = 128
MAX_PAYMENT_TOKEN = 128

# Every event of reservation carries a ReservationSnapshot in its field `reservation`.
RESERVATION_EVENTS = (
    reservation_events.ReservationPlaced,
    reservation_events.ReservationConfirmed,
    reservation_events.ReservationModified,
    reservation_events.ReservationModificationFailed,
    reservation_events.ReservationDeclined,
    reservation_events.ReservationCancelled,
    reservation_events.ReservationFailed,
    reservation_events.ReservationSeated,
    reservation_events.ReservationCompleted,
    reservation_events.ReservationNoShowRecorded,
)


def from_create(request: service_pb.CreateDepositRequest) -> tuple[Order, str]:
    """What to charge, and the payment token, which goes to the provider and nowhere else."""
    form = Form()
    deposit_id = form.read(wire.uuid_field, "deposit_id", request.deposit_id)
    reservation_id = form.read(wire.uuid_field, "reservation_id", request.reservation_id)
    customer_id = form.read(wire.text, "customer_id", request.customer_id, MAX_CUSTOMER_ID)
    amount = form.read(_amount, request)
    token = form.read(wire.text, "payment_token", request.payment_token, MAX_PAYMENT_TOKEN)
    form.close()
    body_hash = domain.body_hash(customer_id, reservation_id, amount, token)
    return Order(deposit_id, customer_id, reservation_id, amount, body_hash), token


def _amount(request: service_pb.CreateDepositRequest) -> Money:
    wire.present(request, "amount")
    amount = Money(*wire.from_money(request.amount, "amount"))
    if amount.minor <= 0:
        raise invalid("amount", "must be greater than zero")
    return amount


def from_reservation(snapshot: reservation_events.ReservationSnapshot) -> Sequence[Instruction]:
    """All money instructions so far. Voids come last, so that parts ordered back keep their own ids."""
    refunds = (RefundOrder(one.refund_id, one.deposit_id, _money(one.amount)) for one in snapshot.refunds)
    forfeits = (ForfeitOrder(one.forfeit_id, one.deposit_id, _money(one.amount)) for one in snapshot.forfeits)
    return [*refunds, *forfeits, *(VoidOrder(one.deposit_id) for one in snapshot.voids)]


def to_deposit(deposit: Deposit) -> pb.Deposit:
    """A deposit as an answer shows it: its state is `standing`, and a tombstone has no amounts."""
    return pb.Deposit(
        **_state(deposit),
        create_time=wire.to_timestamp(deposit.create_time),
        update_time=wire.to_timestamp(deposit.update_time),
    )


def encode_event(event: Event) -> OutgoingEvent:
    """A domain event as the message of the contract that the outbox sends."""
    snapshot = events_pb2.DepositSnapshot(**_state(event.deposit))
    message: Any
    match event:
        case domain.DepositCaptured():
            message = events_pb2.DepositCaptured(deposit=snapshot)
        case domain.DepositDeclined():
            message = events_pb2.DepositDeclined(deposit=snapshot)
        case domain.DepositVoided():
            message = events_pb2.DepositVoided(deposit=snapshot)
        case domain.DepositRefunded(refund=refund):
            message = events_pb2.DepositRefunded(
                deposit=snapshot, refund_id=refund.refund_id, amount=wire.to_money(*refund.amount)
            )
        case domain.DepositRefundFailed(refund=refund):
            message = events_pb2.DepositRefundFailed(
                deposit=snapshot, refund_id=refund.refund_id, amount=wire.to_money(*refund.amount)
            )
        case domain.DepositForfeited(forfeit=forfeit):
            message = events_pb2.DepositForfeited(
                deposit=snapshot, forfeit_id=forfeit.forfeit_id, amount=wire.to_money(*forfeit.amount)
            )
    return OutgoingEvent(
        message=message,
        routing_key=message.DESCRIPTOR.GetOptions().Extensions[envelope_pb2.routing_key],
        aggregate_id=event.deposit.deposit_id,
        aggregate_version=event.deposit.version,
        customer_id=event.deposit.customer_id,
        reservation_id=event.deposit.reservation_id,
    )


def _state(deposit: Deposit) -> dict[str, Any]:
    """The fields that Deposit and DepositSnapshot share."""
    currency = deposit.amount.currency
    fields: dict[str, Any] = {
        "deposit_id": deposit.deposit_id,
        "reservation_id": deposit.reservation_id,
        "customer_id": deposit.customer_id,
        "state": pb.DepositState.Value(f"DEPOSIT_STATE_{deposit.standing.value}"),
        "refunds": [
            pb.Refund(
                refund_id=refund.refund_id,
                amount=wire.to_money(*refund.amount),
                state=pb.RefundState.Value(f"REFUND_STATE_{refund.state.value}"),
                attempt=refund.attempt + 1,
                failure_code=refund.failure_code,
                create_time=wire.to_timestamp(refund.create_time),
                update_time=wire.to_timestamp(refund.update_time),
            )
            for refund in deposit.refunds
        ],
        "forfeits": [
            pb.Forfeit(
                forfeit_id=forfeit.forfeit_id,
                amount=wire.to_money(*forfeit.amount),
                create_time=wire.to_timestamp(forfeit.create_time),
            )
            for forfeit in deposit.forfeits
        ],
        "decline_code": deposit.decline_code,
    }
    if currency:  # a tombstone has never heard of an amount
        for name, minor in (
            ("amount", deposit.amount.minor),
            ("captured", deposit.captured),
            ("held", deposit.held),
            ("refunding", deposit.refunding),
            ("refunded", deposit.refunded),
            ("refund_failed", deposit.refund_failed),
            ("forfeited", deposit.forfeited),
        ):
            fields[name] = wire.to_money(minor, currency)
    return fields


def _money(amount: Any) -> Money:
    return Money(*wire.from_money(amount, "amount"))


class Place(NamedTuple):
    """The last deposit of a page; the next page starts before it."""

    create_time: datetime
    deposit_id: str


# Scope: customer_id, reservation_id.
PAGES = paging.Tokens("ListDeposits", Place, paging.INSTANT, paging.UUID)
