"""Restaurant and history, told by reservations (their rules alone, without a database) in any order and as
often as it happens, while staff do what they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from history_svc.usecases import Digest
from reservation_svc import domain as reservations
from reservation_svc import messages as reservation_messages
from restaurant_svc import persistence
from restaurant_svc.domain import Booking, BookingState
from tests.history import stories
from tests.history.stories import envelope
from tests.machines.bus import Bus, Event
from tests.machines.database import Fault, database, empty
from tests.machines.process import START, Process, Time
from tests.machines.reservations import POLICY
from tests.machines.services import RULES, HistoryService, RestaurantService
from tests.machines.world import STAFF

RESTAURANT = reservations.Restaurant("5f8f0c5a-3f6e-4f6e-9a43-000000000002", "Europe/Berlin", POLICY)
DINNER = START + timedelta(days=3, hours=6)
AGREES: dict[reservations.State, set[BookingState]] = {
    reservations.State.PENDING_ACCEPTANCE: {BookingState.RECEIVED},
    reservations.State.CONFIRMED: {BookingState.ACCEPTED},
    reservations.State.SEATED: {BookingState.SEATED},
    # The clock may have ended what nobody marked, and staff speak before they hear of it.
    reservations.State.COMPLETED: {BookingState.COMPLETED, BookingState.NO_SHOW, BookingState.DECLINED},
    reservations.State.NO_SHOW: {BookingState.NO_SHOW},
}
"""What a booking is when all is told. After any other end staff's last word may stand on their page."""
_ENDED = {
    BookingState.WITHDRAWN,
    BookingState.DECLINED,
    BookingState.SEATED,
    BookingState.COMPLETED,
    BookingState.NO_SHOW,
}

_GUESTS_CAME_OR_NOT = {BookingState.SEATED, BookingState.COMPLETED, BookingState.NO_SHOW}

any_of = st.integers(0, 20)


@dataclass
class Told:
    """A reservation, the newest that it heard of its booking, and the terms that it ever confirmed."""

    now: reservations.Reservation
    heard: int
    confirmed: set[int]


