"""What the restaurant service does. Each change stands in one transaction with the event it causes."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import astuple
from datetime import date, datetime, timedelta
from functools import partial
from itertools import chain
from typing import NamedTuple

from dinemesh.kit import crash
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.quota import Quota
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store, Transaction
from restaurant_svc import domain, persistence
from restaurant_svc.domain import (
    Booking,
    BookingEvent,
    BookingFilter,
    Cursor,
    DineTimes,
    Policy,
    ReservationSnapshot,
    Restaurant,
    Slot,
    SlotsChanged,
    Span,
)
from restaurant_svc.persistence import CreateRequest

# How long a change may take from reading the clock to being visible to a watch. A commit takes milliseconds;
# a writer waits at most 5 s for a busy database.
WATCH_OVERLAP = timedelta(seconds=10)
# Bookings that a watch reads at once: some milliseconds of a reader thread, and as many messages in memory.
WATCH_BATCH = 100
# A guarded update that loses is decided anew. Each loss is another process's gain, so this many are a fault.
MAX_LOSSES = 20

# What costs how much of its restaurant's quota: each call, each slot that it names, and each event that it
# causes, which four services write, send and take. So one call that changes one slot costs 21.
CALL_UNITS = 5
EVENT_UNITS = 15
# Between two groups of slots of one call the writer is left to others for three times as long as a group
# took; the longest pause keeps the largest call (200 groups) within the edge's default deadline of 10 s.
PAUSE_FACTOR = 3.0
LONGEST_PAUSE_SECONDS = 0.025

StaffRule = Callable[[Booking, int, datetime], Booking]


class Restaurants:
    """The use cases. `changed` is told the restaurant_id after each commit that moved one of its bookings;
    `quota` holds what one restaurant may change of its terms and slots, by restaurant_id."""

    def __init__(self, store: Store, outbox: Outbox, changed: Callable[[str], None], quota: Quota) -> None:
        self._store = store
        self._outbox = outbox
        self._changed = changed
        self._quota = quota

    # Restaurants.

    async def list_restaurants(self, after: tuple[str, str] | None, limit: int) -> list[Restaurant]:
        """By (name, restaurant_id), beginning after that place in the order."""
        return await self._store.read(lambda tx: persistence.list_restaurants(tx, after, limit))

    async def get(self, restaurant_id: str) -> Restaurant:
        """The restaurant with its present policy. Raises NOT_FOUND."""
        return await self._store.read(lambda tx: _existing(tx, restaurant_id))

    async def create(
        self, subject: str, request_id: str, name: str, time_zone: str, policy: Policy
    ) -> Restaurant:
        """Once per (subject, request_id); a repetition gets the restaurant as it stands."""
        domain.time_zone(time_zone, "time_zone")
        domain.check_policy(policy)
        body = repr((name, time_zone, astuple(policy)))
        request = CreateRequest(
            subject, request_id, hashlib.sha256(body.encode()).hexdigest(), restaurant_id=str(uuid.uuid4())
        )
        return await self._store.write(lambda tx: self._create(tx, request, name, time_zone, policy))

    def _create(
        self, tx: Transaction, request: CreateRequest, name: str, time_zone: str, policy: Policy
    ) -> Restaurant:
        first = persistence.remember_request(tx, request)
        if first.body_hash != request.body_hash:
            raise Refusal("REQUEST_ID_REUSED", "This request_id was used for another restaurant.")
        if first is not request:
            return _existing(tx, first.restaurant_id)
        restaurant = Restaurant(
            request.restaurant_id, name, time_zone, policy, version=1, create_time=tx.now, update_time=tx.now
        )
        persistence.insert_restaurant(tx, restaurant)
        self._outbox.add(tx, domain.RestaurantCreated(restaurant))
        return restaurant

    async def update(
        self, restaurant_id: str, etag: str, name: str | None, policy: Policy | None
    ) -> Restaurant:
        """None keeps what is there."""
        if policy is not None:
            domain.check_policy(policy)
        async with self._quota.turn(restaurant_id) as turn:
            turn.pay(CALL_UNITS + EVENT_UNITS)
            return await self._store.write(lambda tx: self._update(tx, restaurant_id, etag, name, policy))

    def _update(
        self, tx: Transaction, restaurant_id: str, etag: str, name: str | None, policy: Policy | None
    ) -> Restaurant:
        before = _existing(tx, restaurant_id)
        if etag != before.etag:
            raise _etag_mismatch()
        after = domain.updated(before, name=name, policy=policy, now=tx.now)
        if after is before:
            return before
        if not persistence.update_restaurant(tx, after, expected_version=before.version):
            raise _etag_mismatch()
        self._outbox.add(tx, domain.RestaurantUpdated(after))
        return after

    # Slots.

    async def open_slots(self, restaurant_id: str, span: Span, capacity: int) -> Sequence[Slot]:
        """Sets the capacity of these slots, some at a time; returns them as they stand."""

        def plan(tx: Transaction) -> DineTimes:
            restaurant = _existing(tx, restaurant_id)
            domain.check_span(span, domain.local_day(restaurant.zone, tx.now))
            days = domain.dine_times_to_open(restaurant, span)
            counts = persistence.slots_by_day(tx, restaurant_id, span.first_date, span.last_date)
            for local_date, moments in days.items():
                known = counts.get(local_date, 0)
                if known + len(moments) > domain.MAX_SLOTS_OF_DAY:
                    new = len(moments) - len(persistence.standing(tx, restaurant_id, moments))
                    if new and known + new > domain.MAX_SLOTS_OF_DAY:
                        raise domain.too_many_slots_of_day(local_date)
            return days

        def change(part: DineTimes, tx: Transaction) -> _Changed:
            events = 0
            for local_date, moments in part.items():
                changed = persistence.set_capacity(tx, restaurant_id, local_date, moments, capacity)
                events += self._tell_slots(tx, restaurant_id, local_date, changed)
                if any(slot.version == 1 for slot in changed):
                    # Again, now that the day is held: another call may have opened others meanwhile.
                    counts = persistence.slots_by_day(tx, restaurant_id, local_date, local_date)
                    if counts[local_date] > domain.MAX_SLOTS_OF_DAY:
                        raise domain.too_many_slots_of_day(local_date)
            return _Changed(persistence.standing(tx, restaurant_id, _all(part)), events)

        return await self._change_slots(restaurant_id, plan, change)

    async def close_slots(self, restaurant_id: str, span: Span) -> Sequence[Slot]:
        """Takes these slots (`times` None: all of the days) off sale, some at a time; returns those that
        exist."""

        def plan(tx: Transaction) -> DineTimes:
            restaurant = _existing(tx, restaurant_id)
            domain.check_span(span, domain.local_day(restaurant.zone, tx.now))
            if span.times is not None:
                return domain.dine_times(restaurant, span)
            days = (span.first_date, span.last_date)
            found = persistence.slots_between(tx, restaurant_id, *days, most=domain.MAX_SLOTS + 1)
            if sum(map(len, found.values())) > domain.MAX_SLOTS:
                raise domain.too_many_slots()
            return found

        def change(part: DineTimes, tx: Transaction) -> _Changed:
            events = 0
            for local_date, moments in part.items():
                changed = persistence.close(tx, restaurant_id, moments)
                events += self._tell_slots(tx, restaurant_id, local_date, changed)
            return _Changed(persistence.standing(tx, restaurant_id, _all(part)), events)

        return await self._change_slots(restaurant_id, plan, change)

    async def _change_slots(
        self,
        restaurant_id: str,
        plan: Callable[[Transaction], DineTimes],
        change: Callable[[DineTimes, Transaction], _Changed],
    ) -> Sequence[Slot]:
        # Thousands of time zone sums belong into a reader thread, and thousands of slots into many
        # transactions: bookings wait behind each of them, here and where they are told. What is cut off in
        # the middle is completed by a repetition.
        stand: list[Slot] = []
        async with self._quota.turn(restaurant_id) as turn:
            turn.pay(CALL_UNITS)
            days = await self._store.read(plan)
            turn.pay(sum(map(len, days.values())))
            pause = 0.0
            for part in domain.groups(days):
                await asyncio.sleep(pause)
                begun = time.monotonic()
                changed = await self._store.write(partial(change, part))
                stand += changed.stand
                turn.pay(EVENT_UNITS * changed.events)
                pause = min((time.monotonic() - begun) * PAUSE_FACTOR, LONGEST_PAUSE_SECONDS)
        return stand

    def _tell_slots(
        self, tx: Transaction, restaurant_id: str, local_date: date, changed: Sequence[Slot]
    ) -> int:
        """How many events it took."""
        if not changed:
            return 0
        number = persistence.count_change(tx, restaurant_id, local_date)
        self._outbox.add(tx, SlotsChanged(restaurant_id, local_date, number, tuple(changed)))
        return 1

    # Bookings.

    async def list_bookings(
        self, which: BookingFilter, after: tuple[datetime, str] | None, limit: int
    ) -> list[Booking]:
        """By (dine time, reservation_id), beginning after that place in the order."""

        def query(tx: Transaction) -> list[Booking]:
            _existing(tx, which.restaurant_id)
            return persistence.list_bookings(tx, which, after, limit)

        return await self._store.read(query)

    async def watch(self, restaurant_id: str, cursor: Cursor | None) -> BookingFeed:
        """A restaurant's bookings from the cursor on; without one, those that are open, then each change."""

        def query(tx: Transaction) -> Cursor:
            _existing(tx, restaurant_id)
            return cursor or Cursor(tx.now, domain.EARLIEST, None)

        return BookingFeed(self._store, restaurant_id, await self._store.read(query))

    async def accept(self, restaurant_id: str, reservation_id: str, revision: int) -> Booking:
        """Staff say yes to the terms of `revision`. Raises NOT_FOUND also for another restaurant's booking,
        and what `domain.accept` refuses."""
        return await self._staff(
            restaurant_id, reservation_id, revision, domain.accept, domain.BookingAccepted
        )

    async def decline(self, restaurant_id: str, reservation_id: str, revision: int) -> Booking:
        """Staff say no, or cancel what they had accepted. Raises NOT_FOUND, and what `domain.decline`
        refuses."""
        return await self._staff(
            restaurant_id, reservation_id, revision, domain.decline, domain.BookingDeclined
        )

    async def seat(self, restaurant_id: str, reservation_id: str, revision: int) -> Booking:
        """The guests are here. Raises NOT_FOUND, and what `domain.seat` refuses, TOO_EARLY among it."""
        return await self._staff(restaurant_id, reservation_id, revision, domain.seat, domain.BookingSeated)

    async def mark_no_show(self, restaurant_id: str, reservation_id: str, revision: int) -> Booking:
        """The guests did not come. Raises NOT_FOUND, and what `domain.mark_no_show` refuses, TOO_EARLY among
        it."""
        return await self._staff(
            restaurant_id, reservation_id, revision, domain.mark_no_show, domain.BookingNoShowMarked
        )

    async def complete(self, restaurant_id: str, reservation_id: str, revision: int) -> Booking:
        """The guests have left. Raises NOT_FOUND, and what `domain.complete` refuses."""
        return await self._staff(
            restaurant_id, reservation_id, revision, domain.complete, domain.BookingCompleted
        )

    async def _staff(
        self,
        restaurant_id: str,
        reservation_id: str,
        revision: int,
        rule: StaffRule,
        event: Callable[[Booking], BookingEvent],
    ) -> Booking:
        def change(tx: Transaction) -> Booking:
            for _ in range(MAX_LOSSES):
                before = persistence.booking(tx, reservation_id)
                if before is None or before.restaurant_id != restaurant_id:
                    raise Refusal("NOT_FOUND", "There is no such booking.")
                after = rule(before, revision, tx.now)
                if after is before:
                    return before
                if persistence.move_booking(tx, before, after):
                    self._tell(tx, after, event(after))
                    return after
            raise _too_many_losses()

        return await self._store.write(change)

    def on_reservation(self, tx: Transaction, snapshot: ReservationSnapshot) -> None:
        """A reservation said how it stands. An automatic restaurant accepts in this same transaction."""
        for _ in range(MAX_LOSSES):
            before = persistence.booking(tx, snapshot.reservation_id)
            after = domain.on_reservation(before, snapshot, tx.now)
            if after is None or after is before:
                return
            if before is None:
                stored = persistence.insert_booking(tx, after)
            else:
                stored = persistence.move_booking(tx, before, after)
            if stored:
                self._tell(tx, after, domain.booking_event(before, after))
                return
        raise _too_many_losses()

    def _tell(self, tx: Transaction, booking: Booking, event: BookingEvent | None) -> None:
        if __debug__:
            crash.point("booking.moved", booking.state.value)
        if event is not None:
            self._outbox.add(tx, event)
        tx.after_commit(lambda: self._changed(booking.restaurant_id))


