"""Values and doors that several tests of the restaurant service use."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import select

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.quota import Quota
from dinemesh.kit.store import Store, Transaction
from dinemesh.restaurant.v1 import events_pb2
from restaurant_svc import messages, persistence
from restaurant_svc.domain import (
    Acceptance,
    Booking,
    Policy,
    ReservationSnapshot,
    ReservationState,
    Span,
    Terms,
)
from restaurant_svc.usecases import Restaurants

POLICY = Policy(
    deposit_per_person=1000,
    currency="EUR",
    free_cancel_window_seconds=86_400,
    acceptance=Acceptance.AUTO,
    acceptance_limit_seconds=3600,
    acceptance_lead_seconds=0,
    no_show_grace_seconds=900,
    slot_interval_seconds=900,
    service_duration_seconds=7200,
    max_party_size=20,
)

_EVENTS = {
    kind.DESCRIPTOR.full_name: kind
    for kind in vars(events_pb2).values()
    if isinstance(kind, type) and issubclass(kind, Message)
}


def service(
    store: Store, changed: Callable[[str], None] = lambda _: None, quota: Quota | None = None
) -> Restaurants:
    """Without a limit on what one restaurant may change."""
    outbox = Outbox(persistence.outbox, messages.encode_event, "restaurant")
    return Restaurants(store, outbox, changed, quota or Quota(at_once=10_000, per_second=1e9, burst=1e9))


def new_id() -> str:
    return str(uuid.uuid4())


def in_days(days: int) -> date:
    return datetime.now(UTC).date() + timedelta(days=days)


def evening(days: int = 3, *times: time, last: int | None = None) -> Span:
    """The local day in so many days, at 18:00 and 19:00 if no time is given."""
    return Span(in_days(days), in_days(days if last is None else last), times or (time(18), time(19)))


async def told(store: Store) -> list[tuple[envelope_pb2.Envelope, Any]]:
    """What stands in the outbox, in order: envelope and event."""

    def query(tx: Transaction) -> list[bytes]:
        table = persistence.outbox
        return list(tx.execute(select(table.c.envelope).order_by(table.c.position)).scalars())

    envelopes = [envelope_pb2.Envelope.FromString(one) for one in await store.read(query)]
    return [(one, _EVENTS[one.type].FromString(one.payload)) for one in envelopes]


async def told_types(store: Store) -> list[str]:
    return [envelope.type.rpartition(".")[2] for envelope, _ in await told(store)]


def reservation(
    version: int,
    state: ReservationState,
    *,
    revision: int = 1,
    reservation_id: str,
    restaurant_id: str,
    acceptance: Acceptance = Acceptance.AUTO,
    dine_in: timedelta = timedelta(hours=1),
    accept_in: timedelta = timedelta(minutes=30),
) -> ReservationSnapshot:
    """What an event of a reservation says; times are counted from now."""
    now = datetime.now(UTC).replace(microsecond=0)
    return ReservationSnapshot(
        reservation_id=reservation_id,
        restaurant_id=restaurant_id,
        customer_id="alice",
        version=version,
        state=state,
        terms=Terms(
            revision=revision,
            dine_time=now + dine_in + timedelta(minutes=revision),
            party_size=1 + revision,
            acceptance=acceptance,
            accept_deadline=now + accept_in,
            no_show_grace=timedelta(minutes=15),
            service=timedelta(hours=2),
        ),
    )


async def tell(store: Store, restaurants: Restaurants, *events: ReservationSnapshot) -> None:
    """Hands events in as the inbox does, each in a transaction of its own."""
    for event in events:
        await store.write(partial(restaurants.on_reservation, snapshot=event))


async def booking(store: Store, reservation_id: str) -> Booking:
    found = await store.read(lambda tx: persistence.booking(tx, reservation_id))
    assert found is not None
    return found


def without_times(value: Booking) -> Booking:
    """The booking without what depends on when and how often it heard something."""
    return replace(value, version=0, create_time=value.terms.dine_time, update_time=value.terms.dine_time)
