"""The way to deposit: which answers mean "not charged", and that everything else is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2_grpc
from dinemesh.deposit.v1 import deposit_service_pb2 as api
from dinemesh.kit import errors
from dinemesh.kit.refusal import Refusal
from reservation_svc.clients.deposit import DepositClient
from reservation_svc.domain import Captured, Charge, Declined, DepositOutcome, NotCharged, Unknown, Voided
from tests.reservation.conftest import new_id

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Context], Awaitable[api.CreateDepositResponse]]
CHARGE = Charge(new_id(), new_id(), "alice", 2050, "EUR", "tok_visa")


class Deposit(deposit_service_pb2_grpc.DepositServiceServicer):
    """A deposit service that answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[api.CreateDepositRequest] = []
        self.answer: Answer = stands(deposit_pb2.DEPOSIT_STATE_CAPTURED)

    async def _unused(self, request: Any, context: Context) -> Any:
        raise AssertionError("reservation does not call this")

    GetDeposit = ListDeposits = RetryRefund = _unused

    async def CreateDeposit(self, request: api.CreateDepositRequest, context: Context) -> Any:
        self.asked.append(request)
        return await self.answer(context)


def stands(state: deposit_pb2.DepositState.ValueType) -> Answer:
    async def answer(_: Context) -> api.CreateDepositResponse:
        return api.CreateDepositResponse(deposit=deposit_pb2.Deposit(state=state))

    return answer


def refuses(reason: str, **parts: Any) -> Answer:
    async def answer(context: Context) -> api.CreateDepositResponse:
        await errors.abort(context, Refusal(reason, "no", **parts))

    return answer


def aborts(code: grpc.StatusCode, *trailing: tuple[str, str]) -> Answer:
    async def answer(context: Context) -> api.CreateDepositResponse:
        await context.abort(code, "no", trailing)
        raise AssertionError("abort raises")

    return answer


async def in_doubt_and_full(context: Context) -> api.CreateDepositResponse:
    """deposit was reached, whatever somebody on the way says besides."""
    await errors.abort(context, Refusal("DEPOSIT_IN_DOUBT", "no"), (("x-envoy-overloaded", "true"),))


async def hangs(_: Context) -> api.CreateDepositResponse:
    await asyncio.sleep(5)
    raise AssertionError("the caller has left")


@pytest.fixture
async def deposit() -> AsyncIterator[tuple[Deposit, DepositClient]]:
    server, servicer = grpc.aio.server(), Deposit()
    deposit_service_pb2_grpc.add_DepositServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = DepositClient(f"127.0.0.1:{port}", None)
    yield servicer, client
    await client.close()
    await server.stop(None)


IN_DOUBT, INVALID = refuses("DEPOSIT_IN_DOUBT"), refuses("INVALID_ARGUMENT")
OF_ONE_CALL = (IN_DOUBT, INVALID, in_doubt_and_full)
CASES: list[tuple[str, Answer, type[DepositOutcome]]] = [
    ("captured", stands(deposit_pb2.DEPOSIT_STATE_CAPTURED), Captured),
    ("answered and returned", stands(deposit_pb2.DEPOSIT_STATE_REFUNDING), Unknown),
    ("declined", refuses("CARD_DECLINED", metadata={"decline_code": "insufficient_funds"}), Declined),
    ("overloaded", refuses("DEPOSIT_OVERLOADED", retry_after=3), NotCharged),
    ("proxy full", aborts(grpc.StatusCode.UNAVAILABLE, ("x-envoy-overloaded", "true")), NotCharged),
    ("in doubt, and full", in_doubt_and_full, Unknown),
    ("voided", refuses("DEPOSIT_VOIDED"), Voided),
    ("in doubt", IN_DOUBT, Unknown),
    ("busy of another kind", refuses("TRY_AGAIN_LATER", retry_after=1), Unknown),
    ("unavailable", aborts(grpc.StatusCode.UNAVAILABLE), Unknown),
    ("exhausted without a reason", aborts(grpc.StatusCode.RESOURCE_EXHAUSTED), Unknown),
    ("internal", aborts(grpc.StatusCode.INTERNAL), Unknown),
    ("invalid", INVALID, Unknown),
    ("denied", refuses("PERMISSION_DENIED"), Unknown),
    ("hanging", hangs, Unknown),
]


@pytest.mark.parametrize(("answer", "outcome"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
async def test_an_answer_means_what_the_table_says(
    deposit: tuple[Deposit, DepositClient], answer: Answer, outcome: type[DepositOutcome]
) -> None:
    servicer, client = deposit
    servicer.answer = answer
    found = await client.create(CHARGE, 0.5)
    assert type(found) is outcome
    if isinstance(found, Declined):
        assert found.code == "insufficient_funds"
    if isinstance(found, Unknown):
        assert found.answered is (answer in OF_ONE_CALL), "what speaks of one charge says nothing of deposit"
    (asked,) = servicer.asked
    assert (asked.deposit_id, asked.amount.units, asked.amount.nanos) == (CHARGE.deposit_id, 20, 500_000_000)


async def test_a_time_to_come_back_is_handed_on(deposit: tuple[Deposit, DepositClient]) -> None:
    servicer, client = deposit
    servicer.answer = refuses("DEPOSIT_OVERLOADED", retry_after=3)
    said = await client.create(CHARGE, 1)
    assert isinstance(said, NotCharged)
    assert said.retry_after is not None and 3 <= said.retry_after <= 3.75


async def test_nobody_there_is_unknown_and_not_healthy() -> None:
    client = DepositClient("127.0.0.1:1", None)
    assert isinstance(await client.create(CHARGE, 1), Unknown)
    assert not await client.is_healthy()
    await client.close()
