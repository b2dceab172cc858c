"""CreateDeposit over gRPC: one attempt, and what came of it as a domain value."""

from __future__ import annotations

import logging

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dinemesh.deposit.v1 import deposit_service_pb2_grpc
from dinemesh.kit import channel, errors
from dinemesh.kit.channel import ServiceToken
from reservation_svc import messages
from reservation_svc.domain import Captured, Charge, Declined, DepositOutcome, NotCharged, Unknown, Voided

log = logging.getLogger(__name__)

# A service that needs longer than this to say that it is well is not.
HEALTH_SECONDS = 1.0
# Reasons by which deposit_svc speaks of one charge or one call, and not of itself.
_OF_ONE_CALL = frozenset({"DEPOSIT_IN_DOUBT", "DEPOSIT_ID_REUSED", "DEADLINE_TOO_SHORT", "INVALID_ARGUMENT"})


class DepositClient:
    """deposit_svc, or the proxy before it."""

    def __init__(self, address: str, token: ServiceToken | None) -> None:
        self._channel = channel.open_channel(address)
        self._deposits = deposit_service_pb2_grpc.DepositServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._token = token

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        """Asks once, for at most `timeout` seconds. Only an answer that says so means "not charged"."""
        try:
            answer = await channel.call(
                self._deposits.CreateDeposit,
                messages.to_create_deposit(charge),
                timeout=timeout,
                token=self._token,
            )
        except grpc.RpcError as error:
            return _outcome(error)
        except Exception:
            log.exception("CreateDeposit failed on our side")
            return Unknown("failed on our side")
        return (
            Captured() if messages.is_captured(answer.deposit) else Unknown("answered, and is not captured")
        )

    async def is_healthy(self) -> bool:
        """What its health service says."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Closes the channel to deposit_svc, which cancels the calls still under way."""
        await self._channel.close()


def _outcome(error: grpc.RpcError) -> DepositOutcome:
    said = errors.from_call(error)
    if said is not None:
        if said.reason == "CARD_DECLINED":
            return Declined(said.metadata.get("decline_code", ""))
        if said.reason == "DEPOSIT_VOIDED":
            return Voided()
        if said.reason == "DEPOSIT_OVERLOADED" or said.overloaded:
            return NotCharged(said.retry_after)
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
    detail = said.reason if said is not None else str(code)
    log.warning("the outcome of a charge is unknown", extra={"outcome": detail})
    return Unknown(detail, answered=said is not None and said.reason in _OF_ONE_CALL)
