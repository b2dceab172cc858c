"""DepositService over real gRPC: the deposit and the sandbox as processes, without a broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.type.money_pb2 import Money

from deposit_svc import messages, persistence
from deposit_svc.domain import RefundOrder, VoidOrder
from deposit_svc.usecases import Deposits
from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2_grpc
from dinemesh.deposit.v1 import deposit_service_pb2 as pb
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from dinemesh.sandbox.v1 import sandbox_pb2
from tests.deposit.conftest import LIMITS, THIRTY, new_id
from tests.deposit.fakes import FakeProvider
from tests.deposit.processes import record_of, sandbox_part, sandbox_stub
from tests.support.mesh import Keys, Part
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.support.refusals import refusal, refused

if TYPE_CHECKING:
    from dinemesh.deposit.v1.deposit_service_pb2_grpc import DepositServiceAsyncStub
    from dinemesh.sandbox.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub

RESERVATION_ID = new_id()
IN_FLIGHT = 4
PATIENCE = 30.0


@dataclass
class Office:
    """A deposit process with its sandbox, and the keys that its tokens are signed with."""

    deposit: Part
    sandbox: Part
    keys: Keys
    database_url: str

    def token(self, sub: str, role: str) -> tuple[tuple[str, str]]:
        restaurant = RESERVATION_ID if role == "staff" else None
        return (("authorization", f"Bearer {self.keys.token(sub, role, restaurant)}"),)

    def start(self) -> None:
        """Starts both. Ready would be 3 s later: the service waits for a broker, and here is none."""
        self.sandbox.spawn()
        self.deposit.spawn()
        self.wait_until_it_answers()
        self.sandbox.wait_until_ready()

    def wait_until_it_answers(self) -> None:
        end = time.monotonic() + 60
        request = pb.GetDepositRequest(deposit_id=new_id())
        while True:
            assert time.monotonic() < end, self.deposit.last_words()
            with grpc.insecure_channel(self.deposit.address) as channel:
                stub = deposit_service_pb2_grpc.DepositServiceStub(channel)
                try:
                    stub.GetDeposit(request, timeout=1, metadata=self.token("alice", "customer"))
                except grpc.RpcError as error:
                    if refusal(error).reason == "NOT_FOUND":
                        return
            time.sleep(0.05)


def office_in(folder: Path, **settings: str) -> Office:
    keys = Keys(folder)
    sandbox = sandbox_part(folder)
    port, metrics_port, nobody = free_ports(3)
    environment = {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "DATABASE_URL": f"sqlite:///{folder}/deposit.db",
        "AMQP_URL": f"amqp://guest:guest@127.0.0.1:{nobody}/",
        "JWKS_FILE": str(keys.jwks_file),
        "SANDBOX_ADDRESS": sandbox.address,
        "DRAIN_SECONDS": "0",
        "STOP_GRACE_SECONDS": "1",
        "CHARGE_TIMEOUT_MS": "1500",
        "PENDING_SETTLE_SECONDS": "2",
        "SETTLE_INTERVAL_SECONDS": "0.2",
        "CHARGES_IN_FLIGHT_LIMIT": str(IN_FLIGHT),
        "LOG_LEVEL": "DEBUG",
    } | settings
    deposit = Part("deposit", "deposit_svc.main", port, environment, folder / "deposit.log")
    return Office(deposit, sandbox, keys, environment["DATABASE_URL"])


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    office = office_in(tmp_path_factory.mktemp("office"))
    office.start()
    yield office
    office.deposit.stop()
    office.sandbox.stop()


class Client:
    """Calls of reservation, of customers and of the operator."""

    def __init__(self, office: Office, stub: DepositServiceAsyncStub) -> None:
        self.office = office
        self.stub = stub

    def create(
        self,
        deposit_id: str,
        token: str = "tok_visa",
        *,
        sub: str = "reservation",
        seconds: float | None = 10,
    ) -> Any:
        return self.stub.CreateDeposit(
            an_order(deposit_id, token), timeout=seconds, metadata=self.office.token(sub, "service")
        )

    def get(self, deposit_id: str, sub: str = "alice", role: str = "customer") -> Any:
        request = pb.GetDepositRequest(deposit_id=deposit_id)
        return self.stub.GetDeposit(request, timeout=10, metadata=self.office.token(sub, role))

    def list(self, sub: str = "alice", **fields: Any) -> Any:
        request = pb.ListDepositsRequest(**fields)
        return self.stub.ListDeposits(request, timeout=10, metadata=self.office.token(sub, "customer"))

    def retry(self, deposit_id: str, refund_id: str, role: str = "operator") -> Any:
        request = pb.RetryRefundRequest(deposit_id=deposit_id, refund_id=refund_id)
        return self.stub.RetryRefund(request, timeout=10, metadata=self.office.token("olga", role))

    async def ends_as(
        self, deposit_id: str, state: deposit_pb2.DepositState.ValueType
    ) -> deposit_pb2.Deposit:
        """Polls until the deposit is in `state`."""
        end = time.monotonic() + PATIENCE
        while True:
            deposit: deposit_pb2.Deposit = (await self.get(deposit_id)).deposit
            if deposit.state == state:
                return deposit
            assert time.monotonic() < end, f"still {deposit}\n{self.office.deposit.last_words()}"
            await asyncio.sleep(0.05)


def an_order(deposit_id: str, token: str = "tok_visa") -> pb.CreateDepositRequest:
    return pb.CreateDepositRequest(
        deposit_id=deposit_id,
        reservation_id=RESERVATION_ID,
        customer_id="alice",
        amount=Money(currency_code="EUR", units=30),
        payment_token=token,
    )


@pytest.fixture
async def client(office: Office) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(office.deposit.address) as channel:
        yield Client(office, deposit_service_pb2_grpc.DepositServiceStub(channel))


@pytest.fixture
async def record(office: Office) -> AsyncIterator[SandboxServiceAsyncStub]:
    async with sandbox_stub(office.sandbox) as stub:
        yield stub


async def apply_instructions(office: Office, *instructions: RefundOrder | VoidOrder) -> None:
    """Money instructions as a handler applies them, in the database of the process: it has no broker here."""
    store = Store.open(office.database_url, exclusive=False)
    outbox = Outbox(persistence.outbox, messages.encode_event, source="deposit")
    deposits = Deposits(store, outbox, FakeProvider(), Background(), LIMITS)
    try:
        await store.write(lambda tx: deposits.apply_instructions(tx, instructions, "alice", RESERVATION_ID))
    finally:
        await store.close()


# The whole way of a deposit


async def test_a_deposit_is_charged_and_shown_to_its_customer(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    deposit_id = new_id()
    made = (await client.create(deposit_id)).deposit
    assert made.state == deposit_pb2.DEPOSIT_STATE_CAPTURED
    assert (made.held.units, made.held.currency_code) == (30, "EUR")
    assert (await client.create(deposit_id)).deposit == made
    assert (await client.get(deposit_id)).deposit == made
    charged = await record_of(record, deposit_id)
    assert charged is not None
    assert charged.state == sandbox_pb2.CHARGE_STATE_CAPTURED


async def test_a_list_is_paged_and_each_customers_own(client: Client) -> None:
    ids = [new_id() for _ in range(3)]
    for deposit_id in ids:
        await client.create(deposit_id)
    seen: list[str] = []
    token = ""
    while True:
        page = await client.list(reservation_id=RESERVATION_ID, page_size=2, page_token=token)
        assert len(page.deposits) <= 2
        seen += [deposit.deposit_id for deposit in page.deposits]
        token = page.next_page_token
        if not token:
            break
    assert seen[:3] == ids[::-1]
    assert len(seen) == len(set(seen))
    assert not (await client.list("mallory", reservation_id=RESERVATION_ID)).deposits
    other = await refused(client.list(reservation_id="", page_token=token or (await first_token(client))))
    assert other.fields == ("page_token",)


async def first_token(client: Client) -> str:
    page = await client.list(reservation_id=RESERVATION_ID, page_size=1)
    return str(page.next_page_token)


async def test_a_declined_card_is_told_with_its_code_and_stays_declined(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    deposit_id = new_id()
    for _ in range(2):
        answer = await refused(client.create(deposit_id, "tok_chargeDeclinedInsufficientFunds"))
        assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CARD_DECLINED")
        assert answer.info["decline_code"] == "insufficient_funds"
    assert (await client.get(deposit_id)).deposit.decline_code == "insufficient_funds"


async def test_another_body_under_the_same_id_is_refused(client: Client) -> None:
    deposit_id = new_id()
    await client.create(deposit_id)
    answer = await refused(client.create(deposit_id, "tok_other"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DEPOSIT_ID_REUSED")


# Who may


async def test_only_reservation_may_charge(client: Client, record: SandboxServiceAsyncStub) -> None:
    deposit_id = new_id()
    for sub, role in (
        ("alice", "customer"),
        ("history", "service"),
        ("olga", "operator"),
        ("reservation", "customer"),
    ):
        call = client.stub.CreateDeposit(
            an_order(deposit_id), timeout=10, metadata=client.office.token(sub, role)
        )
        answer = await refused(call)
        assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    answer = await refused(client.stub.CreateDeposit(an_order(deposit_id), timeout=10))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert await record_of(record, deposit_id) is None


async def test_someone_elses_deposit_is_not_found(client: Client) -> None:
    deposit_id = new_id()
    await client.create(deposit_id)
    for other in (deposit_id, new_id()):
        answer = await refused(client.get(other, "mallory"))
        assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert (await refused(client.get(deposit_id, "sam", "staff"))).reason == "PERMISSION_DENIED"


async def test_only_an_operator_may_retry_a_refund(client: Client) -> None:
    assert (await refused(client.retry(new_id(), new_id(), "customer"))).reason == "PERMISSION_DENIED"
    assert (await refused(client.retry(new_id(), new_id(), "staff"))).reason == "PERMISSION_DENIED"
    assert (await refused(client.retry(new_id(), new_id()))).reason == "NOT_FOUND"


BAD = {
    "deposit_id": ["", "42", "{0b0e9a43-6f0d-4c9c-8a55-3c1f0d1e2f00}", "'; DROP TABLE deposits; --", "../x"],
    "reservation_id": ["", "not-a-uuid"],
    "customer_id": ["", "a" * 129, "a\0b"],
    "payment_token": ["", "t" * 129, "tok\nvisa"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
async def test_a_bad_field_is_named_and_nothing_is_charged(client: Client, field: str, value: str) -> None:
    deposit_id = new_id()
    request = an_order(deposit_id)
    setattr(request, field, value)
    call = client.stub.CreateDeposit(
        request, timeout=10, metadata=client.office.token("reservation", "service")
    )
    answer = await refused(call)
    assert (answer.code, answer.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
    assert (await refused(client.get(deposit_id))).reason == "NOT_FOUND"


@pytest.mark.parametrize(
    "amount",
    [
        None,
        Money(currency_code="EUR"),
        Money(currency_code="EUR", units=-5),
        Money(currency_code="eur", units=5),
        Money(units=5),
        Money(currency_code="EUR", units=1, nanos=1),
        Money(currency_code="EUR", units=1, nanos=-500_000_000),
        Money(currency_code="EUR", units=2**62),
    ],
)
async def test_a_bad_amount_is_named_and_nothing_is_charged(client: Client, amount: Money | None) -> None:
    request = an_order(new_id())
    request.ClearField("amount")
    if amount is not None:
        request.amount.CopyFrom(amount)
    call = client.stub.CreateDeposit(
        request, timeout=10, metadata=client.office.token("reservation", "service")
    )
    answer = await refused(call)
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert answer.fields[0].startswith("amount")


async def test_bad_questions_are_named_too(client: Client) -> None:
    assert (await refused(client.get("42"))).fields == ("deposit_id",)
    assert (await refused(client.list(reservation_id="x"))).fields == ("reservation_id",)
    assert (await refused(client.list(page_size=-1))).fields == ("page_size",)
    for junk in ("junk", "e30", "eyJiZWZvcmUiOjF9", "A" * 3000):
        assert (await refused(client.list(page_token=junk))).fields == ("page_token",)
    assert (await refused(client.retry("x", new_id()))).fields == ("deposit_id",)
    assert (await refused(client.retry(new_id(), ""))).fields == ("refund_id",)
    assert (await refused(client.retry("", ""))).fields == ("deposit_id", "refund_id")
    everything = await refused(client.list(reservation_id="x", page_size=-1))
    assert everything.fields == ("reservation_id", "page_size")


# When the outcome is unknown


async def test_a_provider_that_is_down_is_in_doubt_and_ends_void(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    deposit_id = new_id()
    answer = await refused(client.create(deposit_id, "tok_unavailable"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ABORTED, "DEPOSIT_IN_DOUBT")
    await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_VOIDED)
    closed = await record_of(record, deposit_id)
    assert closed is not None
    assert closed.state == sandbox_pb2.CHARGE_STATE_CLOSED
    assert (await refused(client.create(deposit_id, "tok_unavailable"))).reason == "DEPOSIT_VOIDED"


async def test_a_lost_reply_is_answered_within_the_callers_deadline_and_settled(client: Client) -> None:
    deposit_id = new_id()
    started = time.monotonic()
    answer = await refused(client.create(deposit_id, "tok_lostReply", seconds=1))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ABORTED, "DEPOSIT_IN_DOUBT")
    assert time.monotonic() - started < 1
    await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_CAPTURED)


async def test_a_charge_that_is_too_slow_is_closed_before_it_happens(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    deposit_id = new_id()
    answer = await refused(client.create(deposit_id, "tok_slow_3000", seconds=1.5))
    assert answer.reason == "DEPOSIT_IN_DOUBT"
    await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_VOIDED)
    await asyncio.sleep(3)  # the time at which the charge would have happened
    closed = await record_of(record, deposit_id)
    assert closed is not None
    assert closed.state == sandbox_pb2.CHARGE_STATE_CLOSED


async def test_a_caller_that_hangs_up_during_the_charge_loses_nothing(client: Client) -> None:
    deposit_id = new_id()
    call = client.create(deposit_id, "tok_slow_600", seconds=None)
    await asyncio.sleep(0.3)
    assert (await client.get(deposit_id)).deposit.state == deposit_pb2.DEPOSIT_STATE_PENDING
    call.cancel()
    await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_CAPTURED)


async def test_charges_beyond_the_limit_are_shed_with_a_retry_time(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    ids = [new_id() for _ in range(IN_FLIGHT)]
    inside = [asyncio.ensure_future(client.create(deposit_id, "tok_slow_900")) for deposit_id in ids]
    for deposit_id in ids:
        await until(lambda deposit_id=deposit_id: known(client, deposit_id))  # type: ignore[misc]
    shed = new_id()
    started = time.monotonic()
    answer = await refused(client.create(shed))
    assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEPOSIT_OVERLOADED")
    assert time.monotonic() - started < 0.5
    assert answer.retry_after is not None and 1 <= answer.retry_after <= 1.25
    assert answer.trailing["retry-after"] in ("1", "2")
    assert await known(client, shed) is False
    assert await record_of(record, shed) is None
    for done in await asyncio.gather(*inside):
        assert done.deposit.state == deposit_pb2.DEPOSIT_STATE_CAPTURED


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await ask():  # noqa: ASYNC110  another process has no event to wait for
            await asyncio.sleep(0.01)


async def known(client: Client, deposit_id: str) -> bool:
    try:
        await client.get(deposit_id)
    except grpc.aio.AioRpcError:
        return False
    return True


# Refunds


async def test_a_refund_that_fails_is_shown_and_retried_by_the_operator_once(
    client: Client, record: SandboxServiceAsyncStub
) -> None:
    deposit_id, refund_id = new_id(), new_id()
    await client.create(deposit_id, "tok_refundFail")
    await apply_instructions(client.office, RefundOrder(refund_id, deposit_id, THIRTY))
    failed = await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_REFUND_FAILED)
    assert failed.refunds[0].failure_code == "refund_blocked"
    assert failed.refund_failed.units == 30

    await record.LiftRefundBlock(sandbox_pb2.LiftRefundBlockRequest(charge_key=deposit_id), timeout=5)
    again = (await client.retry(deposit_id, refund_id)).deposit
    assert again.refunds[0].attempt == 2
    second_click = await refused(client.retry(deposit_id, refund_id))
    assert (second_click.code, second_click.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "REFUND_NOT_RETRYABLE",
    )
    await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    charged = await record_of(record, deposit_id)
    assert charged is not None
    assert [(one.key, one.state) for one in charged.refunds] == [
        (refund_id, sandbox_pb2.REFUND_STATE_REFUSED),
        (f"{refund_id}/1", sandbox_pb2.REFUND_STATE_SUCCEEDED),
    ]


async def test_no_payment_token_is_stored_or_logged(client: Client) -> None:
    deposit_id = new_id()
    secret = "tok_chargeDeclinedVerySecret"
    await refused(client.create(deposit_id, secret))
    for path in client.office.deposit.log.parent.iterdir():
        content = path.read_bytes()
        assert b"VerySecret" not in content, path
        assert b"tok_visa" not in content, path


# Crashes


async def test_a_kill_between_charge_and_capture_is_settled_after_the_restart(tmp_path: Path) -> None:
    office = office_in(tmp_path)
    office.start()
    first_pid = office.deposit.pid
    deposit_id = new_id()
    try:
        async with grpc.aio.insecure_channel(office.deposit.address) as channel:
            client = Client(office, deposit_service_pb2_grpc.DepositServiceStub(channel))
            call = client.create(deposit_id, "tok_lostReply", seconds=None)
            async with sandbox_stub(office.sandbox) as record:
                await until(lambda: record_of(record, deposit_id))
                office.deposit.kill()
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
                office.deposit.spawn()
                office.wait_until_it_answers()
                assert office.deposit.pid != first_pid
                await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_CAPTURED)
                await apply_instructions(office, VoidOrder(deposit_id))
                await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_REFUNDED)
                charged = await record_of(record, deposit_id)
        assert charged is not None
        assert sum(one.amount.units for one in charged.refunds) == 30
    finally:
        office.deposit.stop()
        office.sandbox.stop()


async def test_refunds_wait_for_a_provider_that_was_killed(tmp_path: Path) -> None:
    office = office_in(tmp_path)
    office.start()
    deposit_id = new_id()
    try:
        async with grpc.aio.insecure_channel(office.deposit.address) as channel:
            client = Client(office, deposit_service_pb2_grpc.DepositServiceStub(channel))
            await client.create(deposit_id)
            office.sandbox.kill()
            assert not office.sandbox.running
            await apply_instructions(office, VoidOrder(deposit_id))
            in_doubt = await refused(client.create(new_id()))
            assert in_doubt.reason == "DEPOSIT_IN_DOUBT"
            assert (await client.get(deposit_id)).deposit.state == deposit_pb2.DEPOSIT_STATE_REFUNDING
            office.sandbox.start()
            await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    finally:
        office.deposit.stop()
        office.sandbox.stop()


async def test_two_pods_on_one_postgresql_charge_and_return_once(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    office = office_in(tmp_path, DATABASE_URL=postgres.fresh("deposit_svc"), CHARGES_IN_FLIGHT_LIMIT="100")
    port, metrics_port = free_ports(2)
    environment = office.deposit.environment | {"PORT": str(port), "METRICS_PORT": str(metrics_port)}
    other = replace(
        office, deposit=Part("other", "deposit_svc.main", port, environment, tmp_path / "other.log")
    )
    ids = [new_id() for _ in range(20)]
    try:
        office.start()
        other.deposit.spawn()
        other.wait_until_it_answers()
        async with (
            grpc.aio.insecure_channel(office.deposit.address) as channel,
            grpc.aio.insecure_channel(other.deposit.address) as other_channel,
            sandbox_stub(office.sandbox) as record,
        ):
            client = Client(office, deposit_service_pb2_grpc.DepositServiceStub(channel))
            twin = Client(other, deposit_service_pb2_grpc.DepositServiceStub(other_channel))
            calls = [one.create(deposit_id) for deposit_id in ids for one in (client, twin)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            reasons = {refusal(one).reason for one in answers if isinstance(one, grpc.RpcError)}
            assert reasons <= {"DEPOSIT_IN_DOUBT"}
            for deposit_id in ids:
                await twin.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_CAPTURED)
            await apply_instructions(office, *(VoidOrder(deposit_id) for deposit_id in ids))
            for deposit_id in ids:
                await client.ends_as(deposit_id, deposit_pb2.DEPOSIT_STATE_REFUNDED)
                charged = await record_of(record, deposit_id)
                assert charged is not None
                assert [one.amount.units for one in charged.refunds] == [30]
    finally:
        other.deposit.stop()
        office.deposit.stop()
        office.sandbox.stop()
