"""A reservation service without its doors: real use cases on a real database, deposit in memory, a set
clock."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from reservation_svc import messages
from reservation_svc.domain import (
    Acceptance,
    BookingSnapshot,
    BookingState,
    Caller,
    Change,
    DepositSnapshot,
    Order,
    Policy,
    RequestedChange,
    Reservation,
    Restaurant,
    Rules,
    SlotSnapshot,
)
from reservation_svc.persistence import reservations, seat_inventory, tables
from reservation_svc.usecases import cancel, event_handlers, modify, read, reserve
from reservation_svc.usecases.admission import Admission
from reservation_svc.usecases.bulkhead import Bulkhead
from reservation_svc.usecases.cancel import Cancelled
from reservation_svc.usecases.circuit_breaker import Thresholds
from reservation_svc.usecases.context import Limits, ReservationContext
from reservation_svc.usecases.reconcile import reconcile
from tests.reservation.fakes import FakeDeposits
from tests.support.postgres import FreshDatabase

ALICE = "alice"
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DINNER = datetime(2030, 1, 10, 19, tzinfo=UTC)
LATER = DINNER + timedelta(hours=1)
RULES = Rules(
    attempt=timedelta(seconds=10),
    hold=timedelta(minutes=2),
    unmarked=timedelta(hours=24),
    horizon=timedelta(days=366),
)
LIMITS = Limits(deposit_deadline=4, least=0.5, margin=0.15, retry_after=2, record=5, queue=1)
POLICY = Policy(
    deposit_per_person=1000,
    currency="EUR",
    free_cancel_window_seconds=86_400,
    acceptance=Acceptance.MANUAL,
    acceptance_limit_seconds=3600,
    acceptance_lead_seconds=600,
    no_show_grace_seconds=900,
    slot_interval_seconds=1800,
    service_duration_seconds=7200,
    max_party_size=12,
)
RESTAURANT = Restaurant("5f8f0c5a-3f6e-4f6e-9a43-000000000001", "Europe/Berlin", POLICY)


def new_id() -> str:
    return str(uuid.uuid4())


class Clock:
    """The database's clock, set by the test."""

    def __init__(self) -> None:
        self.now = NOW

    def set(self, now: datetime) -> None:
        self.now = now

    def pass_by(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class Pod:
    """The use cases with everything they stand on. Each pod on one database is like a process of its own."""

    def __init__(self, store: Store, deposits: FakeDeposits, clock: Clock, *, places: int = 100) -> None:
        self.store = store
        self.deposits = deposits
        self.clock = clock
        self.bulkhead = Bulkhead(places=places, queue_limit=10, per_customer=RULES.attempts)
        self.admission = Admission(
            self.bulkhead,
            thresholds=Thresholds(failures=3),
            rest_seconds=0.05,
            longest_rest_seconds=0.2,
            is_healthy=deposits.is_healthy,
        )
        self.told: list[str] = []
        self.ctx = ReservationContext(
            store=store,
            outbox=Outbox(tables.outbox, messages.encode_event, source="reservation"),
            deposits=deposits,
            admission=self.admission,
            background=Background(),
            rules=RULES,
            limits=LIMITS,
            tell=self.told.append,
        )

    # A customer.

    async def reserve(
        self,
        party: int = 2,
        *,
        card: str = "tok_visa",
        request_id: str = "",
        customer: str = ALICE,
        at: datetime = DINNER,
        note: str = "",
        restaurant_id: str = RESTAURANT.restaurant_id,
        shown: Policy = POLICY,
    ) -> Reservation:
        body = f"{restaurant_id}/{at}/{party}/{shown.etag}/{card}/{note}"
        order = Order(
            customer, request_id or new_id(), restaurant_id, at, party, shown.etag, note, card, body
        )
        return await reserve.reserve(self.ctx, order)

    async def book(self, party: int = 2, **wish: object) -> Reservation:
        """Reserved and accepted."""
        placed = await self.reserve(party, **wish)  # type: ignore[arg-type]
        await self.hear_booking(placed, BookingState.ACCEPTED)
        return await self.see(placed)

    async def modify(
        self,
        reservation: Reservation,
        *,
        party: int | None = None,
        at: datetime | None = None,
        note: str | None = None,
        card: str = "tok_visa",
        request_id: str = "",
        etag: str = "",
        customer: str = "",
    ) -> Reservation:
        change = Change(
            customer or reservation.customer_id,
            request_id or new_id(),
            reservation.reservation_id,
            etag or reservation.etag,
            RequestedChange(at, party, note),
            card,
            f"{reservation.reservation_id}/{party}/{at}/{note}/{card}",
        )
        return await modify.modify(self.ctx, change)

    async def cancel(self, reservation: Reservation, who: Caller | None = None) -> Cancelled:
        person = who or Caller(customer_id=reservation.customer_id)
        return await cancel.cancel(self.ctx, reservation.reservation_id, person)

    # The other services, and the clock.

    async def hear_booking(self, reservation: Reservation, state: BookingState, *, revision: int = 0) -> None:
        news = BookingSnapshot(state, revision or reservation.terms.revision)
        await self.store.write(
            lambda tx: event_handlers.on_booking(self.ctx, tx, reservation.reservation_id, news)
        )

    async def on_deposit(self, reservation: Reservation, news: DepositSnapshot) -> None:
        await self.store.write(
            lambda tx: event_handlers.on_deposit(self.ctx, tx, reservation.reservation_id, news)
        )

    async def open_slots(self, *capacities: tuple[datetime, int], version: int = 1) -> None:
        slots = [SlotSnapshot(at, capacity, version) for at, capacity in capacities]
        await self.store.write(lambda tx: event_handlers.on_slots(tx, RESTAURANT.restaurant_id, slots))

    async def reconcile(self) -> None:
        await reconcile(self.ctx)

    # What a test looks at.

    async def see(self, reservation: Reservation) -> Reservation:
        found = await self.store.read(lambda tx: reservations.find(tx, reservation.reservation_id))
        assert found is not None
        return found

    async def mine(self, customer: str = ALICE) -> Sequence[Reservation]:
        found, _ = await read.page(self.ctx, customer, None, 1000)
        return found

    async def sold(self, at: datetime = DINNER) -> int:
        slot = await self.store.read(lambda tx: seat_inventory.slot(tx, RESTAURANT.restaurant_id, at))
        assert slot is not None
        return slot.sold

    async def capacity(self, at: datetime) -> int | None:
        """Of a slot that is known."""
        slot = await self.store.read(lambda tx: seat_inventory.slot(tx, RESTAURANT.restaurant_id, at))
        return None if slot is None else slot.capacity

    async def events(self, reservation: Reservation) -> Sequence[str]:
        """The types of the events about it, in order."""
        query = (
            select(tables.outbox.c.envelope)
            .where(tables.outbox.c.aggregate_id == reservation.reservation_id)
            .order_by(tables.outbox.c.position)
        )
        rows = await self.store.read(lambda tx: tx.execute(query).scalars().all())
        envelopes = [envelope_pb2.Envelope.FromString(row) for row in rows]
        versions = [envelope.aggregate_version for envelope in envelopes]
        assert versions == sorted(set(versions)), "each event has a version of its own"
        return [envelope.type.rpartition(".")[2].removeprefix("Reservation") for envelope in envelopes]

    async def the_books_are_right(self) -> None:
        """Seats sold = seats of reservations; what deposit charged is held by a live one or ordered to go."""
        ids = await self.store.read(
            lambda tx: tx.execute(select(tables.reservations.c.reservation_id)).scalars().all()
        )
        seats: Counter[datetime] = Counter()
        kept: dict[str, int] = {}
        for one in ids:
            found = await self.store.read(lambda tx, key=one: reservations.find(tx, key))  # type: ignore[misc]
            assert found is not None
            seats.update(found.seats)
            for line in found.deposits:
                assert 0 <= found.held[line.deposit_id] <= line.amount
                kept[line.deposit_id] = found.held[line.deposit_id]
        slots = await self.store.read(
            lambda tx: tx.execute(select(tables.slots.c.dine_time, tables.slots.c.sold)).all()
        )
        assert {row.dine_time: row.sold for row in slots if row.sold} == dict(seats)
        for deposit_id, held in kept.items():
            assert held == 0 or self.deposits.charged[deposit_id] >= held


def with_time_left(seconds: float) -> None:
    """Gives the current task a caller with a deadline."""
    call.current.set(dataclasses.replace(call.current.get(), deadline=time.monotonic() + seconds))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deposits() -> FakeDeposits:
    return FakeDeposits()


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> str:
    return fresh_database("reservation_svc")


OpenPod = Callable[..., Pod]


@pytest.fixture
async def open_pod(database_url: str, clock: Clock, deposits: FakeDeposits) -> AsyncIterator[OpenPod]:
    """Opens pods on the same database; on SQLite they share the one store."""
    stores: list[Store] = []
    pods: list[Pod] = []

    def open_one(*, places: int = 100) -> Pod:
        if not stores or not database_url.startswith("sqlite"):
            stores.append(Store.open(database_url, clock=lambda _: clock.now))
        pods.append(Pod(stores[-1], deposits, clock, places=places))
        return pods[-1]

    yield open_one
    for pod in pods:
        await pod.ctx.background.drain(5)
    if pods:
        await pods[0].the_books_are_right()
    for store in stores:
        await store.close()


@pytest.fixture
async def pod(open_pod: OpenPod) -> Pod:
    """A pod that knows the restaurant, with ten seats at dinner and ten an hour later."""
    pod = open_pod()
    await pod.store.write(lambda tx: event_handlers.on_restaurant(tx, RESTAURANT))
    await pod.open_slots((DINNER, 10), (LATER, 10))
    return pod