class _Changed(NamedTuple):
    """What one group of slots came to."""

    stand: list[Slot]
    events: int


class BookingFeed:
    """A restaurant's bookings as they change, for one watch, a page at a time."""

    def __init__(self, store: Store, restaurant_id: str, cursor: Cursor) -> None:
        self._store = store
        self._restaurant_id = restaurant_id
        self._cursor = cursor
        # Changes of the last while are looked at again, since a transaction that is under way may still add
        # to them: how far this round has come, and what it need not show again.
        self._round: _Place | None = None
        self._seen: dict[str, Booking] = {}

    async def poll(self) -> list[tuple[Booking, Cursor]] | None:
        """What is new in the next page, each with the cursor to go on from; None where nothing is, and there
        is another page."""
        if self._cursor.begin_time is not None:
            return await self._open(self._cursor, self._cursor.begin_time)
        return await self._changed(_place(self._cursor))

    async def _open(self, cursor: Cursor, begin_time: datetime) -> list[tuple[Booking, Cursor]] | None:
        which = BookingFilter(self._restaurant_id, states=domain.OPEN_STATES)
        after = _place(cursor)
        found = await self._store.read(lambda tx: persistence.list_bookings(tx, which, after, WATCH_BATCH))
        changes = begin_time - WATCH_OVERLAP
        self._remember(found, changes)
        shown = [(one, Cursor(begin_time, one.terms.dine_time, one.reservation_id)) for one in found]
        # What changes meanwhile moves in this order, and may be passed over; the changes since then follow.
        self._cursor = shown[-1][1] if len(found) == WATCH_BATCH else Cursor(None, changes, None)
        return shown or None

    async def _changed(self, settled: _Place) -> list[tuple[Booking, Cursor]] | None:
        start = self._round or settled

        def query(tx: Transaction) -> tuple[datetime, list[Booking]]:
            return tx.now, persistence.bookings_changed(tx, self._restaurant_id, start, WATCH_BATCH)

        now, found = await self._store.read(query)
        horizon = now - WATCH_OVERLAP, ""
        fresh = [one for one in found if not self._shown(one)]
        shown = [
            (one, _changes(max(settled, min(horizon, (one.update_time, one.reservation_id)))))
            for one in fresh
        ]
        more = len(found) == WATCH_BATCH
        last = (found[-1].update_time, found[-1].reservation_id) if more else horizon
        self._round = last if more else None
        self._cursor = _changes(max(settled, min(horizon, last)))
        self._remember(found, self._cursor.time)
        return shown or (None if more else [])

    def _shown(self, booking: Booking) -> bool:
        seen = self._seen.get(booking.reservation_id)
        return seen is not None and seen.version == booking.version

    def _remember(self, found: Sequence[Booking], since: datetime) -> None:
        self._seen |= {one.reservation_id: one for one in found}
        self._seen = {key: one for key, one in self._seen.items() if one.update_time >= since}


_Place = tuple[datetime, str]
"""A place in an order by a time and then by reservation_id."""


def _place(cursor: Cursor) -> _Place:
    return cursor.time, cursor.reservation_id or ""


def _changes(place: _Place) -> Cursor:
    return Cursor(None, place[0], place[1] or None)


def _existing(tx: Transaction, restaurant_id: str) -> Restaurant:
    restaurant = persistence.restaurant(tx, restaurant_id)
    if restaurant is None:
        raise Refusal("NOT_FOUND", "There is no such restaurant.")
    return restaurant


def _all(days: DineTimes) -> list[datetime]:
    return list(chain.from_iterable(days.values()))


def _etag_mismatch() -> Refusal:
    return Refusal("ETAG_MISMATCH", "The restaurant has changed since it was read.")


def _too_many_losses() -> Exception:
    return RuntimeError(f"a guarded update lost {MAX_LOSSES} times in a row")
