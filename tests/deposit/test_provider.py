"""The provider port over a real sandbox: every failure that is no answer leaves the outcome unknown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from deposit_svc.domain import Money
from deposit_svc.provider import Charged, Closed, Declined, OutcomeUnknown, Refused, Returned
from deposit_svc.provider.sandbox import SandboxProvider
from dinemesh.kit.call import Call, working_on
from dinemesh.sandbox.v1 import sandbox_pb2 as pb
from tests.deposit.conftest import THIRTY, euros, new_id, until
from tests.deposit.processes import sandbox_part
from tests.support.mesh import Part

if TYPE_CHECKING:
    from dinemesh.sandbox.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub as Stub


@pytest.fixture
async def provider(sandbox: Part) -> AsyncIterator[SandboxProvider]:
    provider = SandboxProvider(sandbox.address, timeout=5)
    yield provider
    await provider.aclose()


async def charge(provider: SandboxProvider, key: str, token: str = "tok_visa", seconds: float = 5) -> object:
    return await provider.charge(key, THIRTY, token, seconds)


async def test_each_answer_has_its_outcome(provider: SandboxProvider) -> None:
    key = new_id()
    assert await provider.find(key) is None
    assert await charge(provider, key) == Charged()
    assert await provider.find(key) == Charged()
    assert await provider.close(key) == Charged()
    declined = new_id()
    assert await charge(provider, declined, "tok_chargeDeclined") == Declined("card_declined")
    assert await provider.find(declined) == Declined("card_declined")
    closed = new_id()
    assert await provider.close(closed) == Closed()
    assert await charge(provider, closed) == Closed()


async def test_an_amount_arrives_to_the_cent(provider: SandboxProvider, stub: Stub) -> None:
    key = new_id()
    await provider.charge(key, Money(1234, "EUR"), "tok_visa", 5)
    found = (await stub.FindCharge(pb.FindChargeRequest(key=key), timeout=5)).charge
    assert (found.amount.units, found.amount.nanos) == (12, 340_000_000)


async def test_the_provider_is_told_for_which_request_it_is_asked(
    provider: SandboxProvider, sandbox: Part
) -> None:
    def logged(correlation_id: str) -> list[tuple[str, str]]:
        lines = map(json.loads, sandbox.log.read_text().splitlines())
        return [
            (line["method"].rpartition("/")[2], line["code"])
            for line in lines
            if line.get("correlation_id") == correlation_id
        ]

    key, correlation_id = new_id(), f"order-{new_id()}"
    with working_on(Call(correlation_id)):
        await provider.find(key)
        await charge(provider, key)
        await provider.close(key)
        await provider.refund(new_id(), key, THIRTY)
        with pytest.raises(OutcomeUnknown):
            await charge(provider, new_id(), "tok_unavailable")
    await until(lambda: len(logged(correlation_id)) == 5)  # a failure is answered before it is logged
    assert logged(correlation_id) == [
        ("FindCharge", "NOT_FOUND"),
        ("CreateCharge", "OK"),
        ("CloseCharge", "OK"),
        ("CreateRefund", "OK"),
        ("CreateCharge", "UNAVAILABLE"),
    ]


async def test_the_provider_makes_an_id_for_a_call_without_a_readable_one(stub: Stub, sandbox: Part) -> None:
    await stub.LiftRefundBlock(
        pb.LiftRefundBlockRequest(all_charges=True), metadata=(("x-correlation-id", 'a b"c'),), timeout=5
    )
    line = json.loads(sandbox.log.read_text().splitlines()[-1])
    assert (line["message"], line["code"]) == ("call", "OK")
    assert len(line["correlation_id"]) == 36


@pytest.mark.parametrize("token", ["tok_lostReply", "tok_unavailable", "tok_slow_2000"])
async def test_a_charge_without_an_answer_is_unknown(provider: SandboxProvider, token: str) -> None:
    with pytest.raises(OutcomeUnknown):
        await charge(provider, new_id(), token, seconds=0.2)


async def test_a_refund_is_returned_refused_or_unknown(provider: SandboxProvider, stub: Stub) -> None:
    key, refund_id = new_id(), new_id()
    await charge(provider, key, "tok_refundFail")
    assert await provider.refund(refund_id, key, THIRTY) == Refused("refund_blocked")
    await stub.LiftRefundBlock(pb.LiftRefundBlockRequest(charge_key=key), timeout=5)
    assert await provider.refund(refund_id, key, THIRTY) == Refused("refund_blocked")
    assert await provider.refund(f"{refund_id}/1", key, THIRTY) == Returned()
    assert await provider.refund(f"{refund_id}/1", key, THIRTY) == Returned()


async def test_a_refund_against_the_rules_is_refused_for_a_person_to_look_at(
    provider: SandboxProvider,
) -> None:
    key = new_id()
    assert await provider.refund(new_id(), key, THIRTY) == Refused("not_found")
    await charge(provider, key)
    assert await provider.refund(new_id(), key, euros(31)) == Refused("failed_precondition")


async def test_a_provider_that_is_gone_leaves_everything_unknown_until_it_is_back(tmp_path: Path) -> None:
    part = sandbox_part(tmp_path)
    part.start()
    provider = SandboxProvider(part.address, timeout=2)
    key = new_id()
    try:
        assert await charge(provider, key) == Charged()
        part.kill()
        for call in (
            charge(provider, new_id()),
            provider.find(key),
            provider.close(key),
            provider.refund(new_id(), key, THIRTY),
        ):
            with pytest.raises(OutcomeUnknown):
                await call
        part.start()
        async for attempt in AsyncRetrying(stop=stop_after_delay(10), wait=wait_fixed(0.1)):
            with attempt:
                assert await provider.find(key) == Charged()
    finally:
        await provider.aclose()
        part.stop()
