"""Refunds that the provider refused for good: tried again by an operator, at most once for each refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from dinemesh.deposit.v1 import deposit_service_pb2, deposit_service_pb2_grpc
from dinemesh.kit import errors
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from operations.rows import Refund
from operations.snapshot import refunds_of, refused_deposits

CALL_SECONDS = 10.0
WAIT_SECONDS = 20.0
MOST = 5
"""Deposits that are named to someone who has named none that exists."""
_PAUSE_SECONDS = 0.2


class NotDone(Exception):
    """The command could not do what it was asked for."""


@dataclass(frozen=True)
class Outcome:
    """What became of the refunds of a deposit."""

    refunds: Sequence[Refund]
    retried: frozenset[str]

    @property
    def refused(self) -> bool:
        """Returns True if any refund of the deposit, retried or not, has FAILED in the end."""
        return any(refund.state == "FAILED" for refund in self.refunds)

    def __str__(self) -> str:
        return "\n".join(f"refund {one.refund_id}: {self._became(one)}" for one in self.refunds)

    def _became(self, refund: Refund) -> str:
        tries = f"after {refund.attempt + 1} tries" if refund.attempt else "at the first try"
        if refund.state == "SUCCEEDED" and refund.refund_id not in self.retried:
            return f"had been given back {tries}; nothing to retry"
        if refund.state == "SUCCEEDED":
            return f"given back {tries}"
        if refund.state == "FAILED":
            return f"refused again ({refund.failure_code}); it stays in `make pending`"
        return "on its way; deposit asks the provider until it answers"


def _which(refused: Sequence[str]) -> str:
    if not refused:
        return "no refund of any deposit stands refused"
    more = ", ... (`make pending` lists all)" if len(refused) == MOST else ""
    return f"refunds of these stand refused: {', '.join(refused)}{more}"


class Retry:
    """Reads deposit's database to learn what was refused, and asks deposit itself to try it again."""

    def __init__(self, deposit_db: str, deposit_address: str, token: str) -> None:
        self._db = deposit_db
        self._address = deposit_address
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def run(self, deposit_id: str, wait_seconds: float) -> Outcome:
        """Retries each failed refund of the deposit and waits for the outcome. Raises NotDone, Unreadable."""
        found = await refunds_of(self._db, deposit_id)
        if not found:
            raise NotDone(
                f"no refund of a deposit {deposit_id} is known; "
                + _which(await refused_deposits(self._db, MOST))
            )
        failed = [refund for refund in found if refund.state == "FAILED"]
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = deposit_service_pb2_grpc.DepositServiceStub(channel)
            for refund in failed:
                await self._order(stub, refund)
        end = time.monotonic() + wait_seconds
        while True:
            found = await refunds_of(self._db, deposit_id)
            if time.monotonic() > end or not any(refund.state == "PENDING" for refund in found):
                return Outcome(found, frozenset(refund.refund_id for refund in failed))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _order(self, stub: deposit_service_pb2_grpc.DepositServiceAsyncStub, refund: Refund) -> None:
        request = deposit_service_pb2.RetryRefundRequest(
            deposit_id=refund.deposit_id, refund_id=refund.refund_id
        )
        try:
            await stub.RetryRefund(request, timeout=CALL_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            said = errors.from_call(error)
            if said is not None and said.reason == "REFUND_NOT_RETRYABLE":
                return  # somebody else was faster; what becomes of it is read below
            why = f"{said.reason}: {said.message}" if said is not None and said.reason else error.code().name
            raise NotDone(
                f"deposit did not take the order to retry {refund.refund_id} ({why})."
                " Run it again: what was refused once is tried once, however often it is ordered."
            ) from error


async def lift_block(provider: str, charge_key: str | None) -> int:
    """The sandbox's switch for tok_refundFail: how many charges can be refunded from now on. `charge_key`
    None: all."""
    request = sandbox_pb2.LiftRefundBlockRequest(charge_key=charge_key or "", all_charges=charge_key is None)
    try:
        async with grpc.aio.insecure_channel(provider) as channel:
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            answer = await stub.LiftRefundBlock(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise NotDone(
                f"the provider at {provider} knows no charge of a deposit {charge_key}; `make pending` lists"
                " the deposits whose refunds it refused"
            ) from error
        raise NotDone(f"the provider at {provider}: {error.code().name} {error.details()}") from error
    return answer.lifted_count
