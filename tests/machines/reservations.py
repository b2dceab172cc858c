"""Reservation alone: deposit and the restaurant are a hand that answers, tells and repeats what it likes, as
long as a deposit that was once captured is never called declined, and the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text

from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    BOOKED,
    FINAL,
    Acceptance,
    BookingSnapshot,
    BookingState,
    Caller,
    CancelledBy,
    Captured,
    Change,
    Charge,
    Declined,
    DepositOutcome,
    DepositSnapshot,
    DepositState,
    Kind,
    NotCharged,
    Order,
    Policy,
    RequestedChange,
    Reservation,
    Restaurant,
    SlotSnapshot,
    State,
    Unknown,
)
from reservation_svc.persistence import reservations, seat_inventory
from reservation_svc.usecases import event_handlers, modify, reserve
from reservation_svc.usecases.cancel import cancel
from tests.machines import books
from tests.machines.database import Fault, database, empty
from tests.machines.process import START, Time
from tests.machines.services import RULES
from tests.machines.services import Reservations as Service
from tests.machines.world import repeatable_ids

POLICY = Policy(1000, "EUR", 86_400, Acceptance.MANUAL, 3600, 600, 900, 1800, 7200, 12)
RESTAURANT = Restaurant("5f8f0c5a-3f6e-4f6e-9a43-000000000001", "Europe/Berlin", POLICY)
SLOTS = tuple(START + timedelta(days=days, hours=6) for days in (3, 3.0625, 30))
CAPACITY = 8

any_of = st.integers(0, 20)


@dataclass(eq=False)
class Asked:
    charge: Charge
    reply: asyncio.Future[DepositOutcome]


class Hand:
    """Deposit as reservation sees it. `truth`: whether a deposit is captured; decided once, never changed."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.truth: dict[str, DepositState] = {}
        self.charges: dict[str, Charge] = {}

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        assert charge.deposit_id not in self.charges, "one deposit_id is asked for twice"
        self.charges[charge.deposit_id] = charge
        asked = Asked(charge, asyncio.get_running_loop().create_future())
        self.asked.append(asked)
        try:
            async with asyncio.timeout(timeout):
                return await asked.reply
        except TimeoutError:
            return Unknown("deadline")

    async def is_healthy(self) -> bool:
        return True

    def news(self, deposit_id: str) -> DepositSnapshot:
        state = self.truth.setdefault(deposit_id, DepositState.VOIDED)
        return DepositSnapshot(deposit_id, state, state is DepositState.CAPTURED)


