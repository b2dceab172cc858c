"""The rules of the three services against each other, without I/O: whatever fails, and in whatever order and
however often events arrive, in the end all money has gone where it belongs."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deposit_svc import domain as deposits
from deposit_svc import messages as deposit_messages
from dinemesh.kit.outbox import OutgoingEvent
from dinemesh.kit.refusal import Refusal
from reservation_svc import domain as reservations
from reservation_svc import messages as reservation_messages
from reservation_svc.domain import CancelledBy, Kind, State
from restaurant_svc import domain as restaurants
from restaurant_svc import messages as restaurant_messages

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DINNER = datetime(2030, 1, 3, 19, tzinfo=UTC)
RULES = reservations.Rules(
    attempt=timedelta(seconds=10),
    hold=timedelta(minutes=2),
    unmarked=timedelta(hours=24),
    horizon=timedelta(days=366),
)
STORIES = 500
SEATED = (restaurants.BookingState.SEATED, restaurants.BookingState.COMPLETED)


class World:
    """One reservation, its deposits at deposit and at the provider, its booking, and all that was told."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = NOW
        self.told: list[tuple[str, OutgoingEvent]] = []
        self.newest: dict[tuple[str, str, str], int] = {}
        self.deposits: dict[str, deposits.Deposit] = {}
        self.obeyed: dict[tuple[str, str], tuple[deposits.Instruction, deposits.Applied]] = {}
        self.provider: dict[str, str] = {}
        self.booking: restaurants.Booking | None = None
        self.seated_again = 0
        acceptance = self.chance.choice(list(reservations.Acceptance))
        window = self.chance.choice([86_400, 0])
        policy = reservations.Policy(1000, "EUR", window, acceptance, 3600, 600, 900, 1800, 7200, 12)
        self.restaurant = reservations.Restaurant(self.new_id(), "Europe/Berlin", policy)
        first = self.new_id()
        order = reservations.Order(
            "alice", self.new_id(), self.restaurant.restaurant_id, DINNER, 3, policy.etag, "", "tok_visa"
        )
        self.reservation = reservations.hold_table(
            order, self.restaurant, reservation_id=self.new_id(), deposit_id=first, now=NOW, rules=RULES
        )
        self.unasked, self.unanswered, self.undecided = {first}, {first}, set[str]()

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128)))

    def one_of(self, things: Iterable[Any]) -> Any:
        every = sorted(things)
        return self.chance.choice(every) if every else None

    # The reservation.

    def move(self, move: reservations.Move | None) -> None:
        if move is None:
            return
        before, self.reservation = self.reservation, move.after
        assert move.after.version == before.version + 1
        if move.after.state in reservations.BOOKED:
            assert move.after.held_total == move.after.terms.price, "no booking without its deposit"
        if move.after.terms.revision != before.terms.revision:
            deadline = move.after.accept_deadline
            assert deadline is not None and deadline > self.now, "new terms that nobody can accept"
        if move.event is None:
            assert move.after.instructions == before.instructions, "an order that nobody hears"
            return
        event = reservations.ReservationEvent(move.event, move.after, before.terms)
        self.told.append(("reservation", reservation_messages.encode_event(event)))

    def customer(self) -> None:
        if self.chance.random() < 0.15:
            self.move(self.reservation.cancel(self.chance.choice(list(CancelledBy)), self.now))
            return
        later = DINNER + timedelta(minutes=30)
        wish = reservations.RequestedChange(
            self.chance.choice([None, DINNER, later]), self.chance.choice([None, *range(1, 7)])
        )
        deposit_id = self.new_id()
        self.move(
            self.reservation.amend(
                wish,
                etag=self.reservation.etag,
                restaurant=self.restaurant,
                modification_id=self.new_id(),
                deposit_id=deposit_id,
                can_pay=True,
                now=self.now,
                rules=RULES,
            )
        )
        if self.reservation.line(deposit_id) is not None:
            self.unasked.add(deposit_id)
            self.unanswered.add(deposit_id)

    def time(self) -> None:
        until_cancel_costs = max(timedelta(), DINNER - timedelta(hours=1) - self.now)
        until_no_show = max(timedelta(), DINNER + timedelta(minutes=16) - self.now)
        seldom = [timedelta(minutes=2), timedelta(hours=1), until_cancel_costs, until_no_show]
        self.now += self.chance.choice([timedelta(seconds=1)] * 12 + seldom)
        self.move(self.reservation.lapse(self.now, RULES))

    # The charge: asked for, made, recorded, answered; each step may come late or never.

    def ask(self) -> None:
        deposit_id = self.one_of(self.unasked)
        if deposit_id is None:
            return
        self.unasked.discard(deposit_id)
        if deposit_id not in self.deposits:
            line = self.reservation.line(deposit_id)
            assert line is not None
            amount = deposits.Money(line.amount, "EUR")
            order = deposits.Order(deposit_id, "alice", self.reservation.reservation_id, amount, "body")
            self.deposits[deposit_id] = order.intent(self.now)
            self.undecided.add(deposit_id)

    def charge(self) -> None:
        deposit_id = self.one_of(self.undecided)
        if deposit_id is not None:
            self.undecided.discard(deposit_id)
            self.provider.setdefault(deposit_id, self.chance.choice(["charged"] * 4 + ["declined"]))
            if self.chance.random() < 0.8:
                self.record(deposit_id)

    def record(self, deposit_id: str) -> None:
        deposit = self.deposits[deposit_id]
        match self.provider[deposit_id]:
            case "charged":
                self.step(deposit.capture(self.now))
            case "declined":
                self.step(deposit.decline("insufficient_funds", self.now))
            case _:
                self.step(deposit.closed(self.now))

    def answer(self, patience: float = 0.95) -> None:
        deposit_id = self.one_of(self.unanswered)
        if deposit_id is None:
            return
        outcome: reservations.DepositOutcome = reservations.Unknown()
        if deposit_id in self.deposits:
            if self.chance.random() < patience:
                try:
                    self.deposits[deposit_id].answer()
                    outcome = reservations.Captured()
                except Refusal as refusal:
                    if refusal.reason == "DEPOSIT_IN_DOUBT":
                        return  # still at it
                    declined = refusal.reason == "CARD_DECLINED"
                    outcome = reservations.Declined() if declined else reservations.Voided()
        elif deposit_id in self.unasked and self.chance.random() < 0.2:
            self.unasked.discard(deposit_id)
            outcome = reservations.NotCharged()
        elif self.chance.random() < patience:
            return
        self.unanswered.discard(deposit_id)
        self.move(self.reservation.conclude(deposit_id, outcome, self.now, RULES))

    # Deposit.

    def step(self, step: deposits.Step | None) -> None:
        if step is None:
            return
        self.deposits[step.deposit.deposit_id] = step.deposit
        if step.event is not None:
            self.told.append(("deposit", deposit_messages.encode_event(step.event)))

    def reconcile(self) -> None:
        deposit_id = self.one_of(self.deposits)
        if deposit_id is None:
            return
        if self.deposits[deposit_id].state in (deposits.State.PENDING, deposits.State.VOIDING):
            self.provider.setdefault(deposit_id, "closed")
            self.record(deposit_id)
        for refund in self.deposits[deposit_id].refunds:
            deposit, fails = self.deposits[deposit_id], self.chance.random() < 0.2
            if refund.state is deposits.RefundState.FAILED:
                self.step(deposit.retry_refund(refund.refund_id, self.now))
            elif refund.state is deposits.RefundState.PENDING and fails:
                self.step(deposit.refund_refused(refund.refund_id, refund.attempt, "blocked", self.now))
            elif refund.state is deposits.RefundState.PENDING:
                self.step(deposit.refund_succeeded(refund.refund_id, refund.attempt, self.now))
        for key, (waited, applied) in list(self.obeyed.items()):
            if applied is deposits.Applied.WAITING:
                self.obey(key, waited)

    def obey(self, key: tuple[str, str], instruction: deposits.Instruction) -> None:
        known = self.deposits.get(instruction.deposit_id)
        if known is None and isinstance(instruction, deposits.VoidOrder):
            stone = deposits.tombstone(
                instruction.deposit_id, "alice", self.reservation.reservation_id, self.now
            )
            self.obeyed[key] = instruction, deposits.Applied.APPLIED
            self.step(deposits.Step(stone, (), deposits.DepositVoided(stone)))
            return
        applied, step = deposits.apply(instruction, known, self.now)
        self.obeyed[key] = instruction, applied
        self.step(step)

    # The restaurant.

    def staff(self) -> None:
        if self.booking is None:
            return
        rule, event = self.chance.choice(
            [
                (restaurants.accept, restaurants.BookingAccepted),
                (restaurants.decline, restaurants.BookingDeclined),
                (restaurants.seat, restaurants.BookingSeated),
                (restaurants.mark_no_show, restaurants.BookingNoShowMarked),
                (restaurants.complete, restaurants.BookingCompleted),
            ]
        )
        after = rule(self.booking, self.booking.terms.revision, self.now)
        if after is not self.booking:
            self.booking = after
            self.told.append(("restaurant", restaurant_messages.encode_event(event(after))))

    # Events, each delivered at least once, in any order.

    def deliver(self) -> None:
        if self.told:
            self.hear(*self.chance.choice(self.told))

    def hear(self, source: str, event: OutgoingEvent) -> None:
        message: Any = event.message
        if source == "reservation":
            if self.is_news("deposit", source, event):
                for order in deposit_messages.from_reservation(message.reservation):
                    key = (type(order).__name__, order.instruction_id)
                    if key not in self.obeyed:
                        self.obey(key, order)
            if self.is_news("restaurant", source, event):
                heard = restaurant_messages.from_reservation(message.reservation, event.aggregate_version)
                after = restaurants.on_reservation(self.booking, heard, self.now)
                if after is not None and after is not self.booking:
                    if self.booking is not None and self.booking.state is restaurants.BookingState.SEATED:
                        self.seated_again += after.terms.revision - self.booking.terms.revision
                        assert after.state in SEATED, "guests are at the table, and staff are told otherwise"
                    news = restaurants.booking_event(self.booking, after)
                    self.booking = after
                    if news is not None:
                        self.told.append(("restaurant", restaurant_messages.encode_event(news)))
        elif self.is_news("reservation", source, event):
            if source == "deposit":
                told = reservation_messages.from_deposit(message.deposit)
                self.move(self.reservation.on_deposit(told, self.now, RULES))
            else:
                said = reservation_messages.from_booking(message.booking)
                for move in self.reservation.on_booking(said, self.now):
                    self.move(move)

    def is_news(self, subscriber: str, source: str, event: OutgoingEvent) -> bool:
        key = (subscriber, source, event.aggregate_id)
        if event.aggregate_version <= self.newest.get(key, 0):
            return False
        self.newest[key] = event.aggregate_version
        return True

    # The story.

    def book_and_come_early(self) -> None:
        """All goes well at first. Then guests can be seated; where that is free, all can still be changed."""
        (deposit_id,) = self.unasked
        self.ask()
        self.undecided.clear()
        self.provider[deposit_id] = "charged"
        self.record(deposit_id)
        self.answer(patience=1)
        for event in self.told:  # grows meanwhile
            self.hear(*event)
            if self.booking is not None and self.booking.state is restaurants.BookingState.RECEIVED:
                self.booking = restaurants.accept(self.booking, 1, self.now)
                self.told.append(
                    (
                        "restaurant",
                        restaurant_messages.encode_event(restaurants.BookingAccepted(self.booking)),
                    )
                )
        assert self.reservation.state is State.CONFIRMED
        self.now = DINNER - self.chance.choice([timedelta(minutes=90), timedelta(minutes=10, seconds=1)])
        with suppress(Refusal):
            self.customer()

    def live(self, steps: int) -> None:
        """Whatever happens."""
        happens: dict[Callable[[], None], int] = {
            self.ask: 6,
            self.charge: 6,
            self.answer: 5,
            self.reconcile: 1,
            self.deliver: 20,
            self.customer: 2,
            self.staff: 3,
            self.time: 2,
        }
        for _ in range(steps):
            (what,) = self.chance.choices(list(happens), weights=list(happens.values()))
            with suppress(Refusal):  # what a person cannot have
                what()

    def come_to_rest(self) -> None:
        """Everybody is well again and finishes; nobody asks for anything new."""
        for day in range(12):
            while self.undecided:
                self.charge()
            self.unasked.clear()  # whoever had not asked yet was killed
            while self.unanswered:
                self.answer(patience=0)
            for source, event in self.chance.sample(self.told, len(self.told)):
                self.hear(source, event)
            for _ in range(20 * len(self.deposits)):
                self.reconcile()
            if day > 4:
                self.now += timedelta(days=1)
            while (move := self.reservation.lapse(self.now, RULES)) is not None:
                self.move(move)


