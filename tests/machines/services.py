"""The four services as processes of a machine, each built of its real parts as its `main` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from deposit_svc import handlers as deposit_handlers
from deposit_svc import messages as deposit_messages
from deposit_svc import persistence as deposit_persistence
from deposit_svc import usecases as deposit_usecases
from deposit_svc.provider import Provider
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.quota import Quota
from history_svc import handlers as history_handlers
from history_svc import persistence as history_persistence
from history_svc.usecases import Timeline
from reservation_svc import handlers as reservation_handlers
from reservation_svc import messages as reservation_messages
from reservation_svc.domain import Rules
from reservation_svc.persistence import tables as reservation_tables
from reservation_svc.usecases.admission import Admission
from reservation_svc.usecases.bulkhead import Bulkhead
from reservation_svc.usecases.circuit_breaker import Thresholds
from reservation_svc.usecases.context import Deposits, Limits, ReservationContext
from reservation_svc.usecases.reconcile import reconcile
from restaurant_svc import handlers as restaurant_handlers
from restaurant_svc import messages as restaurant_messages
from restaurant_svc import persistence as restaurant_persistence
from restaurant_svc.usecases import Restaurants
from tests.machines.process import Process, Time

RULES = Rules(
    attempt=timedelta(seconds=10),
    hold=timedelta(minutes=2),
    unmarked=timedelta(hours=24),
    horizon=timedelta(days=366),
    # Few customers do much here; how much each may is shown in tests/reservation/test_admission.py.
    attempts=1000,
    held_seats=1000,
    unpaid_free=1000,
    # Low, so that a machine gets there.
    priced_modifications=2,
    changes_of_terms=4,
)
LIMITS = Limits(deposit_deadline=4, least=0.5, margin=0.15, retry_after=2, record=10, queue=4)
DEPOSIT_LIMITS = deposit_usecases.Limits(
    charges_in_flight=2, charge_timeout_seconds=3, pending_settle_seconds=12, settle_lease_seconds=15
)
BREAKER_THRESHOLD = 3


class DepositClient(Deposits, Protocol):
    async def is_healthy(self) -> bool: ...


class Reservations(Process):
    def __init__(self, time: Time, deposits: DepositClient) -> None:
        super().__init__(time, "reservation_svc")
        self.admission = Admission(
            Bulkhead(places=200, queue_limit=0, per_customer=RULES.attempts),
            thresholds=Thresholds(failures=BREAKER_THRESHOLD, customers=1),
            rest_seconds=0,  # it rests by the real clock
            longest_rest_seconds=0,
            is_healthy=deposits.is_healthy,
        )
        self.work(self.admission.run())
        self.ctx = ReservationContext(
            store=self.store,
            outbox=Outbox(reservation_tables.outbox, reservation_messages.encode_event, source="reservation"),
            deposits=deposits,
            admission=self.admission,
            background=self.background,
            rules=RULES,
            limits=LIMITS,
            tell=lambda _: None,
        )
        self.inboxes: Mapping[str, Inbox] = {
            one.queue: Inbox(self.store, reservation_tables.inbox, one)
            for one in (
                reservation_handlers.restaurants(self.ctx),
                reservation_handlers.deposits(self.ctx),
            )
        }

    def reconcile(self) -> None:
        self.do(reconcile(self.ctx))


class DepositService(Process):
    def __init__(self, time: Time, provider: Provider) -> None:
        super().__init__(time, "deposit_svc")
        outbox = Outbox(deposit_persistence.outbox, deposit_messages.encode_event, source="deposit")
        self.deposits = deposit_usecases.Deposits(
            self.store, outbox, provider, self.background, DEPOSIT_LIMITS
        )
        subscription = deposit_handlers.subscription(self.deposits)
        inbox = Inbox(self.store, deposit_persistence.inbox, subscription)
        self.inboxes: Mapping[str, Inbox] = {subscription.queue: inbox}

    def reconcile(self) -> None:
        self.do(self.deposits.reconcile())


class RestaurantService(Process):
    def __init__(self, time: Time) -> None:
        super().__init__(time, "restaurant_svc")
        outbox = Outbox(restaurant_persistence.outbox, restaurant_messages.encode_event, "restaurant")
        unlimited = Quota(at_once=10_000, per_second=1e9, burst=1e9)  # it counts by the real clock
        self.restaurants = Restaurants(self.store, outbox, lambda _: None, unlimited)
        subscription = restaurant_handlers.subscription(self.restaurants)
        inbox = Inbox(self.store, restaurant_persistence.inbox, subscription)
        self.inboxes: Mapping[str, Inbox] = {subscription.queue: inbox}


class HistoryService(Process):
    def __init__(self, time: Time) -> None:
        super().__init__(time, "history_svc")
        self.timeline = Timeline(self.store, on_arrival=lambda _: None)
        subscription = history_handlers.subscription(self.timeline)
        inbox = Inbox(self.store, history_persistence.inbox, subscription)
        self.inboxes: Mapping[str, Inbox] = {subscription.queue: inbox}
