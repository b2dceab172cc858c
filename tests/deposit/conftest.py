"""Deposit without its doors: real use cases on a real database, a provider in memory, a clock that is set."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from deposit_svc import messages, persistence
from deposit_svc.domain import Account, Deposit, Instruction, Money, Order, body_hash
from deposit_svc.usecases import Deposits, Limits
from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from tests.deposit.fakes import FakeProvider
from tests.deposit.processes import sandbox_part, sandbox_stub
from tests.support.mesh import Part
from tests.support.postgres import FreshDatabase

if TYPE_CHECKING:
    from dinemesh.sandbox.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub

CUSTOMER = "alice"
RESERVATION = "0b0e9a43-6f0d-4c9c-8a55-3c1f0d1e2f00"
LIMITS = Limits(
    charges_in_flight=3, charge_timeout_seconds=5, pending_settle_seconds=12, settle_lease_seconds=15
)


def new_id() -> str:
    return str(uuid.uuid4())


def euros(amount: int) -> Money:
    return Money(amount * 100, "EUR")


THIRTY = euros(30)


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something has come about, 5 s at most."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  what is waited for is not told by an event
            await asyncio.sleep(0.005)


def an_order(deposit_id: str = "", amount: Money = THIRTY, token: str = "tok_visa") -> Order:
    return Order(
        deposit_id or new_id(),
        CUSTOMER,
        RESERVATION,
        amount,
        body_hash(CUSTOMER, RESERVATION, amount, token),
    )


class Clock:
    """The database's clock, set by the test."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Pod:
    """The use cases with everything they stand on. Each pod on one database is like a pod of its own."""

    def __init__(self, store: Store, provider: FakeProvider, clock: Clock) -> None:
        self.store = store
        self.provider = provider
        self.clock = clock
        self.background = Background()
        outbox = Outbox(persistence.outbox, messages.encode_event, source="deposit")
        self.deposits = Deposits(store, outbox, provider, self.background, LIMITS)
        self.wakes = 0
        self.deposits.on_open(self._woken)

    def _woken(self) -> None:
        self.wakes += 1

    async def create(self, deposit_id: str = "", amount: Money = THIRTY, token: str = "tok_visa") -> Deposit:
        return await self.deposits.create(an_order(deposit_id, amount, token), token)

    async def apply_instructions(self, *instructions: Instruction) -> None:
        """What a handler does with an event of reservation."""
        await self.store.write(
            lambda tx: self.deposits.apply_instructions(tx, instructions, CUSTOMER, RESERVATION)
        )

    async def reconcile(self) -> None:
        await self.deposits.reconcile()

    async def read(self, deposit_id: str) -> Deposit:
        found = await self.store.read(lambda tx: persistence.find(tx, deposit_id))
        assert found is not None
        return found

    async def envelopes(self, deposit_id: str) -> Sequence[envelope_pb2.Envelope]:
        """The events about a deposit, in order."""
        query = (
            select(persistence.outbox.c.envelope)
            .where(persistence.outbox.c.aggregate_id == deposit_id)
            .order_by(persistence.outbox.c.position)
        )
        rows = await self.store.read(lambda tx: tx.execute(query).scalars().all())
        return [envelope_pb2.Envelope.FromString(row) for row in rows]

    async def told(self, deposit_id: str) -> Sequence[str]:
        """The types of the events about a deposit, in order."""
        envelopes = await self.envelopes(deposit_id)
        versions = [envelope.aggregate_version for envelope in envelopes]
        assert versions == sorted(set(versions)), "each event has a version of its own"
        return [envelope.type.rpartition(".")[2] for envelope in envelopes]

    async def the_books_are_right(self) -> None:
        """The ledger sums to zero, by movement and in all, and agrees with deposits and provider."""
        entries = persistence.ledger_entries
        by_movement = select(entries.c.movement_id).group_by(entries.c.movement_id)
        wrong = await self.store.read(
            lambda tx: tx.execute(by_movement.having(func.sum(entries.c.amount_minor) != 0)).all()
        )
        assert not wrong
        ids = await self.store.read(
            lambda tx: tx.execute(select(persistence.deposits.c.deposit_id)).scalars().all()
        )
        for deposit_id in ids:
            deposit = await self.read(deposit_id)
            balances = await self.store.read(
                lambda tx, one=deposit_id: persistence.ledger_balances(tx, one)  # type: ignore[misc]
            )
            assert sum(balances.values()) == 0
            assert balances == {
                Account.PROVIDER_CLEARING: deposit.captured - deposit.refunded,
                Account.CUSTOMER_DEPOSITS: -deposit.held,
                Account.REFUNDS_PAYABLE: -deposit.refunding,
                Account.REFUNDS_FAILED: -deposit.refund_failed,
                Account.FORFEITURE_INCOME: -deposit.forfeited,
            }
            if not deposit.is_open:
                assert deposit.captured == self.provider.charged(deposit_id)
                assert deposit.refunded == self.provider.returned(deposit_id)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> str:
    return fresh_database("deposit_svc")


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    store = Store.open(database_url, clock=lambda _: clock.now)
    yield store
    await store.close()


@pytest.fixture
async def second_store(database_url: str, clock: Clock, store: Store) -> AsyncIterator[Store]:
    """Another pod's way to the same database (on SQLite without the lock that forbids it)."""
    other = Store.open(database_url, clock=lambda _: clock.now, exclusive=False)
    yield other
    await other.close()


@pytest.fixture
async def pod(store: Store, clock: Clock) -> AsyncIterator[Pod]:
    pod = Pod(store, FakeProvider(), clock)
    yield pod
    await pod.background.drain(5)
    await pod.the_books_are_right()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """The sandbox as a process of its own."""
    part = sandbox_part(tmp_path_factory.mktemp("sandbox"))
    part.start()
    yield part
    part.stop()


@pytest.fixture
async def stub(sandbox: Part) -> AsyncIterator[SandboxServiceAsyncStub]:
    async with sandbox_stub(sandbox) as made:
        yield made
