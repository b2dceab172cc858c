"""What an operator sees and does about money that is stuck: it goes back once, whoever is killed meanwhile.

"Once" is read from the provider's own record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from sqlalchemy import create_engine, text

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.kit import crash
from dinemesh.sandbox.v1 import sandbox_pb2
from operations import __main__ as commands
from operations import addresses
from operations.audit import look
from operations.limits import Limits
from operations.snapshot import Sources
from tests.mesh.people import City, Customer, Deposit, Reservation, cents, kept, until
from tests.support.mesh import SERVICES, RunningMesh
from tests.support.refusals import refusal, refused

REFUND_FAILED = deposit_pb2.DEPOSIT_STATE_REFUND_FAILED
SUCCEEDED = sandbox_pb2.REFUND_STATE_SUCCEEDED
REFUSED = sandbox_pb2.REFUND_STATE_REFUSED
DEPOSIT = 2000
"""Cents, for two people."""

Refunds = list[tuple[str, "sandbox_pb2.RefundState.ValueType", int]]


class Office:
    """The operator's commands on a running mesh."""

    def __init__(self, mesh: RunningMesh, capsys: pytest.CaptureFixture[str]) -> None:
        self._mesh = mesh
        self._capsys = capsys

    @property
    def _databases(self) -> list[str]:
        return [f"--{name}-db={self._mesh.databases[name]}" for name in SERVICES]

    async def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(commands.main, words)
        return code, self._capsys.readouterr().out

    async def pending(self) -> tuple[int, str]:
        return await self.run("pending", *self._databases, "--amqp", self._mesh.operators_amqp_url)

    async def retry(self, deposit_id: str) -> tuple[int, str]:
        address = f"--deposit-address={self._mesh['deposit'].address}"
        database = f"--deposit-db={self._mesh.databases['deposit']}"
        return await self.run("retry-refund", database, address, f"--deposit={deposit_id}")

    async def lift(self, deposit_id: str) -> tuple[int, str]:
        provider = f"--provider={self._mesh['sandbox'].address}"
        return await self.run("lift-refund-block", provider, f"--charge={deposit_id}")

    async def failed_refunds(self) -> float:
        """What the metric of deposit counts."""
        return await asyncio.to_thread(self._mesh.measured, "deposit", "dinemesh_refunds_failed")