class Reservations(RuleBasedStateMachine):
    """Promises 1, 2 and 3, as far as they are reservation's."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = repeatable_ids()
        self._ids.__enter__()
        database("reservation_svc").load(empty("reservation_svc"))
        self.time = Time()
        self.hand = Hand()
        self.service = Service(self.time, self.hand)
        self.orders: list[Order] = []
        self.calls: list[tuple[Order, asyncio.Task[Reservation]]] = []
        self.answers: dict[str, set[str]] = {}
        self.ended: dict[str, tuple[State, int]] = {}
        self.shown = POLICY
        """What the customer looked at last, which may be gone."""
        self.number = 0

    @initialize()
    def furnish(self) -> None:
        slots = [SlotSnapshot(at, CAPACITY, 2) for at in SLOTS]
        self.service.store.at_once(lambda tx: event_handlers.on_restaurant(tx, RESTAURANT))
        self.service.store.at_once(lambda tx: event_handlers.on_slots(tx, RESTAURANT.restaurant_id, slots))

    def new_id(self) -> str:
        self.number += 1
        return f"00000000-0000-4000-8000-{self.number:012}"

    def _every(self) -> Sequence[Reservation]:
        def query(tx: Transaction) -> list[Reservation]:
            ids = tx.execute(text("SELECT reservation_id FROM reservations ORDER BY rowid")).scalars().all()
            return [one for key in ids if (one := reservations.find(tx, key)) is not None]

        return self.service.store.look(query)

    def _one(self, which: int) -> Reservation | None:
        every = self._every()
        return every[-1 - which % len(every)] if every else None

    # Customers.

    @rule(party=st.integers(1, 5), at=st.sampled_from(SLOTS))
    def reserve(self, party: int, at: datetime) -> None:
        request_id = self.new_id()
        body = f"{at}/{party}"
        # The request id is the note too: by it we know which terms a reservation was asked for on.
        shown = self.shown.etag
        order = Order(
            "alice", request_id, RESTAURANT.restaurant_id, at, party, shown, request_id, "tok", body
        )
        self.orders.append(order)
        self._ask(order)

    @rule()
    def look_again(self) -> None:
        """The customer sees the terms as reservation knows them now."""
        self.shown = self._copy().policy

    def _copy(self) -> Restaurant:
        found = self.service.store.look(lambda tx: seat_inventory.restaurant(tx, RESTAURANT.restaurant_id))
        assert found is not None
        return found

    def _ask(self, order: Order) -> None:
        self.calls.append((order, self.service.begin(reserve.reserve(self.service.ctx, order))))

    @rule(party=st.integers(1, 5), at=st.sampled_from(SLOTS), accepted=st.booleans())
    def book(self, party: int, at: datetime, accepted: bool) -> None:
        self.reserve(party, at)
        if self.hand.asked and not self.hand.asked[-1].reply.done():
            self.deposit_answers(0, "captured")
            if accepted:
                self.restaurant_tells(0, BookingState.ACCEPTED, 0, True)

    @precondition(lambda self: self.orders)
    @rule(which=any_of)
    def repeat(self, which: int) -> None:
        self._ask(self.orders[-1 - which % len(self.orders)])

    @precondition(lambda self: self.orders)
    @rule(which=any_of, party=st.integers(1, 6), at=st.one_of(st.none(), st.sampled_from(SLOTS)))
    def modify(self, which: int, party: int, at: datetime | None) -> None:
        standing = [one for one in self._every() if one.state in BOOKED]
        if standing:
            one = standing[-1 - which % len(standing)]
            wish = RequestedChange(at, party)
            self._change(one, wish)

    def _change(self, one: Reservation, wish: RequestedChange) -> None:
        change = Change(one.customer_id, self.new_id(), one.reservation_id, one.etag, wish, "tok", f"{wish}")
        self.service.begin(modify.modify(self.service.ctx, change))

    @precondition(lambda self: self.orders)
    @rule(which=any_of, times=st.integers(1, 2 * RULES.priced_modifications), answer=st.booleans())
    def change_again_and_again(self, which: int, times: int, answer: bool) -> None:
        """Dearer and cheaper in turns; `answer`: what is asked for is charged at once."""
        one = self._one(which)
        for number in range(times):
            if one is None or one.state not in BOOKED:
                return
            self._change(one, RequestedChange(None, 2 + (one.terms.party_size + number) % 2))
            if answer and self.hand.asked and not self.hand.asked[-1].reply.done():
                self.deposit_answers(0, "captured")
            self.time.loop.run()
            one = next((found for found in self._every() if found.reservation_id == one.reservation_id), None)

    @precondition(lambda self: self.orders)
    @rule(which=any_of, by=st.sampled_from(CancelledBy))
    def cancel(self, which: int, by: CancelledBy) -> None:
        one = self._one(which)
        if one is not None:
            who = Caller(one.customer_id) if by is CancelledBy.CUSTOMER else Caller(None, one.restaurant_id)
            self.service.begin(cancel(self.service.ctx, one.reservation_id, who))

    # Deposit: answers come, are lost or lie in wait; news of it come as often as they like.

    @precondition(lambda self: self.hand.asked)
    @rule(
        which=any_of,
        outcome=st.sampled_from(
            ("captured", "captured", "declined", "overloaded", "unknown, charged", "unknown, not charged")
        ),
    )
    def deposit_answers(self, which: int, outcome: str) -> None:
        asked = self.hand.asked.pop(-1 - which % len(self.hand.asked))
        deposit_id = asked.charge.deposit_id
        wanted = {
            "captured": DepositState.CAPTURED,
            "unknown, charged": DepositState.CAPTURED,
            "declined": DepositState.DECLINED,
        }.get(outcome, DepositState.VOIDED)
        if asked.reply.done():
            self.hand.truth.setdefault(deposit_id, wanted)  # nobody waits: only news will tell
            return
        truth = self.hand.truth.setdefault(deposit_id, wanted)
        answer: DepositOutcome = Unknown()
        if outcome == "captured" and truth is DepositState.CAPTURED:
            answer = Captured()
        elif outcome == "declined" and truth is DepositState.DECLINED:
            answer = Declined("insufficient_funds")
        elif outcome == "overloaded" and truth is DepositState.VOIDED:
            answer = NotCharged(1.0)
        asked.reply.set_result(answer)
        self.time.loop.run()

    @precondition(lambda self: self.hand.truth)
    @rule(which=any_of)
    def deposit_tells(self, which: int) -> None:
        self._tell(list(self.hand.truth)[-1 - which % len(self.hand.truth)])

    def _tell(self, deposit_id: str) -> None:
        news = self.hand.news(deposit_id)
        service, reservation_id = self.service, self.hand.charges[deposit_id].reservation_id
        service.begin(
            service.store.write(lambda tx: event_handlers.on_deposit(service.ctx, tx, reservation_id, news))
        )

    # The restaurant: whatever it says, of whatever terms.

    @precondition(lambda self: self.orders)
    @rule(
        which=any_of,
        state=st.sampled_from(BookingState),
        earlier=st.sampled_from((0, 0, 1)),
        accepted=st.booleans(),
    )
    def restaurant_tells(self, which: int, state: BookingState, earlier: int, accepted: bool) -> None:
        one = self._one(which)
        if one is None:
            return
        news = BookingSnapshot(state, one.terms.revision - earlier, accepted)
        service = self.service
        service.begin(
            service.store.write(
                lambda tx: event_handlers.on_booking(service.ctx, tx, one.reservation_id, news)
            )
        )
        if earlier and not service.is_dead:
            found = next(other for other in self._every() if other.reservation_id == one.reservation_id)
            assert found.state is one.state, "it heard of terms that are gone"

    @precondition(lambda self: self.orders)
    @rule(at=st.sampled_from(SLOTS), capacity=st.integers(0, CAPACITY), version=st.integers(1, 4))
    def slots_change(self, at: datetime, capacity: int, version: int) -> None:
        news = [SlotSnapshot(at, capacity if version > 1 else 10 * CAPACITY, version)]
        self.service.begin(
            self.service.store.write(lambda tx: event_handlers.on_slots(tx, RESTAURANT.restaurant_id, news))
        )

    @rule(per_person=st.sampled_from((1000, 2500)), days=st.integers(0, 2))
    def policy_changes(self, per_person: int, days: int) -> None:
        policy = replace(POLICY, deposit_per_person=per_person, free_cancel_window_seconds=days * 86_400)
        copy = replace(RESTAURANT, policy=policy)
        self.service.begin(self.service.store.write(lambda tx: event_handlers.on_restaurant(tx, copy)))

    # Time, and what goes wrong.

    @precondition(lambda self: self.orders)
    @rule(seconds=st.sampled_from((1, 5, 13, 130, 4000, 200_000)))
    def time_passes(self, seconds: int) -> None:
        self.time.loop.run(seconds)

    @precondition(lambda self: self.orders)
    @rule()
    def reconcile(self) -> None:
        self.service.reconcile()

    @precondition(lambda self: self.orders)
    @rule(fault=st.sampled_from(Fault))
    def fail_next_commit(self, fault: Fault) -> None:
        self.service.fail_next(fault)

    @precondition(lambda self: self.orders)
    @rule()
    def die(self) -> None:
        self.service.die()

    # What holds.

    @invariant()
    def the_books_are_right(self) -> None:
        self.time.loop.run()
        self.service.check()
        if self.service.is_dead:
            self.service = Service(self.time, self.hand)
        every = self._every()
        books.check_seats(self.service.store, every, CAPACITY)
        books.check_deposits_of_bookings(every)
        books.check_one_reservation_a_request(every)
        books.check_terms_were_shown(every, self.orders)
        for one in every:
            self._is_true(one)
        self._hear_answers()

    def _is_true(self, one: Reservation) -> None:
        assert one.priced_modifications <= RULES.priced_modifications, "changed too often"
        assert len(one.deposits) <= RULES.deposit_lines, "more deposits than there may be"
        assert one.terms.revision <= 1 + RULES.changes_of_terms, "too many terms"
        for line in one.deposits:
            captured = self.hand.truth.get(line.deposit_id) is DepositState.CAPTURED
            assert captured or not line.captured, "counts on a deposit that was never captured"
        kept = [order for order in one.instructions if order.kind is Kind.FORFEIT]
        may = one.state is State.NO_SHOW or (
            one.state is State.CANCELLED
            and one.cancelled_by is CancelledBy.CUSTOMER
            and one.update_time >= one.free_cancel_time
        )
        assert not kept or may, "forfeited without a reason"
        if one.state in FINAL:
            state, _ = self.ended.setdefault(one.reservation_id, (one.state, 0))
            assert state is one.state, f"{state} became {one.state}"

    def _hear_answers(self) -> None:
        for order, call in [one for one in self.calls if one[1].done()]:
            self.calls.remove((order, call))
            if call.cancelled():
                continue
            error = call.exception()
            said = self.answers.setdefault(order.request_id, set())
            if error is None:
                assert call.result().state not in (State.PENDING_DEPOSIT, State.FAILED)
                said.add(call.result().reservation_id)
            elif isinstance(error, Refusal) and error.reason == "CARD_DECLINED":
                said.add(error.reason)
            elif isinstance(error, Refusal) and error.reason == "POLICY_CHANGED":
                assert not said, "what was reserved, or declined, is answered whatever the policy is now"
            assert len(said) <= 1, f"two final answers: {said}"

    def teardown(self) -> None:
        try:
            self._come_to_rest()
        finally:
            self.time.close()
            self._ids.__exit__(None, None, None)

    def _come_to_rest(self) -> None:
        self.service.store.faults.clear()
        self.hand.asked.clear()
        self.time.loop.run(20)
        self.the_books_are_right()
        for _ in range(3):
            for deposit_id in self.hand.charges:
                self._tell(deposit_id)
            self.time.loop.run(40 * 86_400)
            self.service.reconcile()
        self.the_books_are_right()
        for one in self._every():
            assert one.state in FINAL and one.modification is None, one.state
            for line in one.deposits:
                mine = [order for order in one.instructions if order.deposit_id == line.deposit_id]
                if self.hand.truth.get(line.deposit_id) is DepositState.CAPTURED:
                    ordered = sum(order.amount for order in mine if order.kind is not Kind.VOID)
                    void = any(order.kind is Kind.VOID for order in mine)
                    assert void or ordered == line.amount, "captured, and not all of it has gone its way"