class Bookings(RuleBasedStateMachine):
    """Promises 4 and 10."""

    def __init__(self) -> None:
        super().__init__()
        for package in ("restaurant_svc", "history_svc"):
            database(package).load(empty(package))
        self.time = Time()
        self.bus = Bus()
        self.restaurant = RestaurantService(self.time)
        self.history = HistoryService(self.time)
        self.known: dict[str, Told] = {}
        self.revisions: dict[str, tuple[int, int]] = {}
        self.backwards = False
        self.number = 0

    @initialize(backwards=st.booleans())
    def begin(self, backwards: bool) -> None:
        self.backwards = backwards

    def new_id(self) -> str:
        self.number += 1
        return f"00000000-0000-4000-8000-{self.number:012}"

    # Reservations.

    @rule(mode=st.sampled_from(reservations.Acceptance))
    def place(self, mode: reservations.Acceptance) -> None:
        at = replace(RESTAURANT, policy=replace(POLICY, acceptance=mode))
        order = reservations.Order(
            "alice", self.new_id(), at.restaurant_id, DINNER, 2, at.policy.etag, "", "tok"
        )
        deposit_id = self.new_id()
        held = reservations.hold_table(
            order, at, reservation_id=self.new_id(), deposit_id=deposit_id, now=self.time.now, rules=RULES
        )
        self.known[held.reservation_id] = Told(held, 0, set())
        outcome = reservations.Captured()
        self._move(held.reservation_id, held.conclude(deposit_id, outcome, self.time.now, RULES))

    def _move(self, key: str, move: reservations.Move | None) -> None:
        if move is None:
            return
        told = self.known[key]
        event = None
        if move.event is not None:
            event = reservations.ReservationEvent(move.event, move.after, told.now.terms)
        told.now = move.after
        if move.after.state is reservations.State.CONFIRMED:
            told.confirmed.add(move.after.terms.revision)
        if event is None:
            return
        out = reservation_messages.encode_event(event)
        body = envelope(
            out.message,
            aggregate_id=out.aggregate_id,
            version=out.aggregate_version,
            customer_id=out.customer_id,
            reservation_id=out.reservation_id,
            event_id=self.new_id(),
            at=self.time.now,
        )
        self.bus.events.append(Event(out.routing_key, body))

    def _key(self, which: int) -> str:
        return list(self.known)[-1 - which % len(self.known)]

    @precondition(lambda self: self.known)
    @rule(which=any_of, party=st.integers(1, 6))
    def amend(self, which: int, party: int) -> None:
        key = self._key(which)
        one = self.known[key].now
        deposit_id = self.new_id()
        try:
            move = one.amend(
                reservations.RequestedChange(party_size=party),
                etag=one.etag,
                restaurant=RESTAURANT,
                modification_id=self.new_id(),
                deposit_id=deposit_id,
                can_pay=True,
                now=self.time.now,
                rules=RULES,
            )
        except Refusal:
            return
        self._move(key, move)
        paid = self.known[key].now
        if paid.modification is not None:
            self._move(key, paid.conclude(deposit_id, reservations.Captured(), self.time.now, RULES))

    @precondition(lambda self: self.known)
    @rule(which=any_of, by=st.sampled_from(reservations.CancelledBy))
    def cancel(self, which: int, by: reservations.CancelledBy) -> None:
        key = self._key(which)
        try:
            self._move(key, self.known[key].now.cancel(by, self.time.now))
        except Refusal:
            return

    @precondition(lambda self: self.known)
    @rule(seconds=st.sampled_from((1, 3700, 190_000, 100_000)))
    def time_passes(self, seconds: int) -> None:
        self.time.loop.run(seconds)
        for key, told in self.known.items():
            while (move := told.now.lapse(self.time.now, RULES)) is not None:
                self._move(key, move)

    # Events.

    @precondition(lambda self: self.bus.events)
    @rule(which=any_of)
    def restaurant_hears(self, which: int) -> None:
        heard = [one for one in self.bus.events if one.routing_key.startswith("reservation.")]
        self._tell(heard[-1 - which % len(heard)], self.restaurant)

    @precondition(lambda self: self.bus.events)
    @rule(which=any_of)
    def history_hears(self, which: int) -> None:
        self._tell(self.bus.events[-1 - which % len(self.bus.events)], self.history)

    @precondition(lambda self: self.bus.events)
    @rule(which=any_of)
    def reservation_hears(self, which: int) -> None:
        heard = [one for one in self.bus.events if one.routing_key.startswith("restaurant.")]
        if heard:
            self._hear(heard[-1 - which % len(heard)])

    def _tell(self, event: Event, process: RestaurantService | HistoryService) -> None:
        for queue, inbox in process.inboxes.items():
            self.bus.deliver(event, process, queue, inbox)

    def _hear(self, event: Event) -> None:
        """What the inbox and the handler of reservation do."""
        said = envelope_pb2.Envelope.FromString(event.body)
        told = self.known[said.aggregate_id]
        if said.aggregate_version <= told.heard:
            return
        told.heard = said.aggregate_version
        kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(said.type))
        message: Any = kind.FromString(said.payload)
        news = reservation_messages.from_booking(message.booking)
        for move in told.now.on_booking(news, self.time.now):
            self._move(said.aggregate_id, move)

    # Staff.

    @precondition(lambda self: self.known)
    @rule(which=any_of, verb=st.sampled_from(sorted(STAFF)), earlier=st.sampled_from((0, 0, 0, 1)))
    def staff(self, which: int, verb: str, earlier: int) -> None:
        every = self._bookings()
        if every and not self.restaurant.is_dead:
            one = every[-1 - which % len(every)]
            call = getattr(self.restaurant.restaurants, verb)
            revision = one.terms.revision - earlier
            self.restaurant.begin(call(one.restaurant_id, one.reservation_id, revision))

    @precondition(lambda self: self.known)
    @rule(verbs=st.sampled_from((("seat",), ("seat", "complete"), ("mark_no_show",))))
    def everybody_hears_and_guests_come_or_not(self, verbs: tuple[str, ...]) -> None:
        self._all_is_told(backwards=False)
        self.time_passes(max(0, int((DINNER + timedelta(minutes=16) - self.time.now).total_seconds())))
        for verb in verbs:
            self.staff(0, verb, 0)

    # What goes wrong.

    @precondition(lambda self: self.known)
    @rule(at_restaurant=st.booleans(), fault=st.sampled_from(Fault))
    def fail_next_commit(self, at_restaurant: bool, fault: Fault) -> None:
        process: Process = self.restaurant if at_restaurant else self.history
        process.fail_next(fault)

    # What holds.

    @invariant()
    def bookings_follow_their_reservations(self) -> None:
        self.time.loop.run()
        if self.restaurant.is_dead:
            self.restaurant = RestaurantService(self.time)
        if self.history.is_dead:
            self.history = HistoryService(self.time)
        self.bus.collect(self.restaurant)
        for one in self._bookings():
            told = self.known[one.reservation_id]
            present = (one.terms.revision, one.heard_version)
            before = self.revisions.get(one.reservation_id, (0, 0))
            assert all(now >= then for now, then in zip(present, before, strict=True)), "it went back in time"
            self.revisions[one.reservation_id] = present
            assert one.terms.revision <= told.now.terms.revision
            if one.confirmed:
                assert one.terms.revision in told.confirmed, "confirmed, and the reservation never said so"

    def _bookings(self) -> Sequence[Booking]:
        def query(tx: Transaction) -> list[Booking]:
            ids = tx.execute(text("SELECT reservation_id FROM bookings ORDER BY rowid")).scalars().all()
            return [one for key in ids if (one := persistence.booking(tx, key)) is not None]

        return self.restaurant.store.look(query)

    def _all_is_told(self, *, backwards: bool) -> None:
        told = -1
        while told != len(self.bus.events):
            told = len(self.bus.events)
            for event in self.bus.events[::-1] if backwards else self.bus.events[:]:
                if event.routing_key.startswith("reservation."):
                    self._tell(event, self.restaurant)
                else:
                    self._hear(event)
            self.bookings_follow_their_reservations()

    def teardown(self) -> None:
        try:
            self._come_to_rest()
        finally:
            self.time.close()

    def _come_to_rest(self) -> None:
        self.bookings_follow_their_reservations()
        for process in (self.restaurant, self.history):
            process.store.faults.clear()
        self._all_is_told(backwards=self.backwards)
        bookings = {one.reservation_id: one for one in self._bookings()}
        for key, told in self.known.items():
            booking, state = bookings[key], told.now.state
            assert booking.terms.revision == told.now.terms.revision, "other terms"
            assert booking.state in AGREES.get(state, _ENDED), f"{state}, and {booking.state} for staff"
            # Said of a booking that was confirmed, before the reservation's other end was heard of.
            staff_spoke_first = (
                booking.state is BookingState.DECLINED
                if state in AGREES
                else booking.state in _GUESTS_CAME_OR_NOT
            )
            holds = state in reservations.HOLDS_SEATS - {State.PENDING_ACCEPTANCE}
            assert staff_spoke_first or booking.confirmed == holds
        first = self._timeline(backwards=self.backwards)
        assert first.entries == len(self.bus.events), "an event without an entry"
        self.history.do(self.history.store.write(lambda tx: stories.empty(tx, "history.timeline")))
        assert self._timeline(backwards=not self.backwards) == first, "the rebuilt timeline is another one"

    def _timeline(self, *, backwards: bool) -> Digest:
        for event in self.bus.events[::-1] if backwards else self.bus.events:
            self._tell(event, self.history)
        return self.history.do(self.history.timeline.digest()).result()


State = reservations.State
