"""The sandbox as a process, over its own gRPC: what its tokens do, and that each key happens once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.type.money_pb2 import Money

from deposit_svc.sandbox.tokens import Behaviour, behaviour
from dinemesh.sandbox.v1 import sandbox_pb2 as pb
from tests.deposit.conftest import new_id
from tests.deposit.processes import record_of, sandbox_part, sandbox_stub
from tests.support.mesh import Part

if TYPE_CHECKING:
    from dinemesh.sandbox.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub as Stub


def euros(units: int) -> Money:
    return Money(currency_code="EUR", units=units)


async def charge(
    stub: Stub, key: str, token: str = "tok_visa", units: int = 30, seconds: float = 5
) -> pb.Charge:
    request = pb.CreateChargeRequest(key=key, amount=euros(units), payment_token=token)
    return (await stub.CreateCharge(request, timeout=seconds)).charge


async def close(stub: Stub, key: str) -> pb.Charge:
    return (await stub.CloseCharge(pb.CloseChargeRequest(key=key), timeout=5)).charge


async def refund(stub: Stub, charge_key: str, units: int, key: str = "") -> pb.Refund:
    request = pb.CreateRefundRequest(key=key or new_id(), charge_key=charge_key, amount=euros(units))
    return (await stub.CreateRefund(request, timeout=5)).refund


async def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return failed.value.code()


@pytest.mark.parametrize(
    ("token", "does"),
    [
        ("tok_visa", Behaviour()),
        ("tok_chargeDeclined", Behaviour(decline_code="card_declined")),
        ("tok_chargeDeclinedInsufficientFunds", Behaviour(decline_code="insufficient_funds")),
        ("tok_refundFail", Behaviour(refunds_blocked=True)),
        ("tok_slow_250", Behaviour(delay_seconds=0.25)),
        ("tok_lostReply", Behaviour(answers=False)),
        ("tok_unavailable", Behaviour(available=False)),
        ("tok_slow_-1", Behaviour(decline_code="unknown_token")),
        ("tok_VISA", Behaviour(decline_code="unknown_token")),
    ],
)
def test_a_token_chooses_what_happens(token: str, does: Behaviour) -> None:
    assert behaviour(token) == does


async def test_a_key_is_charged_once_and_answers_the_same(stub: Stub) -> None:
    key = new_id()
    first = await charge(stub, key)
    assert first.state == pb.CHARGE_STATE_CAPTURED
    assert await charge(stub, key) == first
    assert await record_of(stub, key) == first


async def test_a_key_with_another_body_is_refused(stub: Stub) -> None:
    key = new_id()
    await charge(stub, key)
    assert await code_of(charge(stub, key, units=31)) == grpc.StatusCode.ALREADY_EXISTS
    assert await code_of(charge(stub, key, "tok_chargeDeclined")) == grpc.StatusCode.ALREADY_EXISTS


async def test_a_declined_charge_stays_declined(stub: Stub) -> None:
    key = new_id()
    for _ in range(2):
        declined = await charge(stub, key, "tok_chargeDeclinedInsufficientFunds")
        assert (declined.state, declined.decline_code) == (pb.CHARGE_STATE_DECLINED, "insufficient_funds")
    assert await code_of(refund(stub, key, 1)) == grpc.StatusCode.NOT_FOUND


async def test_a_closed_key_is_never_charged(stub: Stub) -> None:
    key = new_id()
    for _ in range(2):
        assert (await close(stub, key)).state == pb.CHARGE_STATE_CLOSED
    assert (await charge(stub, key)).state == pb.CHARGE_STATE_CLOSED
    recorded = await record_of(stub, key)
    assert recorded is not None
    assert recorded.state == pb.CHARGE_STATE_CLOSED
    assert not recorded.HasField("amount")


async def test_a_close_after_the_charge_reports_it(stub: Stub) -> None:
    key = new_id()
    await charge(stub, key)
    assert (await close(stub, key)).state == pb.CHARGE_STATE_CAPTURED


async def test_close_and_charge_at_once_agree_on_who_was_first(stub: Stub) -> None:
    seen = set()
    for turn in range(40):
        key = new_id()
        calls = [charge(stub, key), close(stub, key)]
        if turn % 2:
            calls.reverse()
        one, other = await asyncio.gather(*calls)
        assert one.state == other.state
        seen.add(one.state)
    assert seen == {pb.CHARGE_STATE_CAPTURED, pb.CHARGE_STATE_CLOSED}, "both must have won at times"


async def test_a_slow_charge_is_made_late_even_if_the_caller_left(stub: Stub) -> None:
    key = new_id()
    started = time.monotonic()
    assert await code_of(charge(stub, key, "tok_slow_400", seconds=0.1)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await code_of(stub.FindCharge(pb.FindChargeRequest(key=key))) == grpc.StatusCode.NOT_FOUND
    while await record_of(stub, key) is None:
        assert time.monotonic() < started + 5
        await asyncio.sleep(0.02)
    assert time.monotonic() > started + 0.39
    assert (await charge(stub, key, "tok_slow_400", seconds=0.3)).state == pb.CHARGE_STATE_CAPTURED


async def test_a_slow_charge_can_be_closed_while_it_waits(stub: Stub) -> None:
    key = new_id()
    waiting = asyncio.create_task(charge(stub, key, "tok_slow_300"))
    await asyncio.sleep(0.05)
    assert (await close(stub, key)).state == pb.CHARGE_STATE_CLOSED
    assert (await waiting).state == pb.CHARGE_STATE_CLOSED


async def test_a_lost_reply_is_a_charge_without_an_answer(stub: Stub) -> None:
    key = new_id()
    assert await code_of(charge(stub, key, "tok_lostReply", seconds=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    found = (await stub.FindCharge(pb.FindChargeRequest(key=key), timeout=5)).charge
    assert found.state == pb.CHARGE_STATE_CAPTURED


async def test_an_unavailable_provider_records_nothing(stub: Stub) -> None:
    key = new_id()
    assert await code_of(charge(stub, key, "tok_unavailable")) == grpc.StatusCode.UNAVAILABLE
    assert await record_of(stub, key) is None


async def test_refunds_together_never_exceed_the_charge(stub: Stub) -> None:
    key, first = new_id(), new_id()
    await charge(stub, key)
    assert (await refund(stub, key, 10, first)).state == pb.REFUND_STATE_SUCCEEDED
    assert (await refund(stub, key, 10, first)).state == pb.REFUND_STATE_SUCCEEDED
    assert await code_of(refund(stub, key, 11, first)) == grpc.StatusCode.ALREADY_EXISTS
    assert await code_of(refund(stub, key, 21)) == grpc.StatusCode.FAILED_PRECONDITION
    assert (await refund(stub, key, 20)).state == pb.REFUND_STATE_SUCCEEDED
    assert await code_of(refund(stub, key, 1)) == grpc.StatusCode.FAILED_PRECONDITION
    recorded = await record_of(stub, key)
    assert recorded is not None
    assert [one.amount.units for one in recorded.refunds] == [10, 20]


async def test_a_blocked_refund_is_refused_until_the_cause_is_lifted(stub: Stub) -> None:
    key, first = new_id(), new_id()
    await charge(stub, key, "tok_refundFail")
    refused = await refund(stub, key, 30, first)
    assert (refused.state, refused.refusal_code) == (pb.REFUND_STATE_REFUSED, "refund_blocked")
    lifted = await stub.LiftRefundBlock(pb.LiftRefundBlockRequest(charge_key=key), timeout=5)
    assert lifted.lifted_count == 1
    for neither_or_both in (
        pb.LiftRefundBlockRequest(),
        pb.LiftRefundBlockRequest(charge_key=key, all_charges=True),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.LiftRefundBlock(neither_or_both, timeout=5)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        await stub.LiftRefundBlock(pb.LiftRefundBlockRequest(all_charges=True), timeout=5)
    ).lifted_count == 0
    assert (await refund(stub, key, 30, first)).state == pb.REFUND_STATE_REFUSED, "a key is decided once"
    assert (await refund(stub, key, 30, f"{first}/1")).state == pb.REFUND_STATE_SUCCEEDED


@pytest.mark.parametrize(
    "request_",
    [
        pb.CreateChargeRequest(amount=euros(1), payment_token="tok_visa"),
        pb.CreateChargeRequest(key="k" * 201, amount=euros(1), payment_token="tok_visa"),
        pb.CreateChargeRequest(key="k", payment_token="tok_visa"),
        pb.CreateChargeRequest(key="k", amount=euros(0), payment_token="tok_visa"),
        pb.CreateChargeRequest(key="k", amount=euros(-1), payment_token="tok_visa"),
        pb.CreateChargeRequest(key="k", amount=euros(1)),
    ],
)
async def test_a_charge_that_makes_no_sense_is_refused(stub: Stub, request_: pb.CreateChargeRequest) -> None:
    assert await code_of(stub.CreateCharge(request_, timeout=5)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_record_is_paged_and_survives_a_kill(tmp_path: Path) -> None:
    part: Part = sandbox_part(tmp_path)
    part.start()
    try:
        keys = [new_id() for _ in range(5)]
        async with sandbox_stub(part) as stub:
            for key in keys:
                await charge(stub, key)
        pid = part.pid
        part.kill()
        part.start()
        assert part.pid != pid
        async with sandbox_stub(part) as stub:
            seen, token = [], ""
            while True:
                page = await stub.ListCharges(pb.ListChargesRequest(page_size=2, page_token=token), timeout=5)
                seen += [one.key for one in page.charges]
                token = page.next_page_token
                if not token:
                    break
            assert seen == keys
            junk = stub.ListCharges(pb.ListChargesRequest(page_token="junk"), timeout=5)
            assert await code_of(junk) == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        part.stop()


def test_no_token_is_in_the_record_or_the_log(sandbox: Part) -> None:
    for path in sandbox.log.parent.iterdir():
        assert b"tok_visa" not in path.read_bytes()
