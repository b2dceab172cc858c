"""Modify. Same price or cheaper: one transaction. Dearer: the saga of `saga.py` charges the difference, and
the old terms stand until it is concluded."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

from dinemesh.kit import crash
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    Caller,
    CancelledBy,
    Change,
    Charge,
    DepositOutcome,
    Modification,
    ModificationState,
    RequestRecord,
    Reservation,
    check_same,
    must_try_again,
    not_found,
)
from reservation_svc.persistence import requests, reservations, seat_inventory
from reservation_svc.usecases import saga
from reservation_svc.usecases.context import ReservationContext, check_slot


@dataclass(frozen=True)
class _Ids:
    modification_id: str
    deposit_id: str


@dataclass(frozen=True)
class _Amended:
    """What transaction 1 came to; `is_waiting`: this call has to charge the difference."""

    reservation: Reservation
    is_waiting: bool = False


async def modify(ctx: ReservationContext, change: Change) -> Reservation:
    """Answers with the reservation as it then stands. Goes on to its end even if the caller hangs up."""
    return await ctx.background.finish(_modify(ctx, change), "modify")


async def _modify(ctx: ReservationContext, change: Change) -> Reservation:
    ids = _Ids(str(uuid.uuid4()), str(uuid.uuid4()))
    closed = saga.too_late(ctx) or ctx.admission.refusal()
    needs_place = Refusal("INTERNAL", "The difference has to be charged.")
    try:
        # What costs nothing more is done whatever becomes of charges, and waits for none.
        amended = await saga.first_step(ctx, partial(_amend, ctx, change, ids, closed or needs_place))
    except Refusal as refusal:
        if refusal is not needs_place:
            raise
    else:
        if __debug__:
            crash.point("modify.done")
        return amended.reservation
    with await ctx.admission.enter(change.customer_id, saga.patience(ctx)) as attempt:
        amended = await saga.first_step(ctx, partial(_amend, ctx, change, ids, None))
        if not amended.is_waiting:
            return amended.reservation
        if __debug__:
            crash.point("modify.pending")
        asked = amended.reservation
        line = asked.line(ids.deposit_id)
        assert line is not None
        charge = Charge(
            ids.deposit_id,
            asked.reservation_id,
            asked.customer_id,
            line.amount,
            asked.policy.currency,
            change.payment_token,
        )
        outcome = await saga.charge(ctx, attempt, charge)
    concluded, wanted = await ctx.write_durably(partial(_conclude, ctx, asked, ids, outcome), goes_on=True)
    if __debug__:
        crash.point("modify.concluded", wanted.state)
    if wanted.state is ModificationState.FAILED:
        raise saga.refusal(ctx, wanted.failure, wanted.decline_code, outcome)
    return concluded


def _amend(
    ctx: ReservationContext, change: Change, ids: _Ids, closed: Refusal | None, tx: Transaction
) -> _Amended:
    """Transaction 1: new terms, or an open modification with its extra seats. `closed`: why nothing can be
    charged."""
    while True:
        current = reservations.find(tx, change.reservation_id)
        if (
            current is None
            or Caller(customer_id=change.customer_id).side_in(current) is not CancelledBy.CUSTOMER
        ):
            raise not_found()
        record = requests.find(tx, change.customer_id, change.request_id)
        if record is not None:
            check_same(record, change.body_hash)
            if record.modification_id == ids.modification_id:  # ours, from a commit that was in doubt
                return _Amended(current, current.modification is not None)
            if not _must_try_again(tx, record):
                return _Amended(current)
        restaurant = seat_inventory.restaurant(tx, current.restaurant_id)
        assert restaurant is not None, "what was reserved once has a restaurant"
        move = current.amend(
            change.requested,
            etag=change.etag,
            restaurant=restaurant,
            modification_id=ids.modification_id,
            deposit_id=ids.deposit_id,
            can_pay=bool(change.payment_token),
            now=tx.now,
            rules=ctx.rules,
        )
        waits = move is not None and move.after.modification is not None
        if waits and closed is not None:
            raise closed
        after = current
        if move is not None:
            for dine_time, seats in move.after.seats.items():
                if (more := seats - current.seats.get(dine_time, 0)) > 0:
                    slot = seat_inventory.slot(tx, current.restaurant_id, dine_time)
                    check_slot(tx, restaurant, slot, dine_time, more)
            if not ctx.apply_move(tx, current, move):
                continue
            after = move.after
        target = RequestRecord(
            change.body_hash, change.reservation_id, ids.modification_id if waits else None
        )
        if not requests.point(tx, change.customer_id, change.request_id, record, target):
            # Another pod is at the same request id: nothing of this stays, the next call gets the answer.
            raise Refusal("REQUEST_IN_PROGRESS", "This request_id is being worked on.", retry_after=1)
        return _Amended(after, waits)


def _must_try_again(tx: Transaction, record: RequestRecord) -> bool:
    if record.modification_id is None:
        return False
    earlier = reservations.modification(tx, record.modification_id)
    assert earlier is not None, "a request row points at a modification"
    return must_try_again(
        waiting=earlier.state is ModificationState.OPEN,
        attempt_deadline=earlier.attempt_deadline,
        failure=earlier.failure,
        decline_code=earlier.decline_code,
        now=tx.now,
    )


def _conclude(
    ctx: ReservationContext, asked: Reservation, ids: _Ids, outcome: DepositOutcome, tx: Transaction
) -> tuple[Reservation, Modification]:
    """Transaction 2: swap the terms, or free the seats and void."""
    concluded = saga.conclude(ctx, tx, asked, ids.deposit_id, outcome)
    wanted = reservations.modification(tx, ids.modification_id)
    assert wanted is not None, "a modification is never deleted"
    return concluded, wanted
