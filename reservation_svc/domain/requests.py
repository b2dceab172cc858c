"""What people ask for, and what a repeated request id is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dinemesh.kit.refusal import Refusal
from reservation_svc.domain.deposits import DepositLine
from reservation_svc.domain.reservations import (
    CancelledBy,
    Failure,
    RequestedChange,
    Reservation,
    State,
    Terms,
)
from reservation_svc.domain.restaurants import Restaurant, Rules


@dataclass(frozen=True, slots=True)
class Order:
    """A customer's request for a table, checked for form only."""

    customer_id: str
    request_id: str
    restaurant_id: str
    dine_time: datetime
    party_size: int
    policy_etag: str
    """The terms that the customer was shown."""
    note: str
    payment_token: str = field(repr=False)
    body_hash: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A customer's request for other terms, checked for form only."""

    customer_id: str
    request_id: str
    reservation_id: str
    etag: str
    requested: RequestedChange
    payment_token: str = field(repr=False)
    body_hash: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a customer, or the staff of a restaurant."""

    customer_id: str | None = None
    restaurant_id: str | None = None

    def side_in(self, reservation: Reservation) -> CancelledBy | None:
        """On which side of the reservation, if on any."""
        if self.customer_id is not None and self.customer_id == reservation.customer_id:
            return CancelledBy.CUSTOMER
        if self.restaurant_id is not None and self.restaurant_id == reservation.restaurant_id:
            return CancelledBy.RESTAURANT
        return None


def not_found() -> Refusal:
    """Also for somebody else's reservation: the two cannot be told apart."""
    return Refusal("NOT_FOUND", "There is no such reservation.")


def hold_table(
    order: Order, restaurant: Restaurant, *, reservation_id: str, deposit_id: str, now: datetime, rules: Rules
) -> Reservation:
    """A new attempt: the seats are held, the deposit is about to be asked for."""
    price = restaurant.policy.price(order.party_size)
    return Reservation(
        reservation_id=reservation_id,
        customer_id=order.customer_id,
        restaurant_id=order.restaurant_id,
        state=State.PENDING_DEPOSIT,
        terms=Terms(order.dine_time, order.party_size, price),
        note=order.note,
        policy=restaurant.policy,
        create_time=now,
        update_time=now,
        attempt_deadline=now + rules.attempt,
        hold_expire_time=now + rules.hold,
        deposits=(DepositLine(deposit_id, price),),
    )


@dataclass(frozen=True, slots=True)
class Unpaid:
    """A customer's latest attempts that took no deposit: those in flight and those that came to nothing."""

    in_flight: int = 0
    seats: int = 0
    """Held by those in flight."""
    failed: int = 0
    last_failed: datetime | None = None
    """When the latest of those that failed was begun."""


def check_unpaid(unpaid: Unpaid, party_size: int, now: datetime, rules: Rules) -> None:
    """Refuses a customer who would hold many seats that nobody has paid for, or the same ones again and
    again. Seats are held before the deposit is known, so without it a card that answers late holds a table
    for ever, at no cost."""
    if unpaid.in_flight and (
        unpaid.in_flight >= rules.attempts or unpaid.seats + party_size > rules.held_seats
    ):
        raise Refusal(
            "TRY_AGAIN_LATER", "Other reservations of yours are being paid; nothing was held.", retry_after=2
        )
    if unpaid.failed < rules.unpaid_free or unpaid.last_failed is None:
        return
    pause = min(rules.unpaid_pause * 2 ** (unpaid.failed - rules.unpaid_free), rules.unpaid_window)
    left = unpaid.last_failed + pause - now
    if left > timedelta(0):
        raise Refusal(
            "TRY_AGAIN_LATER",
            f"{unpaid.failed} attempts of yours in a row took no deposit; nothing was held.",
            retry_after=left.total_seconds(),
        )


def refusal_of(failure: Failure, decline_code: str, retry_after: float) -> Refusal:
    """What the client is told of an attempt that failed."""
    if failure is Failure.CARD_DECLINED:
        return Refusal(
            "CARD_DECLINED",
            "The card was declined; nothing was charged.",
            metadata={"decline_code": decline_code},
        )
    return Refusal(
        "TRY_AGAIN_LATER", "The deposit could not be taken; nothing stays charged.", retry_after=retry_after
    )


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request id that was used: for which contents, and what it led to last."""

    body_hash: str
    reservation_id: str
    modification_id: str | None = None


def check_same(record: RequestRecord, body_hash: str) -> None:
    """Refuses with REQUEST_ID_REUSED a request id whose contents are not those of its first use."""
    if record.body_hash != body_hash:
        raise Refusal("REQUEST_ID_REUSED", "This request_id was used with different contents.")


def must_try_again(
    *, waiting: bool, attempt_deadline: datetime, failure: Failure | None, decline_code: str, now: datetime
) -> bool:
    """A repeated request id: True asks for a new attempt, False for the reservation as it stands."""
    if waiting:
        # After its deadline an attempt has lost its process; events or the reconciling task will end it.
        raise Refusal(
            "REQUEST_IN_PROGRESS",
            "The first call with this request_id is still at work.",
            retry_after=1 if now < attempt_deadline else 5,
        )
    if failure is Failure.CARD_DECLINED:
        raise refusal_of(failure, decline_code, 0)
    return failure is not None
