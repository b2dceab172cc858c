"""DepositService over gRPC: messages in, use cases, messages out."""

from __future__ import annotations

from typing import Any

import grpc

from deposit_svc import messages
from deposit_svc.usecases import Deposits
from dinemesh.deposit.v1 import deposit_service_pb2 as pb
from dinemesh.deposit.v1 import deposit_service_pb2_grpc
from dinemesh.kit import paging, wire
from dinemesh.kit.call import CUSTOMER, OPERATOR, SERVICE, identity
from dinemesh.kit.form import Form
from dinemesh.kit.refusal import Refusal

SERVICE_NAME = "dinemesh.deposit.v1.DepositService"
ACCESS = {
    f"/{SERVICE_NAME}/CreateDeposit": frozenset({SERVICE}),
    f"/{SERVICE_NAME}/GetDeposit": frozenset({CUSTOMER}),
    f"/{SERVICE_NAME}/ListDeposits": frozenset({CUSTOMER}),
    f"/{SERVICE_NAME}/RetryRefund": frozenset({OPERATOR}),
}
# The one service that may charge.
CHARGING_SERVICE = "reservation"

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

Context = grpc.aio.ServicerContext[Any, Any]


class DepositServicer(deposit_service_pb2_grpc.DepositServiceServicer):
    """What the contract says of each RPC stands in deposit_service.proto."""

    def __init__(self, deposits: Deposits) -> None:
        self._deposits = deposits

    async def CreateDeposit(
        self, request: pb.CreateDepositRequest, context: Context
    ) -> pb.CreateDepositResponse:
        if identity().subject != CHARGING_SERVICE:
            raise Refusal("PERMISSION_DENIED", f"only the service {CHARGING_SERVICE} may charge")
        order, payment_token = messages.from_create(request)
        deposit = await self._deposits.create(order, payment_token)
        return pb.CreateDepositResponse(deposit=messages.to_deposit(deposit))

    async def GetDeposit(self, request: pb.GetDepositRequest, context: Context) -> pb.GetDepositResponse:
        deposit_id = wire.uuid_field("deposit_id", request.deposit_id)
        deposit = await self._deposits.get(deposit_id, identity().subject)
        return pb.GetDepositResponse(deposit=messages.to_deposit(deposit))

    async def ListDeposits(
        self, request: pb.ListDepositsRequest, context: Context
    ) -> pb.ListDepositsResponse:
        form = Form()
        asked = request.reservation_id
        reservation_id = form.read(wire.uuid_field, "reservation_id", asked) if asked else ""
        size = form.read(paging.page_size, request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        form.close()
        scope = identity().subject, reservation_id
        before = messages.PAGES.decode(request.page_token, *scope)
        found = await self._deposits.list(*scope, before, size + 1)
        more = ""
        if len(found) > size:
            last = found[size - 1]
            more = messages.PAGES.encode(messages.Place(last.create_time, last.deposit_id), *scope)
        return pb.ListDepositsResponse(deposits=map(messages.to_deposit, found[:size]), next_page_token=more)

    async def RetryRefund(self, request: pb.RetryRefundRequest, context: Context) -> pb.RetryRefundResponse:
        form = Form()
        deposit_id = form.read(wire.uuid_field, "deposit_id", request.deposit_id)
        refund_id = form.read(wire.uuid_field, "refund_id", request.refund_id)
        form.close()
        deposit = await self._deposits.retry_refund(deposit_id, refund_id)
        return pb.RetryRefundResponse(deposit=messages.to_deposit(deposit))
