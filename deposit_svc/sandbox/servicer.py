"""The sandbox over gRPC. Like a real provider it has its own errors, and may answer late or never."""

from __future__ import annotations

import asyncio
import hashlib
from typing import NamedTuple, NoReturn

import grpc

from deposit_svc.sandbox import records, tokens
from deposit_svc.sandbox.records import Charge, ExceedsCharge, KeyReused, NoSuchCharge, Refund
from dinemesh.kit import paging, wire
from dinemesh.kit.refusal import Refusal, Violation, invalid_all
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from dinemesh.sandbox.v1 import sandbox_pb2 as pb
from dinemesh.sandbox.v1 import sandbox_pb2_grpc

MAX_KEY = 200
# Longer than any client waits for a reply that never comes; then the call ends as every call must.
LOST_REPLY_SECONDS = 3600.0

Context = grpc.aio.ServicerContext[object, object]


class Place(NamedTuple):
    """The last charge of a page; the next page starts after it."""

    position: int


PAGES = paging.Tokens("ListCharges", Place, paging.NUMBER)


class Sandbox(sandbox_pb2_grpc.SandboxServiceServicer):
    """Answers from its records. A charge once accepted is made even if the caller hangs up."""

    def __init__(self, store: Store, background: Background) -> None:
        self._store = store
        self._background = background

    async def CreateCharge(
        self, request: pb.CreateChargeRequest, context: Context
    ) -> pb.CreateChargeResponse:
        try:
            key = wire.text("key", request.key, MAX_KEY)
            token = wire.text("payment_token", request.payment_token, MAX_KEY)
            minor, currency = wire.from_money(request.amount, "amount")
            wire.between("amount", minor, 1, 10**15)
            behaviour = tokens.behaviour(token)
            if not behaviour.available:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the sandbox is told to be down")
            body_hash = hashlib.sha256(f"{minor} {currency} {token}".encode()).hexdigest()

            async def charge() -> Charge:
                if (
                    behaviour.delay_seconds
                    and await self._store.read(lambda tx: records.find(tx, key)) is None
                ):
                    await asyncio.sleep(behaviour.delay_seconds)
                return await self._store.write(
                    lambda tx: records.charge(tx, key, minor, currency, body_hash, behaviour)
                )

            made = await self._background.finish(charge())
        except (Refusal, KeyReused) as error:
            await _abort(context, error)
        if not behaviour.answers and made.state is records.ChargeState.CAPTURED:
            await asyncio.sleep(LOST_REPLY_SECONDS)
        return pb.CreateChargeResponse(charge=_charge_message(made))

    async def FindCharge(self, request: pb.FindChargeRequest, context: Context) -> pb.FindChargeResponse:
        try:
            key = wire.text("key", request.key, MAX_KEY)
            found = await self._store.read(lambda tx: records.find(tx, key))
            if found is None:
                raise NoSuchCharge
        except (Refusal, NoSuchCharge) as error:
            await _abort(context, error)
        return pb.FindChargeResponse(charge=_charge_message(found))

    async def CloseCharge(self, request: pb.CloseChargeRequest, context: Context) -> pb.CloseChargeResponse:
        try:
            key = wire.text("key", request.key, MAX_KEY)
            closed = await self._store.write(lambda tx: records.close(tx, key))
        except Refusal as error:
            await _abort(context, error)
        return pb.CloseChargeResponse(charge=_charge_message(closed))

    async def CreateRefund(
        self, request: pb.CreateRefundRequest, context: Context
    ) -> pb.CreateRefundResponse:
        try:
            key = wire.text("key", request.key, MAX_KEY)
            charge_key = wire.text("charge_key", request.charge_key, MAX_KEY)
            minor, currency = wire.from_money(request.amount, "amount")
            wire.between("amount", minor, 1, 10**15)
            made = await self._store.write(lambda tx: records.refund(tx, key, charge_key, minor, currency))
        except (Refusal, KeyReused, NoSuchCharge, ExceedsCharge) as error:
            await _abort(context, error)
        return pb.CreateRefundResponse(refund=_refund_message(made))

    async def LiftRefundBlock(
        self, request: pb.LiftRefundBlockRequest, context: Context
    ) -> pb.LiftRefundBlockResponse:
        try:
            key = _lifted(request)
            lifted = await self._store.write(lambda tx: records.lift_refund_block(tx, key))
        except (Refusal, NoSuchCharge) as error:
            await _abort(context, error)
        return pb.LiftRefundBlockResponse(lifted_count=lifted)

    async def ListCharges(self, request: pb.ListChargesRequest, context: Context) -> pb.ListChargesResponse:
        try:
            size = paging.page_size(request.page_size, 200, 1000)
            last = PAGES.decode(request.page_token)
            after = last.position if last else 0
            found = await self._store.read(lambda tx: records.page(tx, after, size + 1))
        except Refusal as error:
            await _abort(context, error)
        more = PAGES.encode(Place(found[size - 1].position)) if len(found) > size else ""
        return pb.ListChargesResponse(charges=map(_charge_message, found[:size]), next_page_token=more)


async def _abort(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, KeyReused):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "this key was used with another body")
    if isinstance(error, NoSuchCharge):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such charge")
    if isinstance(error, ExceedsCharge):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the refunds would exceed the charge")
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    raise AssertionError("abort returned")


def _charge_message(charge: Charge) -> pb.Charge:
    return pb.Charge(
        key=charge.key,
        state=pb.ChargeState.Value(f"CHARGE_STATE_{charge.state.value}"),
        amount=wire.to_money(charge.minor, charge.currency) if charge.currency else None,
        decline_code=charge.decline_code,
        create_time=wire.to_timestamp(charge.create_time),
        refunds=map(_refund_message, charge.refunds),
    )


def _lifted(request: pb.LiftRefundBlockRequest) -> str | None:
    """The key of the charge that is meant; None for all, which is never what an empty field means."""
    if bool(request.charge_key) == request.all_charges:
        told = "name either charge_key or all_charges: true, which lifts the block of every charge"
        raise invalid_all([Violation("charge_key", told), Violation("all_charges", told)])
    return None if request.all_charges else wire.text("charge_key", request.charge_key, MAX_KEY)


def _refund_message(refund: Refund) -> pb.Refund:
    return pb.Refund(
        key=refund.key,
        charge_key=refund.charge_key,
        amount=wire.to_money(refund.minor, refund.currency),
        state=pb.RefundState.Value(f"REFUND_STATE_{refund.state.value}"),
        refusal_code=refund.refusal_code,
        create_time=wire.to_timestamp(refund.create_time),
    )
