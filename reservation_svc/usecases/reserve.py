"""Reserve: the saga of `saga.py`, with a new reservation as its first step."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

from dinemesh.kit import crash
from dinemesh.kit.refusal import Refusal, invalid_all
from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    Charge,
    Order,
    RequestRecord,
    Reservation,
    Restaurant,
    State,
    check_party,
    check_policy,
    check_same,
    check_table,
    check_unpaid,
    hold_table,
    must_try_again,
)
from reservation_svc.persistence import requests, reservations, seat_inventory
from reservation_svc.usecases import saga
from reservation_svc.usecases.context import ReservationContext, check_slot, no_seats


@dataclass(frozen=True)
class _Ids:
    """Chosen before the first transaction, so that running it again finds its own work."""

    reservation_id: str
    deposit_id: str


async def reserve(ctx: ReservationContext, order: Order) -> Reservation:
    """Holds seats, takes the deposit, and answers with the reservation as it then stands; the same answer
    to the same request id. Goes on to its end even if the caller hangs up."""
    return await ctx.background.finish(_reserve(ctx, order), "reserve")


async def _reserve(ctx: ReservationContext, order: Order) -> Reservation:
    refusal = saga.too_late(ctx) or ctx.admission.refusal()
    if refusal is not None:
        return await _earlier_answer(ctx, order, refusal)
    if ctx.admission.is_full:
        known = await _known(ctx, order)
        if known is not None:
            return known
    try:
        admitted = await ctx.admission.enter(order.customer_id, saga.patience(ctx))
    except Refusal as full:
        return await _earlier_answer(ctx, order, full)
    ids = _Ids(str(uuid.uuid4()), str(uuid.uuid4()))
    with admitted as attempt:
        slot = f"seats of {order.restaurant_id} {order.dine_time.isoformat()}"
        try:
            held = await saga.first_step(ctx, partial(_hold, ctx, order, ids), shed=True, on=(slot,))
        except Refusal as busy:
            if busy.reason != "TRY_AGAIN_LATER":
                raise
            return await _earlier_answer(ctx, order, busy)
        if held.reservation_id != ids.reservation_id or held.state is not State.PENDING_DEPOSIT:
            return held
        if __debug__:
            crash.point("reserve.pending")
        charge = Charge(
            ids.deposit_id,
            ids.reservation_id,
            order.customer_id,
            held.terms.price,
            held.policy.currency,
            order.payment_token,
        )
        outcome = await saga.charge(ctx, attempt, charge)
    concluded = await ctx.write_durably(
        lambda tx: saga.conclude(ctx, tx, held, ids.deposit_id, outcome), goes_on=True
    )
    if __debug__:
        crash.point("reserve.concluded", concluded.state)
    if concluded.state is State.FAILED:
        raise saga.refusal(ctx, concluded.failure, concluded.decline_code, outcome)
    return concluded


async def _earlier_answer(ctx: ReservationContext, order: Order, refusal: Refusal) -> Reservation:
    """A repeated request id gets its answer even where no new attempt can be made."""
    known = await _known(ctx, order)
    if known is None:
        raise refusal
    return known


async def _known(ctx: ReservationContext, order: Order) -> Reservation | None:
    """What an earlier call with this request id came to; None if a new attempt has to be made."""

    def look_up(tx: Transaction) -> Reservation | None:
        record = requests.find(tx, order.customer_id, order.request_id)
        return _repeated(tx, record, order.body_hash) if record is not None else None

    return await ctx.store.read(look_up)


def _repeated(tx: Transaction, record: RequestRecord, body_hash: str) -> Reservation | None:
    """The answer to a repeated request id; None if it asks for a new attempt."""
    check_same(record, body_hash)
    known = reservations.find(tx, record.reservation_id)
    assert known is not None, "a request row points at a reservation"
    again = must_try_again(
        waiting=known.state is State.PENDING_DEPOSIT,
        attempt_deadline=known.attempt_deadline,
        failure=known.failure,
        decline_code=known.decline_code,
        now=tx.now,
    )
    return None if again else known


def _hold(ctx: ReservationContext, order: Order, ids: _Ids, tx: Transaction) -> Reservation:
    """Transaction 1: the seats, the request row, the reservation PENDING_DEPOSIT. Or the answer of an
    earlier call. Everything that can be refused is refused before the first write."""
    while True:
        seen = seat_inventory.view(
            tx,
            restaurant_id=order.restaurant_id,
            dine_time=order.dine_time,
            customer_id=order.customer_id,
            request_id=order.request_id,
        )
        record = seen.record if seen else requests.find(tx, order.customer_id, order.request_id)
        if record is not None:
            if record.reservation_id == ids.reservation_id:  # ours, from a commit that was in doubt
                mine = reservations.find(tx, ids.reservation_id)
                assert mine is not None
                return mine
            known = _repeated(tx, record, order.body_hash)
            if known is not None:
                return known
        if seen is None:
            raise Refusal("NOT_FOUND", "There is no such restaurant.")
        _check(ctx, seen.restaurant, order, tx)
        unpaid = reservations.unpaid(tx, order.customer_id, tx.now - ctx.rules.unpaid_window)
        check_unpaid(unpaid, order.party_size, tx.now, ctx.rules)
        check_slot(tx, seen.restaurant, seen.slot, order.dine_time, order.party_size)
        if not seat_inventory.hold(tx, order.restaurant_id, order.dine_time, order.party_size):
            raise no_seats()
        if __debug__:
            crash.point("reserve.seats_held")
        target = RequestRecord(order.body_hash, ids.reservation_id)
        if requests.point(tx, order.customer_id, order.request_id, record, target):
            break
        # Another pod was faster with the same request id: give the seats back and look again.
        seat_inventory.release(tx, order.restaurant_id, order.dine_time, order.party_size)
    held = hold_table(
        order,
        seen.restaurant,
        reservation_id=ids.reservation_id,
        deposit_id=ids.deposit_id,
        now=tx.now,
        rules=ctx.rules,
    )
    reservations.insert(tx, held, ctx.rules)
    return held


def _check(ctx: ReservationContext, restaurant: Restaurant, order: Order, tx: Transaction) -> None:
    check_policy(restaurant, order.policy_etag, order.dine_time, order.party_size, tx.now, ctx.rules)
    wrong = [
        *check_table(restaurant, order.dine_time, tx.now, ctx.rules),
        *check_party(restaurant.policy, order.party_size),
    ]
    if wrong:
        raise invalid_all(wrong)
