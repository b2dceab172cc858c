"""The whole mesh without its network: four services, a provider, and between them whatever a machine lets
through, and when."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from unittest import mock
from uuid import UUID

from sqlalchemy import text

from deposit_svc import domain as deposits
from deposit_svc import persistence as deposit_persistence
from deposit_svc.provider import Charged
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from operations import snapshot
from operations.audit import judge
from operations.limits import Limits
from operations.report import Report
from operations.rows import Charge as ProviderCharge
from operations.rows import ProviderRefund
from operations.snapshot import Sources
from reservation_svc.domain import (
    Caller,
    Captured,
    Change,
    Charge,
    Declined,
    DepositOutcome,
    NotCharged,
    Order,
    RequestedChange,
    Reservation,
    State,
    Unknown,
    Voided,
)
from reservation_svc.persistence import reservations
from reservation_svc.usecases import modify, reserve
from reservation_svc.usecases.cancel import cancel
from restaurant_svc import domain as restaurants
from restaurant_svc import persistence as restaurant_persistence
from tests.history import stories
from tests.machines.bus import Bus, Event
from tests.machines.database import database, empty
from tests.machines.process import Process, Time
from tests.machines.provider import Provider
from tests.machines.services import DepositService, HistoryService, Reservations, RestaurantService

PACKAGES = ("reservation_svc", "deposit_svc", "restaurant_svc", "history_svc")
CAPACITY = 6
MOST_ROUNDS = 30
"""A story takes a handful until nobody has anything more to say."""
DAYS = (date(2030, 1, 3), date(2030, 1, 20))
SLOTS = (
    datetime(2030, 1, 3, 18, tzinfo=UTC),
    datetime(2030, 1, 3, 19, tzinfo=UTC),
    datetime(2030, 1, 20, 18, tzinfo=UTC),
)
"""Two that compete, and one that is still to come when they are over. 18:00 UTC is 19:00 there."""
CUSTOMERS = ("alice", "bob")
POLICY = restaurants.Policy(
    deposit_per_person=1000,
    currency="EUR",
    free_cancel_window_seconds=86_400,
    acceptance=restaurants.Acceptance.AUTO,
    acceptance_limit_seconds=3600,
    acceptance_lead_seconds=600,
    no_show_grace_seconds=900,
    slot_interval_seconds=1800,
    service_duration_seconds=7200,
    max_party_size=12,
)
STAFF = {
    "accept": restaurants.BookingState.ACCEPTED,
    "decline": restaurants.BookingState.DECLINED,
    "seat": restaurants.BookingState.SEATED,
    "mark_no_show": restaurants.BookingState.NO_SHOW,
    "complete": restaurants.BookingState.COMPLETED,
}
"""What staff can do with a booking, and the state that it then has."""


@contextmanager
def repeatable_ids(first: int = 1000) -> Iterator[None]:
    """The same ids at every run of the same choices, so that a failure can be found again and made small."""
    numbers = count(first)
    with mock.patch("uuid.uuid4", lambda: UUID(int=Random(next(numbers)).getrandbits(128), version=4)):
        yield


@dataclass(eq=False)
class Question:
    """One CreateDeposit on its way; deposit may hear of it when nobody waits for the answer any more."""

    charge: Charge
    reply: asyncio.Future[DepositOutcome] = field(repr=False)
    handling: asyncio.Task[deposits.Deposit] | None = None

    def outcome(self) -> DepositOutcome:
        """What the client of deposit makes of the answer."""
        if self.handling is None or not self.handling.done() or self.handling.cancelled():
            return Unknown("connection lost")
        error = self.handling.exception()
        if error is None:
            return Captured()
        match error.reason if isinstance(error, Refusal) else "":
            case "CARD_DECLINED":
                return Declined("card_declined")
            case "DEPOSIT_VOIDED":
                return Voided()
            case "DEPOSIT_OVERLOADED":
                return NotCharged(1.0)
        return Unknown(repr(error))


class Wire:
    """The way from reservation to deposit."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.is_up = True

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        question = Question(charge, asyncio.get_running_loop().create_future())
        self.questions.append(question)
        try:
            async with asyncio.timeout(timeout):
                return await question.reply
        except TimeoutError:
            return Unknown("deadline")
        finally:
            if question.handling is not None:
                question.handling.cancel()  # as gRPC does when nobody waits any more

    async def is_healthy(self) -> bool:
        return self.is_up