@pytest.fixture
def office(mesh: RunningMesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setenv(addresses.TOKEN, mesh.token("olga", "operator"))
    return Office(mesh, capsys)


async def refused_refund(city: City, customer: Customer) -> tuple[Reservation, Deposit]:
    """A reservation whose deposit the provider will not give back, and that deposit."""
    reserved = await customer.reserve(await city.place(), card="tok_refundFail")
    await customer.cancel(reserved)
    (deposit,) = await customer.sees_deposits(reserved, REFUND_FAILED)
    return reserved, deposit


async def refunds(city: City, deposit_id: str) -> Refunds:
    """Key, state and amount of each refund in the provider's record."""
    charge = await city.provider.charge(deposit_id)
    assert charge is not None and charge.state == sandbox_pb2.CHARGE_STATE_CAPTURED
    assert cents(charge.amount) == DEPOSIT
    return [(one.key, one.state, cents(one.amount)) for one in charge.refunds]


async def given_back_once(city: City, deposit: Deposit, customer: Customer) -> None:
    """After the cause was lifted: refused under the first key, paid under the second, and that is all."""
    (refund,) = deposit.refunds
    await until(
        lambda: customer.deposit(deposit.deposit_id),
        lambda seen: seen.state == deposit_pb2.DEPOSIT_STATE_REFUNDED,
    )
    assert await refunds(city, deposit.deposit_id) == [
        (refund.refund_id, REFUSED, DEPOSIT),
        (f"{refund.refund_id}/1", SUCCEEDED, DEPOSIT),
    ]


def order(deposit: Deposit) -> deposit_service_pb2.RetryRefundRequest:
    return deposit_service_pb2.RetryRefundRequest(
        deposit_id=deposit.deposit_id, refund_id=deposit.refunds[0].refund_id
    )


async def ordered(city: City, deposit: Deposit) -> str:
    """RetryRefund once; "" or the reason of its refusal."""
    try:
        await city.doors.deposit.RetryRefund(order(deposit), metadata=city.operator, timeout=5)
    except grpc.aio.AioRpcError as error:
        return refusal(error).reason
    return ""


async def test_a_refused_refund_is_listed_counted_and_given_back_by_one_command(
    city: City, mesh: RunningMesh, office: Office
) -> None:
    alice = city.customer()
    reserved, deposit = await refused_refund(city, alice)
    (refund,) = deposit.refunds
    await alice.sees_in_timeline(reserved, "DEPOSIT_REFUND_FAILED")
    assert await until(office.failed_refunds, lambda count: count >= 1) == 1
    code, listed = await office.pending()
    assert code == 1
    assert f"REFUND FAILED  {refund.refund_id}" in listed
    assert f"make retry-refund DEPOSIT={deposit.deposit_id}" in listed
    databases = {f"{name}_db": mesh.databases[name] for name in SERVICES}
    report = await look(Sources(**databases, provider=mesh["sandbox"].address), Limits())
    assert [one.subject for one in report.pending if one.state == "REFUND FAILED"] == [refund.refund_id]
    assert not [one for one in report.violations if deposit.deposit_id in one.subject], report

    # The cause is still there: refused again, under a key of its own, and still listed.
    code, said = await office.retry(deposit.deposit_id)
    assert (code, "refused again (refund_blocked)" in said) == (1, True), said
    assert [state for _, state, _ in await refunds(city, deposit.deposit_id)] == [REFUSED, REFUSED]
    assert refund.refund_id in (await office.pending())[1]

    code, said = await office.lift(deposit.deposit_id)
    assert (code, said) == (0, "the sandbox refunds 1 charges again that it refused to refund\n")
    assert await office.retry(deposit.deposit_id) == (
        0,
        f"refund {refund.refund_id}: given back after 3 tries\n",
    )
    code, said = await office.retry(deposit.deposit_id)
    assert (code, "nothing to retry" in said) == (0, True), said
    assert [(key, state) for key, state, _ in await refunds(city, deposit.deposit_id)] == [
        (refund.refund_id, REFUSED),
        (f"{refund.refund_id}/1", REFUSED),
        (f"{refund.refund_id}/2", SUCCEEDED),
    ]
    assert await until(office.failed_refunds, lambda count: count == 0) == 0
    assert refund.refund_id not in (await office.pending())[1]


async def test_what_cannot_be_retried_is_said(
    city: City, mesh: RunningMesh, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    address, database = "--deposit-address=127.0.0.1:1", f"--deposit-db={mesh.databases['deposit']}"
    words = ["retry-refund", database, "--deposit"]
    nobodys = "9b0a5c1e-5f0b-4d57-9a39-0d8b6a1f7f10"
    assert await asyncio.to_thread(commands.main, [*words, nobodys, address]) == 2
    assert f"no refund of a deposit {nobodys} is known" in capsys.readouterr().err

    _, deposit = await refused_refund(city, city.customer())
    assert await asyncio.to_thread(commands.main, [*words, nobodys, address]) == 2
    assert deposit.deposit_id in capsys.readouterr().err, "what there is to be retried is named"
    sandbox = f"--provider={mesh['sandbox'].address}"
    assert await asyncio.to_thread(commands.main, ["lift-refund-block", sandbox, f"--charge={nobodys}"]) == 2
    assert f"no charge of a deposit {nobodys}; `make pending` lists" in capsys.readouterr().err
    assert await asyncio.to_thread(commands.main, [*words, deposit.deposit_id, address]) == 2
    assert "(UNAVAILABLE). Run it again" in capsys.readouterr().err
    await office.lift(deposit.deposit_id)
    assert (await office.retry(deposit.deposit_id))[0] == 0


async def test_of_many_orders_at_once_one_is_taken_and_the_money_goes_back_once(city: City) -> None:
    alice = city.customer()
    _, deposit = await refused_refund(city, alice)
    await city.doors.sandbox.LiftRefundBlock(
        sandbox_pb2.LiftRefundBlockRequest(charge_key=deposit.deposit_id), timeout=5
    )
    said = await asyncio.gather(*(ordered(city, deposit) for _ in range(10)))
    assert sorted(said) == ["", *["REFUND_NOT_RETRYABLE"] * 9]
    await given_back_once(city, deposit, alice)
    assert await ordered(city, deposit) == "REFUND_NOT_RETRYABLE"
    await given_back_once(city, deposit, alice)


Killing = Callable[[City, Deposit, Path], Awaitable[None]]


async def nobody_is_killed(city: City, deposit: Deposit, folder: Path) -> None:
    """The control."""
    assert await ordered(city, deposit) == ""


async def killed_while_the_provider_is_asked(city: City, deposit: Deposit, folder: Path) -> None:
    """kill -9 with the call on its way: the provider hangs, and hears it after deposit is gone."""
    sandbox, service = city.mesh["sandbox"], city.mesh["deposit"]
    old_pid = service.pid
    sandbox.pause()
    try:
        assert await ordered(city, deposit) == ""
        await until(lambda: row(city.mesh, deposit), lambda found: found == ("PENDING", 1, 1))
        service.kill()
    finally:
        sandbox.resume()
    assert await row(city.mesh, deposit) == ("PENDING", 1, 1), "void: it was decided before the kill"
    service.start()
    assert service.pid != old_pid


async def killed_after_the_provider_has_paid(city: City, deposit: Deposit, folder: Path) -> None:
    """Dead at the point between the provider's answer and its own record of it."""
    service = city.mesh["deposit"]
    old_pid = service.pid
    passed = (folder / "passed").read_text().splitlines()
    refusal_here = [line for line in passed if line.startswith("provider.refund.after")][-1]
    here, _, detail = refusal_here.partition(" attempt ")
    assert detail == "0 Refused", refusal_here
    (folder / "armed").write_text(f"{here} attempt 1 Returned")
    assert await ordered(city, deposit) == ""
    assert await asyncio.to_thread(service.wait_for_exit) == crash.EXIT_CODE
    assert await row(city.mesh, deposit) == ("PENDING", 1, 1)
    assert [state for _, state, _ in await refunds(city, deposit.deposit_id)] == [REFUSED, SUCCEEDED]
    service.start()
    assert service.pid != old_pid


async def row(mesh: RunningMesh, deposit: Deposit) -> tuple[str, int, int]:
    """State, attempt and claims of the refund in deposit's own database."""
    engine = create_engine(mesh.databases["deposit"])
    query = text("SELECT state, attempt, settle_tries FROM refunds WHERE deposit_id = :id")
    try:
        with engine.connect() as connection:
            state, attempt, tries = connection.execute(query, {"id": deposit.deposit_id}).one()
    finally:
        engine.dispose()
    return state, attempt, tries


@pytest.mark.parametrize(
    "killing", [nobody_is_killed, killed_while_the_provider_is_asked, killed_after_the_provider_has_paid]
)
async def test_a_retried_refund_goes_back_once_although_deposit_is_killed_in_the_middle(
    city: City, mesh: RunningMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killing: Killing
) -> None:
    alice, service = city.customer(), mesh["deposit"]
    with monkeypatch.context() as patched:
        if killing is killed_after_the_provider_has_paid:
            patched.setenv(crash.VARIABLE, str(tmp_path))
            service.stop()
            service.start()
        _, deposit = await refused_refund(city, alice)
        await city.doors.sandbox.LiftRefundBlock(
            sandbox_pb2.LiftRefundBlockRequest(charge_key=deposit.deposit_id), timeout=5
        )
        await killing(city, deposit, tmp_path)
    assert await until(lambda: said_again(city, deposit), bool) == "REFUND_NOT_RETRYABLE"
    await given_back_once(city, deposit, alice)


async def said_again(city: City, deposit: Deposit) -> str:
    """An operator who was not answered orders it once more."""
    said = await ordered(city, deposit)
    assert said, "the refund was FAILED again, although it was being tried"
    return said if said == "REFUND_NOT_RETRYABLE" else ""


@pytest.mark.parametrize("is_killed", [False, True], ids=["nobody is killed", "deposit is killed"])
async def test_a_charge_whose_reply_was_lost_is_taken_once_and_goes_back_once(
    city: City, mesh: RunningMesh, is_killed: bool
) -> None:
    place, alice, service = await city.place(), city.customer(), mesh["deposit"]
    old_pid = service.pid
    booking = asyncio.create_task(refused(alice.send(alice.wish(place, card="tok_lostReply"), timeout=10)))

    async def charged() -> list[str]:
        """The deposits of alice that the provider has charged."""
        charges = await city.provider.charges()
        known = [one.deposit_id for one in await alice.deposits()]
        return [one for one in known if one in charges and kept(charges[one]) == DEPOSIT]

    (deposit_id,) = await until(charged, bool)
    assert not booking.done(), "void: the attempt was over before the charge"
    if is_killed:
        service.kill()
    said = await booking
    assert said.reason == "TRY_AGAIN_LATER" and said.retry_after is not None
    if is_killed:
        service.start()
        assert service.pid != old_pid

    async def back() -> list[tuple[sandbox_pb2.RefundState.ValueType, int]]:
        return [(state, amount) for _, state, amount in await refunds(city, deposit_id)]

    await until(back, bool)
    await until(
        lambda: alice.deposit(deposit_id), lambda seen: seen.state == deposit_pb2.DEPOSIT_STATE_REFUNDED
    )
    assert await back() == [(SUCCEEDED, DEPOSIT)]
    assert [one.deposit_id for one in await alice.deposits()] == [deposit_id]
