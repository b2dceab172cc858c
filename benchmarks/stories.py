"""What becomes of a booking, one story of each kind, lived by the services' own use cases over their own
databases and the sandbox; only the network and the broker between them are left out."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData

from benchmarks.context import open_context
from deposit_svc import domain as deposit_domain
from deposit_svc import handlers as deposit_handlers
from deposit_svc import messages as deposit_messages
from deposit_svc import persistence as deposit_persistence
from deposit_svc import usecases as deposit_usecases
from deposit_svc.provider.sandbox import SandboxProvider
from deposit_svc.sandbox import records
from dinemesh.kit import call, migrate
from dinemesh.kit.canaries import matches
from dinemesh.kit.inbox import Inbox, Subscription
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.quota import Quota
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from history_svc import handlers as history_handlers
from history_svc import persistence as history_persistence
from history_svc.usecases import Timeline
from reservation_svc import handlers as reservation_handlers
from reservation_svc.domain import (
    Caller,
    Captured,
    Change,
    Charge,
    Declined,
    DepositOutcome,
    Order,
    RequestedChange,
    Reservation,
)
from reservation_svc.persistence import tables as reservation_tables
from reservation_svc.usecases import cancel, modify, read, reserve
from reservation_svc.usecases.context import ReservationContext
from restaurant_svc import handlers as restaurant_handlers
from restaurant_svc import messages as restaurant_messages
from restaurant_svc import persistence as restaurant_persistence
from restaurant_svc.domain import Acceptance, Policy, Span
from restaurant_svc.usecases import Restaurants

SCHEMAS: Mapping[str, MetaData] = {
    "reservation": reservation_tables.metadata,
    "deposit": deposit_persistence.metadata,
    "restaurant": restaurant_persistence.metadata,
    "history": history_persistence.metadata,
    "sandbox": records.metadata,
}
POLICY = Policy(
    deposit_per_person=2000,
    currency="EUR",
    free_cancel_window_seconds=7200,
    acceptance=Acceptance.AUTO,
    acceptance_limit_seconds=3600,
    acceptance_lead_seconds=0,
    no_show_grace_seconds=0,
    slot_interval_seconds=1,
    service_duration_seconds=7200,
    max_party_size=12,
)
SOON_SECONDS = 5
"""How far ahead the meal is of those who come, or do not: long enough to book it, and no longer."""
SLOTS = 300
"""One a second, from the beginning on: each of them finds one that is soon."""
LONG_AHEAD = timedelta(days=31)
CAPACITY = 1000
_SETTLED_SECONDS = 20.0

Row = tuple[Any, ...]
Rows = Mapping[tuple[str, str], Sequence[Row]]
"""By service and table, with all columns."""


@dataclass(frozen=True)
class Story:
    """What one booking leaves behind. `share`: of a hundred bookings, how many go that way."""

    name: str
    share: int
    rows: Rows


@dataclass(frozen=True)
class Told:
    """`opening` is what a restaurant and its slots leave behind."""

    restaurant_id: str
    customer_id: str
    opening: Rows
    stories: Sequence[Story]


def files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.db" for name in SCHEMAS}


def make_schemas(folder: Path) -> None:
    """As the services make them when they start."""
    for name, path in files(folder).items():
        if name == "sandbox":
            records.create_tables(f"sqlite:///{path}")
        else:
            migrate.upgrade(f"sqlite:///{path}", f"{name}_svc")


async def told(folder: Path, sandbox_address: str) -> Told:
    """Lives them all. The databases are in `folder`, with their schemas; the sandbox has its own there."""
    async with AsyncExitStack() as stack:
        mesh = await _Mesh.opened(folder, sandbox_address, stack)
        before = _read(folder)
        await mesh.open_restaurant()
        after = _read(folder)
        opening = _new(before, after)
        stories = []
        for name, share, live in mesh.stories():
            with call.working_on(call.Call(call.new_correlation_id(), traceparent=_traceparent())):
                await live()
            await mesh.come_to_rest()
            before, after = after, _read(folder)
            stories.append(Story(name, share, _new(before, after)))
        return Told(mesh.restaurant_id, mesh.customer_id, opening, stories)


def _soon() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=SOON_SECONDS)


def _traceparent() -> str:
    return f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"


class _Deposit:
    """The service, without a hop to it."""

    def __init__(self, deposits: deposit_usecases.Deposits) -> None:
        self._deposits = deposits

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        amount = deposit_domain.Money(charge.amount, charge.currency)
        body = deposit_domain.body_hash(
            charge.customer_id, charge.reservation_id, amount, charge.payment_token
        )
        order = deposit_domain.Order(
            charge.deposit_id, charge.customer_id, charge.reservation_id, amount, body
        )
        try:
            await self._deposits.create(order, charge.payment_token)
        except Refusal as refusal:
            if refusal.reason != "CARD_DECLINED":
                raise
            return Declined("card_declined")
        return Captured()

    async def is_healthy(self) -> bool:
        return True


class _Mesh:
    """Of the four services what a booking needs."""

    def __init__(
        self,
        folder: Path,
        ctx: ReservationContext,
        deposits: deposit_usecases.Deposits,
        restaurants: Restaurants,
        listening: Sequence[tuple[Subscription, Inbox]],
    ) -> None:
        self.restaurant_id = ""
        self.customer_id = str(uuid.uuid4())
        self._folder = folder
        self._ctx = ctx
        self._deposits = deposits
        self._restaurants = restaurants
        self._listening = listening
        self._later = datetime.now(UTC)
        self._read_up_to: dict[str, int] = {}

    @classmethod
    async def opened(cls, folder: Path, sandbox_address: str, stack: AsyncExitStack) -> _Mesh:
        stores = {
            name: Store.open(f"sqlite:///{path}") for name, path in files(folder).items() if name != "sandbox"
        }
        for store in stores.values():
            stack.push_async_callback(store.close)
        provider = SandboxProvider(sandbox_address, timeout=10)
        stack.push_async_callback(provider.aclose)
        background = Background()
        deposits = deposit_usecases.Deposits(
            stores["deposit"],
            Outbox(deposit_persistence.outbox, deposit_messages.encode_event, "deposit"),
            provider,
            background,
            deposit_usecases.Limits(
                charges_in_flight=10,
                charge_timeout_seconds=10,
                pending_settle_seconds=10,
                settle_lease_seconds=10,
            ),
        )
        ctx = open_context(stores["reservation"], _Deposit(deposits), background)
        restaurants = Restaurants(
            stores["restaurant"],
            Outbox(restaurant_persistence.outbox, restaurant_messages.encode_event, "restaurant"),
            lambda _: None,
            Quota(at_once=10_000, per_second=1e9, burst=1e9),
        )
        listening = [
            (subscription, Inbox(stores[name], tables, subscription))
            for name, tables, subscription in (
                ("reservation", reservation_tables.inbox, reservation_handlers.restaurants(ctx)),
                ("reservation", reservation_tables.inbox, reservation_handlers.deposits(ctx)),
                ("deposit", deposit_persistence.inbox, deposit_handlers.subscription(deposits)),
                ("restaurant", restaurant_persistence.inbox, restaurant_handlers.subscription(restaurants)),
                (
                    "history",
                    history_persistence.inbox,
                    history_handlers.subscription(Timeline(stores["history"], lambda _: None)),
                ),
            )
        ]
        return cls(folder, ctx, deposits, restaurants, listening)

    async def open_restaurant(self) -> None:
        made = await self._restaurants.create("growth", str(uuid.uuid4()), "Growth", "UTC", POLICY)
        self.restaurant_id = made.restaurant_id
        now = datetime.now(UTC).replace(microsecond=0)
        self._later = now + LONG_AHEAD
        moments = [self._later, *(now + timedelta(seconds=number) for number in range(SLOTS))]
        for day in {moment.date() for moment in moments}:  # it may be midnight
            times = tuple(moment.time() for moment in moments if moment.date() == day)
            await self._restaurants.open_slots(self.restaurant_id, Span(day, day, times), CAPACITY)
        await self.come_to_rest()

    def stories(self) -> Sequence[tuple[str, int, Callable[[], Awaitable[object]]]]:
        """With the share of each in a hundred."""
        return (
            ("completed", 50, self._completed),
            ("cancelled too late", 4, partial(self._cancelled, soon=True)),
            ("no-show", 5, self._no_show),
            ("cancelled", 12, partial(self._cancelled, soon=False)),
            ("modified", 4, self._modified),
            ("card declined", 3, self._card_declined),
            ("confirmed", 22, self._confirmed),
        )

    async def _confirmed(self, *, soon: bool = False) -> Reservation:
        order = self._order(_soon() if soon else self._later, "tok_visa")
        booked = await reserve.reserve(self._ctx, order)
        await self.come_to_rest()
        return await read.get(self._ctx, booked.reservation_id, Caller(self.customer_id))

    async def _cancelled(self, *, soon: bool) -> None:
        booked = await self._confirmed(soon=soon)
        await cancel.cancel(self._ctx, booked.reservation_id, Caller(self.customer_id))

    async def _completed(self) -> None:
        booked = await self._confirmed(soon=True)
        for verb in (self._restaurants.seat, self._restaurants.complete):
            await verb(self.restaurant_id, booked.reservation_id, booked.terms.revision)
            await self.come_to_rest()

    async def _no_show(self) -> None:
        booked = await self._confirmed(soon=True)
        await asyncio.sleep((booked.terms.dine_time - datetime.now(UTC)).total_seconds() + 0.1)
        await self._restaurants.mark_no_show(self.restaurant_id, booked.reservation_id, booked.terms.revision)

    async def _modified(self) -> None:
        booked = await self._confirmed()
        request = RequestedChange(party_size=booked.terms.party_size + 1)
        change = Change(
            self.customer_id,
            str(uuid.uuid4()),
            booked.reservation_id,
            booked.etag,
            request,
            "tok_visa",
            uuid.uuid4().hex,
        )
        await modify.modify(self._ctx, change)

    async def _card_declined(self) -> None:
        try:
            await reserve.reserve(self._ctx, self._order(self._later, "tok_chargeDeclined"))
        except Refusal as refusal:
            if refusal.reason != "CARD_DECLINED":
                raise

    def _order(self, dine_time: datetime, card: str) -> Order:
        return Order(
            self.customer_id,
            str(uuid.uuid4()),
            self.restaurant_id,
            dine_time,
            2,
            POLICY.etag,
            "",
            card,
            uuid.uuid4().hex * 2,
        )

    async def come_to_rest(self) -> None:
        """Everybody has heard everything, and the provider has given back what it was told to."""
        async with asyncio.timeout(_SETTLED_SECONDS):
            while await self._deliver() or await self._give_back():
                pass

    async def _deliver(self) -> bool:
        heard = False
        for name in ("reservation", "deposit", "restaurant"):
            with sqlite3.connect(files(self._folder)[name], timeout=10) as database:
                rows = database.execute(
                    "SELECT position, routing_key, envelope FROM outbox WHERE position > ? ORDER BY position",
                    (self._read_up_to.get(name, 0),),
                ).fetchall()
                # As a relay leaves them.
                database.execute("UPDATE outbox SET sent_time = create_time WHERE sent_time IS NULL")
            database.close()
            for position, routing_key, envelope in rows:
                heard = True
                self._read_up_to[name] = position
                for subscription, inbox in self._listening:
                    if any(matches(pattern, routing_key) for pattern in subscription.bindings):
                        await inbox.take(inbox.decode(envelope))
        return heard

    async def _give_back(self) -> bool:
        with sqlite3.connect(files(self._folder)["deposit"], timeout=10) as database:
            (owed,) = database.execute("SELECT COUNT(*) FROM refunds WHERE state = 'PENDING'").fetchone()
        database.close()
        if owed:
            await self._deposits.reconcile()
        return bool(owed)


# The rows.


def _read(folder: Path) -> Rows:
    found: dict[tuple[str, str], Sequence[Row]] = {}
    for name, path in files(folder).items():
        with sqlite3.connect(path, timeout=10) as database:
            for table in SCHEMAS[name].sorted_tables:
                columns = ", ".join(column.name for column in table.columns)
                found[name, table.name] = database.execute(f"SELECT {columns} FROM {table.name}").fetchall()
        database.close()
    return found


def _new(before: Rows, after: Rows) -> Rows:
    """Those whose key was not there: a row that has only changed belongs to somebody else."""
    new: dict[tuple[str, str], Sequence[Row]] = {}
    for (name, table), rows in after.items():
        columns = list(SCHEMAS[name].tables[table].columns)
        key = [place for place, column in enumerate(columns) if column.primary_key]
        known = {tuple(row[place] for place in key) for row in before[name, table]}
        new[name, table] = [row for row in rows if tuple(row[place] for place in key) not in known]
    return new