@dataclass(eq=False)
class Request:
    """A customer's request id, and all that was answered to it."""

    order: Order
    calls: list[asyncio.Task[Reservation]] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


class World:
    """`Machine` lets it live; `come_to_rest` lets everybody finish."""

    def __init__(self) -> None:
        contents, events, self.restaurant_ids = furnished()
        for package, what in contents.items():
            database(package).load(what)
        self._start()
        self.bus.events += events
        self._delivered |= {(index, queue) for index in range(len(events)) for queue in self.queues}
        self._delivered_by_rule |= self._delivered

    def _start(self) -> None:
        self.time = Time()
        self.provider = Provider()
        self.wire = Wire()
        self.bus = Bus()
        self.requests: list[Request] = []
        self.processes: dict[str, Process] = {}
        self._delivered: set[tuple[int, str]] = set()
        self._delivered_by_rule: set[tuple[int, str]] = set()
        for package in PACKAGES:
            self.start(package)

    def start(self, package: str) -> None:
        """A process of the service, in place of one that died."""
        match package:
            case "reservation_svc":
                self.reservation = Reservations(self.time, self.wire)
                self.processes[package] = self.reservation
            case "deposit_svc":
                self.deposit = DepositService(self.time, self.provider)
                self.processes[package] = self.deposit
            case "restaurant_svc":
                self.restaurant = RestaurantService(self.time)
                self.processes[package] = self.restaurant
            case "history_svc":
                self.history = HistoryService(self.time)
                self.processes[package] = self.history
        self.wire.is_up = True

    def close(self) -> None:
        self.time.close()

    @property
    def queues(self) -> dict[str, tuple[Process, Inbox]]:
        return {
            queue: (process, inbox)
            for process in (self.reservation, self.deposit, self.restaurant, self.history)
            for queue, inbox in process.inboxes.items()
        }

    # Customers.

    def reserve(
        self, customer: str, party: int, at: datetime, restaurant_id: str, token: str, request_id: str
    ) -> Request:
        # The request id is the note too: by it we know the attempts of a request apart.
        shown = self.policy_of(restaurant_id).etag
        body = f"{restaurant_id}/{at}/{party}/{shown}/{token}"
        order = Order(customer, request_id, restaurant_id, at, party, shown, request_id, token, body)
        request = Request(order)
        self.requests.append(request)
        self.ask(request, order)
        return request

    def ask(self, request: Request, order: Order) -> asyncio.Task[Reservation]:
        if self.reservation.is_dead:
            self.start("reservation_svc")
        call = self.reservation.begin(reserve.reserve(self.reservation.ctx, order))
        request.calls.append(call)
        return call

    def modify(self, current: Reservation, wish: RequestedChange, token: str, request_id: str) -> None:
        body = f"{current.reservation_id}/{wish}/{token}"
        change = Change(
            current.customer_id, request_id, current.reservation_id, current.etag, wish, token, body
        )
        self.reservation.begin(modify.modify(self.reservation.ctx, change))

    def cancel(self, current: Reservation, *, by_restaurant: bool) -> None:
        who = Caller(restaurant_id=current.restaurant_id) if by_restaurant else Caller(current.customer_id)
        self.reservation.begin(cancel(self.reservation.ctx, current.reservation_id, who))

    def hear_answers(self) -> None:
        """One request id: the same answer again, and at most one reservation."""
        for request in self.requests:
            for call in [one for one in request.calls if one.done()]:
                request.calls.remove(call)
                if call.cancelled():
                    continue
                error = call.exception()
                if error is None:
                    answer = call.result()
                    assert answer.state not in (State.PENDING_DEPOSIT, State.FAILED), answer.state
                    request.reserved.add(answer.reservation_id)
                elif isinstance(error, Refusal):
                    request.refused.add(error.reason)
            assert len(request.reserved) <= 1, "one request id, two reservations"
            assert not (request.reserved and "CARD_DECLINED" in request.refused), "two final answers"

    # Deposit and its provider.

    def hears(self, question: Question) -> None:
        charge = question.charge
        amount = deposits.Money(charge.amount, charge.currency)
        body = deposits.body_hash(charge.customer_id, charge.reservation_id, amount, charge.payment_token)
        order = deposits.Order(charge.deposit_id, charge.customer_id, charge.reservation_id, amount, body)
        question.handling = self.deposit.begin(self.deposit.deposits.create(order, charge.payment_token))

    def answer(self, question: Question, *, lost: bool) -> None:
        if question.handling is not None or not lost:
            self.wire.questions.remove(question)
        if not question.reply.done():
            question.reply.set_result(Unknown("lost") if lost else question.outcome())
        self.run()

    def retry_failed_refunds(self) -> None:
        """What an operator does."""
        for deposit in self.deposits_now():
            for refund in deposit.refunds:
                if refund.state is deposits.RefundState.FAILED:
                    work = self.deposit.deposits.retry_refund(deposit.deposit_id, refund.refund_id)
                    self.deposit.do(work)

    # Staff.

    def staff(self, booking: restaurants.Booking, verb: str, revision: int) -> None:
        call = getattr(self.restaurant.restaurants, verb)
        self.restaurant.begin(call(booking.restaurant_id, booking.reservation_id, revision))

    def policy_of(self, restaurant_id: str) -> restaurants.Policy:
        """As GetRestaurant shows it, which may be ahead of what reservation has heard."""
        return self._restaurant(restaurant_id).policy

    def _restaurant(self, restaurant_id: str) -> restaurants.Restaurant:
        store = self.restaurant.store
        found = store.look(lambda tx: restaurant_persistence.restaurant(tx, restaurant_id))
        assert found is not None
        return found

    def change_policy(self, restaurant_id: str, per_person: int, window: int) -> None:
        now = self._restaurant(restaurant_id)
        policy = replace(now.policy, deposit_per_person=per_person, free_cancel_window_seconds=window)
        self.restaurant.begin(
            self.restaurant.restaurants.update(restaurant_id, now.etag, name=None, policy=policy)
        )

    def set_capacity(self, restaurant_id: str, capacity: int) -> None:
        for day in DAYS:
            span = restaurants.Span(day, day, (time(19), time(20)))
            self.restaurant.begin(self.restaurant.restaurants.open_slots(restaurant_id, span, capacity))

    # Everybody.

    def run(self, seconds: float = 0.0) -> None:
        """Until everybody waits."""
        self.time.loop.run(seconds)
        for process in self.processes.values():
            process.check()

    def deliver(self, index: int, queue: str) -> None:
        process, inbox = self.queues[queue]
        self.bus.deliver(self.bus.events[index], process, queue, inbox)

    def deliver_if_new(self, index: int, queue: str) -> None:
        if (index, queue) not in self._delivered_by_rule:
            self._delivered_by_rule.add((index, queue))
            self.deliver(index, queue)

    def collect(self) -> None:
        for package in ("reservation_svc", "deposit_svc", "restaurant_svc"):
            self.bus.collect(self.processes[package])

    def revive(self) -> None:
        for package, process in self.processes.items():
            process.store.faults.clear()
            if process.is_dead:
                self.start(package)

    def come_to_rest(self, *, backwards: bool) -> None:
        """Everybody is well again and finishes; nobody asks for anything new."""
        self.revive()
        self.provider.is_well_again()
        self.wire.questions.clear()
        self.run(10)  # who waits for an answer gets none
        for _ in range(MOST_ROUNDS):
            self.retry_failed_refunds()
            quiet = not self._deliver_what_waits(backwards=backwards)
            for pause in (0, 31):
                self.run(pause)
                self.reservation.reconcile()
                self.deposit.reconcile()
                self.collect()
                quiet = quiet and not self._waiting()
            if quiet:
                return
        raise AssertionError("it never comes to rest: each event is answered by another one")

    def _waiting(self) -> Sequence[tuple[int, str]]:
        every = (
            (index, queue)
            for index, event in enumerate(self.bus.events)
            for queue in self.bus.listeners(event)
        )
        return [one for one in every if one not in self._delivered]

    def _deliver_what_waits(self, *, backwards: bool) -> bool:
        self.collect()
        waiting = self._waiting()
        for index, queue in reversed(waiting) if backwards else waiting:
            self.deliver(index, queue)
            self._delivered.add((index, queue))
        return bool(waiting)

    def all_meals_pass(self) -> None:
        """And a day and more after each of them."""
        last = SLOTS[-1] + timedelta(days=3)
        self.run(max((last - self.time.now).total_seconds(), 0))
        self.come_to_rest(backwards=False)

    def replay(self) -> None:
        """Every event again, with inboxes that have forgotten what is old: a second time it has no effect."""
        before = len(self.bus.events)
        for service in (self.reservation, self.deposit, self.restaurant, self.history):
            service.do(service.store.write(lambda tx: tx.execute(text("DELETE FROM inbox"))))
        for index, event in enumerate(self.bus.events):
            for queue in self.bus.listeners(event):
                self.deliver(index, queue)
        self.collect()
        assert len(self.bus.events) == before, "a duplicate had an effect"

    def rebuild_history(self, *, backwards: bool) -> None:
        """The view emptied, and every event read again."""
        queue = "history.timeline"
        self.history.do(self.history.store.write(lambda tx: stories.empty(tx, queue)))
        indices = range(len(self.bus.events))
        for index in reversed(indices) if backwards else indices:
            self.deliver(index, queue)

    # What there is.

    def reservations_now(self) -> Sequence[Reservation]:
        def query(tx: Transaction) -> list[Reservation]:
            ids = tx.execute(text("SELECT reservation_id FROM reservations ORDER BY rowid")).scalars().all()
            return [one for key in ids if (one := reservations.find(tx, key)) is not None]

        return self.reservation.store.look(query)

    def deposits_now(self) -> Sequence[deposits.Deposit]:
        def query(tx: Transaction) -> list[deposits.Deposit]:
            ids = tx.execute(text("SELECT deposit_id FROM deposits ORDER BY rowid")).scalars().all()
            return [one for key in ids if (one := deposit_persistence.find(tx, key)) is not None]

        return self.deposit.store.look(query)

    def bookings_now(self) -> Sequence[restaurants.Booking]:
        def query(tx: Transaction) -> list[restaurants.Booking]:
            ids = tx.execute(text("SELECT reservation_id FROM bookings ORDER BY rowid")).scalars().all()
            return [one for key in ids if (one := restaurant_persistence.booking(tx, key)) is not None]

        return self.restaurant.store.look(query)

    def audit(self) -> Report:
        """The operators' own audit of these books."""
        with tempfile.TemporaryDirectory() as folder:
            urls: dict[str, str] = {}
            for package in PACKAGES:
                path = Path(folder) / f"{package}.db"
                database(package).save(path)
                urls[package] = f"sqlite:///{path}"
            sources = Sources(
                urls["reservation_svc"], urls["deposit_svc"], urls["restaurant_svc"], urls["history_svc"]
            )
            seen = asyncio.run(snapshot.take(sources))
        seen = replace(seen, now=self.time.now, charges=self._charges())
        return judge(seen, replace(sources, provider="ours"), Limits())

    def _charges(self) -> list[ProviderCharge]:
        return [
            ProviderCharge(
                key,
                "CAPTURED" if outcome == Charged() else type(outcome).__name__.upper(),
                amount.minor,
                amount.currency,
                tuple(
                    ProviderRefund(refund_key, back.minor, type(answer).__name__ == "Returned")
                    for refund_key, (of, back, answer) in self.provider.refunds.items()
                    if of == key
                ),
            )
            for key, (amount, outcome) in self.provider.charges.items()
        ]

    def picture_of_history(self) -> object:
        task = self.history.do(self.history.timeline.digest())
        return task.result()


@cache
def furnished() -> tuple[dict[str, sqlite3.Connection], list[Event], tuple[str, str]]:
    """Two restaurants with two slots each, one that accepts by itself and one that asks; known to all."""
    for package in PACKAGES:
        database(package).load(empty(package))
    world = World.__new__(World)
    world._start()
    ids = []
    for number, mode in enumerate(restaurants.Acceptance):
        policy = replace(POLICY, acceptance=mode)
        work = world.restaurant.restaurants.create(
            "operator", str(UUID(int=number)), mode.value, "Europe/Berlin", policy
        )
        with repeatable_ids(first=number):
            ids.append(world.restaurant.do(work).result().restaurant_id)
        world.set_capacity(ids[-1], CAPACITY)
    world._deliver_what_waits(backwards=False)
    contents = {package: database(package).copy() for package in PACKAGES}
    world.close()
    return contents, world.bus.events, (ids[0], ids[1])