@pytest.fixture(scope="module")
def ends() -> list[World]:
    """Stories that have come to their end."""
    worlds = [World(seed) for seed in range(STORIES)]
    for world in worlds:
        if world.chance.random() < 0.3:
            world.book_and_come_early()
        world.live(world.chance.randrange(20, 400))
        world.come_to_rest()
    return worlds


def test_every_story_ends(ends: list[World]) -> None:
    for world in ends:
        assert world.reservation.state in reservations.FINAL
        assert world.reservation.modification is None
    reached = {world.reservation.state for world in ends}
    assert reached == reservations.FINAL, "the stories are of every kind"
    assert any(world.seated_again for world in ends), "no customer modified while staff seated the guests"


def test_all_money_went_back_or_was_forfeited_by_policy(ends: list[World]) -> None:
    for world in ends:
        may_forfeit = (
            world.reservation.state is State.NO_SHOW or world.reservation.cancelled_by is CancelledBy.CUSTOMER
        )
        for deposit_id, deposit in world.deposits.items():
            charged = world.provider.get(deposit_id) == "charged"
            assert deposit.captured == (deposit.amount.minor if charged else 0)
            assert deposit.captured == deposit.refunded + deposit.forfeited
            assert deposit.forfeited == 0 or may_forfeit
        assert set(world.provider) <= set(world.deposits)


def test_reservation_and_deposit_say_the_same(ends: list[World]) -> None:
    for world in ends:
        for line in world.reservation.deposits:
            assert world.reservation.held[line.deposit_id] == 0
            deposit = world.deposits.get(line.deposit_id)
            if deposit is not None:
                assert line.captured == (deposit.captured > 0)
                assert line.state.name == deposit.standing.name
        ordered = {
            (order.kind, order.instruction_id): order.amount for order in world.reservation.instructions
        }
        for deposit in world.deposits.values():
            for forfeit in deposit.forfeits:
                assert ordered[Kind.FORFEIT, forfeit.forfeit_id] == forfeit.amount.minor
            for refund in deposit.refunds:
                if refund.refund_id != deposits.void_refund_id(deposit.deposit_id):
                    assert ordered[Kind.REFUND, refund.refund_id] == refund.amount.minor
        for order, applied in world.obeyed.values():
            assert applied is not deposits.Applied.WAITING
            if not isinstance(order, deposits.VoidOrder):
                assert applied is deposits.Applied.APPLIED
