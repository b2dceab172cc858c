"""Reservation's use cases without a server in front of them, and with no limit in the way."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from dinemesh.kit.workers import Background
from reservation_svc import messages
from reservation_svc.domain import Rules
from reservation_svc.persistence import tables
from reservation_svc.usecases.admission import Admission
from reservation_svc.usecases.bulkhead import Bulkhead
from reservation_svc.usecases.circuit_breaker import Thresholds
from reservation_svc.usecases.context import Deposits, Limits, ReservationContext

_MANY = 100_000


class HealthyDeposits(Deposits, Protocol):
    """The way to a deposit_svc that can be asked how it is."""

    async def is_healthy(self) -> bool: ...


def open_context(store: Store, deposits: HealthyDeposits, background: Background) -> ReservationContext:
    """What every use case stands at, over a store that has reservation's schema."""
    return ReservationContext(
        store=store,
        outbox=Outbox(tables.outbox, messages.encode_event, source="reservation"),
        deposits=deposits,
        admission=Admission(
            Bulkhead(places=_MANY, queue_limit=_MANY, per_customer=_MANY),
            thresholds=Thresholds(),
            rest_seconds=1,
            longest_rest_seconds=8,
            is_healthy=deposits.is_healthy,
        ),
        background=background,
        rules=Rules(timedelta(seconds=10), timedelta(minutes=2), timedelta(hours=24), timedelta(days=366)),
        limits=Limits(deposit_deadline=4, least=0.5, margin=0.15, retry_after=2, record=10, queue=1),
        tell=lambda _: None,
    )
