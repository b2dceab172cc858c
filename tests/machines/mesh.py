"""All four services together: customers, staff, the clock and every kind of fault, in any order."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dinemesh.kit.refusal import Refusal
from reservation_svc.domain import BOOKED, FINAL, CancelledBy, RequestedChange, State
from restaurant_svc.domain import BookingState
from tests.machines import books
from tests.machines.database import Fault
from tests.machines.provider import DECLINED_CARD
from tests.machines.world import CAPACITY, CUSTOMERS, PACKAGES, SLOTS, STAFF, World, repeatable_ids

any_of = st.integers(0, 20)
"""One of those that there are, whichever; small numbers are the newest."""

TIMES = st.sampled_from((1, 5, 13, 130, 3600, 40_000))
TOKENS = st.sampled_from(("tok_visa", "tok_visa", "tok_visa", DECLINED_CARD))
MORE_SEATS = CAPACITY + 2


def _has_begun(mesh: Mesh) -> bool:
    return bool(mesh.world.requests)


class Mesh(RuleBasedStateMachine):
    """Promises 1, 2, 3, 4 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = repeatable_ids()
        self._ids.__enter__()
        self.world = World()
        self.backwards = False
        self.number = 0

    @initialize(backwards=st.booleans())
    def begin(self, backwards: bool) -> None:
        self.backwards = backwards

    def new_id(self) -> str:
        self.number += 1
        return f"00000000-0000-4000-8000-{self.number:012}"

    # Customers.

    @rule(
        customer=st.sampled_from(CUSTOMERS),
        party=st.integers(1, 4),
        at=st.sampled_from(SLOTS),
        which=st.integers(0, 1),
        token=TOKENS,
    )
    def reserve(self, customer: str, party: int, at: datetime, which: int, token: str) -> None:
        self.world.reserve(customer, party, at, self.world.restaurant_ids[which], token, self.new_id())

    @rule(party=st.integers(1, 4), at=st.sampled_from(SLOTS), which=st.integers(0, 1), token=TOKENS)
    def reserve_and_pay(self, party: int, at: datetime, which: int, token: str) -> None:
        """The way that most reservations take, in one step."""
        self.reserve("alice", party, at, which, token)
        self._pay()

    def _pay(self) -> None:
        if self.world.wire.questions:
            self.deposit_hears(0)
            self.charge_arrives(0, True)
            self.answer(0, False)

    @rule(party=st.integers(1, 4), at=st.sampled_from(SLOTS), which=st.integers(0, 1))
    def book(self, party: int, at: datetime, which: int) -> None:
        """Paid, accepted and told to everybody."""
        self.reserve_and_pay(party, at, which, "tok_visa")
        self.deliver_all()
        for booking in self.world.bookings_now():
            if booking.state is BookingState.RECEIVED and not self.world.restaurant.is_dead:
                self.world.staff(booking, "accept", booking.terms.revision)
        self.deliver_all()

    @precondition(lambda self: self.world.requests)
    @rule(which=any_of, other_body=st.booleans())
    def repeat(self, which: int, other_body: bool) -> None:
        request = self.world.requests[-1 - which % len(self.world.requests)]
        if not other_body:
            self.world.ask(request, request.order)
            return
        order = replace(request.order, body_hash="another", party_size=request.order.party_size + 1)
        known = bool(request.reserved)
        call = self.world.ask(request, order)
        if known and call.done() and not call.cancelled():
            request.calls.remove(call)
            error = call.exception()
            assert error is not None, "a request id was used again for something else"
            assert not isinstance(error, Refusal) or error.reason == "REQUEST_ID_REUSED", error

    @precondition(lambda self: any(one.calls for one in self.world.requests))
    @rule()
    def hang_up(self) -> None:
        next(one for one in self.world.requests if one.calls).calls[0].cancel()
        self.world.run()

    @precondition(lambda self: self.world.requests)
    @rule(
        which=any_of,
        party=st.one_of(st.none(), st.integers(1, 6)),
        at=st.one_of(st.none(), st.sampled_from(SLOTS)),
        token=TOKENS,
        at_once=st.booleans(),
    )
    def modify(self, which: int, party: int | None, at: datetime | None, token: str, at_once: bool) -> None:
        standing = [one for one in self.world.reservations_now() if one.state in BOOKED]
        if standing and not self.world.reservation.is_dead:
            current = standing[-1 - which % len(standing)]
            self.world.modify(current, RequestedChange(at, party), token, self.new_id())
            if at_once:
                self._pay()

    @precondition(lambda self: self.world.requests)
    @rule(which=any_of, by_restaurant=st.booleans())
    def cancel(self, which: int, by_restaurant: bool) -> None:
        every = self.world.reservations_now()
        if every and not self.world.reservation.is_dead:
            self.world.cancel(every[-1 - which % len(every)], by_restaurant=by_restaurant)

    # The charge: asked for, made, recorded, answered; each step late or never.

    @precondition(lambda self: any(one.handling is None for one in self.world.wire.questions))
    @rule(which=any_of)
    def deposit_hears(self, which: int) -> None:
        unheard = [one for one in self.world.wire.questions if one.handling is None]
        if unheard and not self.world.deposit.is_dead:
            self.world.hears(unheard[-1 - which % len(unheard)])

    @precondition(lambda self: self.world.provider.on_the_way)
    @rule(which=any_of, answered=st.booleans())
    def charge_arrives(self, which: int, answered: bool) -> None:
        asked = self.world.provider.on_the_way
        if asked:
            self.world.provider.arrives(asked[-1 - which % len(asked)], answered=answered)
            self.world.run()

    @precondition(lambda self: self.world.wire.questions)
    @rule(which=any_of, lost=st.booleans())
    def answer(self, which: int, lost: bool) -> None:
        questions = self.world.wire.questions
        if questions:
            question = questions[-1 - which % len(questions)]
            if lost or (question.handling is not None and question.handling.done()):
                self.world.answer(question, lost=lost)

    # The restaurant.

    @precondition(lambda self: self.world.requests)
    @rule(which=any_of, verb=st.sampled_from(sorted(STAFF)), earlier=st.sampled_from((0, 0, 0, 1)))
    def staff(self, which: int, verb: str, earlier: int) -> None:
        bookings = self.world.bookings_now()
        if bookings and not self.world.restaurant.is_dead:
            booking = bookings[-1 - which % len(bookings)]
            self.world.staff(booking, verb, booking.terms.revision - earlier)

    @rule(which=st.integers(0, 1), capacity=st.sampled_from((0, 2, CAPACITY, MORE_SEATS, MORE_SEATS)))
    def change_capacity(self, which: int, capacity: int) -> None:
        if not self.world.restaurant.is_dead:
            self.world.set_capacity(self.world.restaurant_ids[which], capacity)

    @precondition(_has_begun)
    @rule(which=st.integers(0, 1), per_person=st.sampled_from((1000, 2500)), days=st.integers(0, 2))
    def change_policy(self, which: int, per_person: int, days: int) -> None:
        if not self.world.restaurant.is_dead:
            self.world.change_policy(self.world.restaurant_ids[which], per_person, days * 86_400)

    # Events: any of them, to anybody, as often as it likes.

    @precondition(lambda self: self.world.bus.events)
    @rule(
        which=any_of,
        queue=st.sampled_from(
            (
                "reservation.deposits",
                "reservation.restaurants",
                "deposit.instructions",
                "restaurant.bookings",
                "history.timeline",
            )
        ),
    )
    def deliver(self, which: int, queue: str) -> None:
        heard = [n for n, one in enumerate(self.world.bus.events) if queue in self.world.bus.listeners(one)]
        if heard:
            self.world.deliver(heard[-1 - which % len(heard)], queue)

    @precondition(_has_begun)
    @rule()
    def deliver_all(self) -> None:
        for _ in range(3):
            for index in range(len(self.world.bus.events)):
                for queue in self.world.bus.listeners(self.world.bus.events[index]):
                    if queue != "history.timeline":
                        self.world.deliver_if_new(index, queue)
            self.world.collect()

    # Time, and what goes wrong.

    @precondition(_has_begun)
    @rule(seconds=TIMES)
    def time_passes(self, seconds: int) -> None:
        self.world.run(seconds)

    @precondition(_has_begun)
    @rule(at=st.sampled_from(SLOTS), minutes=st.sampled_from((-60, 16)))
    def the_meal_comes(self, at: datetime, minutes: int) -> None:
        """Free cancellation is over; or guests should be here, and staff can say what they see."""
        left = (at + timedelta(minutes=minutes) - self.world.time.now).total_seconds()
        self.world.run(max(left, 0))

    @precondition(_has_begun)
    @rule(which=any_of, verbs=st.sampled_from((("seat",), ("seat", "complete"), ("mark_no_show",))))
    def guests_come_or_not(self, which: int, verbs: tuple[str, ...]) -> None:
        self.deliver_all()
        confirmed = [one for one in self.world.bookings_now() if one.confirmed]
        if confirmed:
            booking = confirmed[-1 - which % len(confirmed)]
            left = (booking.no_show_time - self.world.time.now).total_seconds()
            self.world.run(max(left, 0))
            for verb in verbs:
                if not self.world.restaurant.is_dead:
                    self.world.staff(booking, verb, booking.terms.revision)

    @precondition(_has_begun)
    @rule()
    def reconcile(self) -> None:
        for process in (self.world.reservation, self.world.deposit):
            if not process.is_dead:
                process.reconcile()

    @precondition(_has_begun)
    @rule(package=st.sampled_from(PACKAGES[:3]), fault=st.sampled_from(Fault))
    def fail_next_commit(self, package: str, fault: Fault) -> None:
        self.world.processes[package].fail_next(fault)

    @precondition(_has_begun)
    @rule(package=st.sampled_from(PACKAGES))
    def die(self, package: str) -> None:
        self.world.processes[package].die()
        self.world.run()
        self.world.start(package)

    @precondition(_has_begun)
    @rule(what=st.sampled_from(("down", "loses_replies", "refuses_refunds")), value=st.booleans())
    def provider_is_unwell(self, what: str, value: bool) -> None:
        setattr(self.world.provider, what, value)

    @precondition(_has_begun)
    @rule(which=any_of)
    def a_refund_is_refused(self, which: int) -> None:
        """Somebody cancels, and the provider does not take the money back, until it is well again."""
        self.world.provider.refuses_refunds = True
        self.cancel(which, True)
        self.deliver_all()
        if not self.world.deposit.is_dead:
            self.world.deposit.reconcile()
        self.world.provider.refuses_refunds = False

    @precondition(_has_begun)
    @rule()
    def operator_retries(self) -> None:
        if not self.world.deposit.is_dead:
            self.world.retry_failed_refunds()

    # What holds.

    @invariant()
    def the_books_are_right(self) -> None:
        self.world.run()
        for package, process in list(self.world.processes.items()):
            if process.is_dead:
                self.world.start(package)
        self.world.collect()
        self.world.hear_answers()
        reservations = self.world.reservations_now()
        books.check_seats(self.world.reservation.store, reservations, MORE_SEATS)
        books.check_deposits_of_bookings(reservations)
        books.check_one_reservation_a_request(reservations)
        books.check_terms_were_shown(reservations, [one.order for one in self.world.requests])
        books.check_ledger(self.world.deposit.store, self.world.deposits_now(), self.world.provider)

    def teardown(self) -> None:
        try:
            self._come_to_the_end()
        finally:
            self.world.close()
            self._ids.__exit__(None, None, None)

    def _come_to_the_end(self) -> None:
        world = self.world
        world.come_to_rest(backwards=self.backwards)
        self.the_books_are_right()
        books.check_all_is_settled(world.deposits_now(), world.provider)
        _is_clean(world)
        self._bookings_and_answers_are_true()
        world.all_meals_pass()
        for one in world.reservations_now():
            assert one.state in FINAL, f"{one.state} after its meal"
            assert one.modification is None and one.held_total == 0
        books.check_all_is_settled(world.deposits_now(), world.provider)
        for deposit in world.deposits_now():
            assert deposit.held == 0
        _is_clean(world)
        lived = world.picture_of_history()
        world.replay()
        world.rebuild_history(backwards=not self.backwards)
        assert world.picture_of_history() == lived, "the rebuilt timeline is another one"

    def _bookings_and_answers_are_true(self) -> None:
        states = {one.reservation_id: one for one in self.world.reservations_now()}
        for request in self.world.requests:
            for reservation_id in request.reserved:
                assert states[reservation_id].state is not State.FAILED, "a client was told that it is booked"
            if "CARD_DECLINED" in request.refused:
                mine = [one for one in states.values() if one.note == request.order.request_id]
                assert all(one.state is State.FAILED for one in mine)
        for deposit in self.world.deposits_now():
            one = states[deposit.reservation_id]
            late = one.state is State.CANCELLED and one.cancelled_by is CancelledBy.CUSTOMER
            assert not deposit.forfeited or late or one.state is State.NO_SHOW, "forfeited without a reason"


def _is_clean(world: World) -> None:
    report = world.audit()
    assert report.clean, str(report)
