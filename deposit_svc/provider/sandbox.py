"""The sandbox behind the provider port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from deposit_svc.domain import Money
from deposit_svc.provider import (
    Charged,
    ChargeOutcome,
    Closed,
    Declined,
    OutcomeUnknown,
    RefundOutcome,
    Refused,
    Returned,
)
from dinemesh.kit import wire
from dinemesh.kit.channel import open_channel, travelling
from dinemesh.sandbox.v1 import sandbox_pb2 as pb
from dinemesh.sandbox.v1 import sandbox_pb2_grpc

T = TypeVar("T")

# A refund that breaks the provider's rules will break them again: a person has to look at it.
_REFUSING = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
)


class SandboxProvider:
    """Calls the sandbox. Whatever is not an answer leaves the outcome unknown."""

    def __init__(self, address: str, timeout: float) -> None:
        """`timeout` in seconds, for each call that has none of its own."""
        self._channel = open_channel(address)
        self._sandbox: sandbox_pb2_grpc.SandboxServiceAsyncStub = sandbox_pb2_grpc.SandboxServiceStub(
            self._channel
        )
        self._timeout = timeout

    async def charge(self, key: str, amount: Money, token: str, timeout: float) -> ChargeOutcome:
        """Charges once per key. Raises OutcomeUnknown for every error of the call, be it a request that was
        refused."""
        request = pb.CreateChargeRequest(key=key, amount=wire.to_money(*amount), payment_token=token)
        answer = await _definite(
            lambda: self._sandbox.CreateCharge(request, timeout=timeout, metadata=_metadata())
        )
        return _charge_outcome(answer.charge)

    async def find(self, key: str) -> ChargeOutcome | None:
        """None if the sandbox answers NOT_FOUND. Raises OutcomeUnknown for every other error of the call."""
        try:
            answer = await self._sandbox.FindCharge(
                pb.FindChargeRequest(key=key), timeout=self._timeout, metadata=_metadata()
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise _unknown(error) from error
        return _charge_outcome(answer.charge)

    async def close(self, key: str) -> ChargeOutcome:
        """Closes the key, or tells what became of its charge. Raises OutcomeUnknown for every error of the
        call."""
        request = pb.CloseChargeRequest(key=key)
        answer = await _definite(
            lambda: self._sandbox.CloseCharge(request, timeout=self._timeout, metadata=_metadata())
        )
        return _charge_outcome(answer.charge)

    async def refund(self, key: str, charge_key: str, amount: Money) -> RefundOutcome:
        """Refused, with the status as its code, if it breaks the sandbox's rules. Raises OutcomeUnknown for
        every other error of the call."""
        request = pb.CreateRefundRequest(key=key, charge_key=charge_key, amount=wire.to_money(*amount))
        try:
            answer = await self._sandbox.CreateRefund(request, timeout=self._timeout, metadata=_metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSING:
                return Refused(error.code().name.lower())
            raise _unknown(error) from error
        if answer.refund.state == pb.REFUND_STATE_REFUSED:
            return Refused(answer.refund.refusal_code)
        return Returned()

    async def aclose(self) -> None:
        """Closes the channel to the sandbox; `close` closes one charge."""
        await self._channel.close()


def _metadata() -> grpc.aio.Metadata:
    """Whose request it is, for the provider's own log. A provider gets no token of ours."""
    return grpc.aio.Metadata(*travelling())


async def _definite(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        raise _unknown(error) from error


def _unknown(error: grpc.aio.AioRpcError) -> OutcomeUnknown:
    return OutcomeUnknown(f"the sandbox answered {error.code().name}: {error.details()}")


def _charge_outcome(charge: pb.Charge) -> ChargeOutcome:
    if charge.state == pb.CHARGE_STATE_CAPTURED:
        return Charged()
    if charge.state == pb.CHARGE_STATE_DECLINED:
        return Declined(charge.decline_code)
    if charge.state == pb.CHARGE_STATE_CLOSED:
        return Closed()
    raise OutcomeUnknown(f"the sandbox answered the state {charge.state}")
