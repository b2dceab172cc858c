"""What the restaurant service does, on a real database of each engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import permutations
from typing import Any, Protocol

import pytest

from dinemesh.kit.quota import Quota
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store, Transaction
from restaurant_svc import domain, persistence
from restaurant_svc.domain import (
    Acceptance,
    Booking,
    BookingFilter,
    BookingState,
    Cursor,
    ReservationSnapshot,
    ReservationState,
    Restaurant,
    Span,
)
from restaurant_svc.usecases import WATCH_BATCH, BookingFeed, Restaurants
from tests.restaurant.fixtures import (
    POLICY,
    booking,
    evening,
    in_days,
    new_id,
    reservation,
    service,
    tell,
    told,
    told_types,
    without_times,
)
from tests.support.postgres import PostgresServer

PENDING, CONFIRMED = ReservationState.PENDING_ACCEPTANCE, ReservationState.CONFIRMED
CANCELLED = ReservationState.CANCELLED


@pytest.fixture
def restaurants(store: Store) -> Restaurants:
    return service(store)


async def opened(
    restaurants: Restaurants, name: str = "Zum Anker", zone: str = "Europe/Berlin"
) -> Restaurant:
    return await restaurants.create("root", new_id(), name, zone, POLICY)


class Telling(Protocol):
    def __call__(self, version: int, state: ReservationState, revision: int = 1) -> ReservationSnapshot: ...


def about(
    restaurant_id: str, reservation_id: str, acceptance: Acceptance = Acceptance.AUTO, **more: timedelta
) -> Telling:
    """Makes events of one reservation."""

    def event(version: int, state: ReservationState, revision: int = 1) -> ReservationSnapshot:
        return reservation(
            version,
            state,
            revision=revision,
            reservation_id=reservation_id,
            restaurant_id=restaurant_id,
            acceptance=acceptance,
            **more,
        )

    return event


# --- restaurants


async def test_a_restaurant_is_created_once_however_often_it_is_asked_for(
    store: Store, restaurants: Restaurants
) -> None:
    request_id = new_id()
    answers = await asyncio.gather(
        *(restaurants.create("root", request_id, "Zum Anker", "Europe/Berlin", POLICY) for _ in range(20))
    )
    assert len({one.restaurant_id for one in answers}) == 1
    assert await told_types(store) == ["RestaurantCreated"]
    assert len(await restaurants.list_restaurants(None, 10)) == 1


async def test_a_request_id_with_another_body_is_refused(restaurants: Restaurants) -> None:
    request_id = new_id()
    await restaurants.create("root", request_id, "Zum Anker", "Europe/Berlin", POLICY)
    for name, zone, policy in [
        ("Anker", "Europe/Berlin", POLICY),
        ("Zum Anker", "Europe/Paris", POLICY),
        ("Zum Anker", "Europe/Berlin", replace(POLICY, max_party_size=8)),
    ]:
        with pytest.raises(Refusal) as refused:
            await restaurants.create("root", request_id, name, zone, policy)
        assert refused.value.reason == "REQUEST_ID_REUSED"
    assert (await restaurants.create("other", request_id, "Anker", "Europe/Berlin", POLICY)).name == "Anker"


async def test_a_restaurant_of_before_with_another_currency_is_kept_and_can_be_mended(
    store: Store, restaurants: Restaurants
) -> None:
    first = await opened(restaurants)
    before = replace(first, policy=replace(POLICY, currency="EUE"), version=2)
    assert await store.write(lambda tx: persistence.update_restaurant(tx, before, expected_version=1))
    assert await restaurants.get(first.restaurant_id) == before
    named = await restaurants.update(first.restaurant_id, before.etag, "Anker", None)
    assert (named.name, named.policy) == ("Anker", before.policy)
    with pytest.raises(Refusal) as refused:
        await restaurants.update(
            first.restaurant_id, named.etag, None, replace(before.policy, max_party_size=3)
        )
    (wrong,) = refused.value.violations
    assert wrong.field == "policy.deposit_per_person.currency_code"
    assert (await restaurants.update(first.restaurant_id, named.etag, None, POLICY)).policy == POLICY


async def test_an_update_needs_the_current_etag(store: Store, restaurants: Restaurants) -> None:
    first = await opened(restaurants)
    second = await restaurants.update(first.restaurant_id, first.etag, "Anker", None)
    with pytest.raises(Refusal) as refused:
        await restaurants.update(first.restaurant_id, first.etag, "Late", None)
    assert refused.value.reason == "ETAG_MISMATCH"
    assert await restaurants.get(first.restaurant_id) == second
    (_, (envelope, event)) = await told(store)
    assert (envelope.aggregate_id, envelope.aggregate_version) == (first.restaurant_id, 2)
    assert event.restaurant.name == "Anker"
    assert event.restaurant.policy.max_party_size == 20


async def test_of_two_updates_at_once_one_wins(restaurants: Restaurants) -> None:
    first = await opened(restaurants)
    outcomes = await asyncio.gather(
        *(restaurants.update(first.restaurant_id, first.etag, f"Name {n}", None) for n in range(5)),
        return_exceptions=True,
    )
    winners = [one for one in outcomes if isinstance(one, Restaurant)]
    assert len(winners) == 1
    assert await restaurants.get(first.restaurant_id) == winners[0]


async def test_restaurants_are_listed_by_name_page_by_page(restaurants: Restaurants) -> None:
    for name in ("b", "Ä", "a", "B", "a"):
        await opened(restaurants, name)
    listed: list[Restaurant] = []
    after: tuple[str, str] | None = None
    while page := await restaurants.list_restaurants(after, 2):
        listed += page
        after = (page[-1].name, page[-1].restaurant_id)
    assert [one.name for one in listed] == ["B", "a", "a", "b", "Ä"]
    assert listed == sorted(listed, key=lambda one: (one.name, one.restaurant_id))


# --- slots


async def slots_told(store: Store) -> list[tuple[str, list[tuple[int, int]]]]:
    """The events about slots: aggregate, and (capacity, version) of each slot that is named."""
    return [
        (envelope.aggregate_id, [(one.capacity, one.version) for one in event.slots])
        for envelope, event in await told(store)
        if envelope.type.endswith("SlotsChanged")
    ]


async def test_what_changed_is_told_and_nothing_else(store: Store, restaurants: Restaurants) -> None:
    restaurant = await opened(restaurants)
    key = restaurant.restaurant_id
    slots = await restaurants.open_slots(key, evening(), 20)
    assert [(one.capacity, one.version) for one in slots] == [(20, 1), (20, 1)]
    assert await restaurants.open_slots(key, evening(), 20) == slots
    (wider,) = await restaurants.open_slots(key, evening(3, time(19)), 30)
    assert (wider.capacity, wider.version) == (30, 2)
    day = f"{key}/{evening().first_date.isoformat()}"
    assert await slots_told(store) == [(f"{day}/1", [(20, 1), (20, 1)]), (f"{day}/2", [(30, 2)])]
    (_, _, (envelope, last)) = await told(store)
    assert [one.dine_time.ToDatetime(UTC) for one in last.slots] == [wider.dine_time]
    assert envelope.aggregate_version == 1, "no later event replaces it"


async def test_a_change_of_many_slots_is_made_and_told_in_parts(
    store: Store, restaurants: Restaurants
) -> None:
    key = (await opened(restaurants)).restaurant_id
    quarters = [time(n // 4, n % 4 * 15) for n in range(96)]
    whole_days = Span(in_days(3), in_days(4), tuple(quarters))
    slots = await restaurants.open_slots(key, whole_days, 10)
    assert len(slots) == 2 * 96 and slots == sorted(slots, key=lambda one: one.dine_time)
    told_of = await slots_told(store)
    assert sum(len(named) for _, named in told_of) == 2 * 96
    assert max(len(named) for _, named in told_of) <= domain.SLOTS_AT_ONCE
    assert len({aggregate for aggregate, _ in told_of}) == len(told_of) > 2
    closed = await restaurants.close_slots(key, replace(whole_days, times=None))
    assert [one.dine_time for one in closed] == [one.dine_time for one in slots]
    assert {(one.capacity, one.version) for one in closed} == {(0, 2)}


async def test_a_day_has_so_many_slots_and_no_more(
    store: Store, restaurants: Restaurants, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (await opened(restaurants)).restaurant_id
    monkeypatch.setattr(domain, "MAX_SLOTS_OF_DAY", 3)
    await restaurants.open_slots(key, evening(3, time(18), time(19), time(20)), 10)
    with pytest.raises(Refusal) as refused:
        await restaurants.open_slots(key, evening(2, time(20), time(21), last=3), 10)
    assert [one.field for one in refused.value.violations] == ["times"]
    assert len(await slots_told(store)) == 1, "nothing is half done"
    await restaurants.close_slots(key, evening(3, time(18)))
    with pytest.raises(Refusal):
        await restaurants.open_slots(key, evening(3, time(21)), 10)
    # A day that has more, from before there was a limit, keeps them, and can be opened and closed.
    monkeypatch.setattr(domain, "MAX_SLOTS_OF_DAY", 2)
    assert len(await restaurants.open_slots(key, evening(3, time(18), time(19)), 12)) == 2
    assert len(await restaurants.close_slots(key, replace(evening(3), times=None))) == 3


async def test_two_calls_that_together_open_too_many_slots_are_not_both_taken(
    store: Store, restaurants: Restaurants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is looked at again where the day is held: what was read before may have changed."""
    key = (await opened(restaurants)).restaurant_id
    monkeypatch.setattr(domain, "MAX_SLOTS_OF_DAY", 3)
    monkeypatch.setattr(persistence, "slots_by_day", _none_at_first(persistence.slots_by_day))
    await restaurants.open_slots(key, evening(3, time(18), time(19)), 10)
    with pytest.raises(Refusal) as refused:
        await restaurants.open_slots(key, evening(3, time(20), time(21)), 10)
    assert refused.value.violations[0].field == "times"
    assert [len(named) for _, named in await slots_told(store)] == [2]


def _none_at_first(count: Callable[..., dict[date, int]]) -> Callable[..., dict[date, int]]:
    """As a plan sees a day on which another call is about to open slots."""

    def counted(tx: Transaction, *arguments: Any) -> dict[date, int]:
        return {} if tx._read_only else count(tx, *arguments)

    return counted


async def test_all_slots_of_a_day_means_those_of_ten_thousand_at_most(
    restaurants: Restaurants, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (await opened(restaurants)).restaurant_id
    await restaurants.open_slots(key, evening(3, last=4), 10)
    monkeypatch.setattr(domain, "MAX_SLOTS", 3)
    with pytest.raises(Refusal) as refused:
        await restaurants.close_slots(key, replace(evening(3, last=4), times=None))
    assert refused.value.violations[0].field == "last_date"
    assert len(await restaurants.close_slots(key, replace(evening(3), times=None))) == 2


async def test_each_day_of_a_span_is_an_event_of_its_own(store: Store, restaurants: Restaurants) -> None:
    restaurant = await opened(restaurants)
    slots = await restaurants.open_slots(restaurant.restaurant_id, evening(1, last=4), 10)
    assert len(slots) == 8
    assert (await told_types(store)).count("SlotsChanged") == 4


async def test_closing_takes_off_what_is_open_and_passes_over_the_rest(
    store: Store, restaurants: Restaurants
) -> None:
    restaurant = await opened(restaurants)
    key = restaurant.restaurant_id
    await restaurants.open_slots(key, evening(), 10)
    (closed,) = await restaurants.close_slots(key, evening(3, time(18), time(21), time(20, 7), last=5))
    assert (closed.capacity, closed.version) == (0, 2)
    assert (await told_types(store)).count("SlotsChanged") == 2
    rest = await restaurants.close_slots(key, replace(evening(), times=None))
    assert [one.capacity for one in rest] == [0, 0]
    assert await restaurants.close_slots(key, replace(evening(), times=None)) == rest
    assert await restaurants.close_slots(key, replace(evening(), times=())) == []
    assert (await told_types(store)).count("SlotsChanged") == 3


async def test_a_skipped_local_time_opens_nothing(store: Store, restaurants: Restaurants) -> None:
    restaurant = await opened(restaurants)
    with pytest.raises(Refusal) as refused:
        await restaurants.open_slots(
            restaurant.restaurant_id, evening(1, time(19), time(2, 30), last=366), 10
        )
    assert [one.field for one in refused.value.violations] == ["times[1]"]
    assert await told_types(store) == ["RestaurantCreated"]


async def test_openings_at_the_same_time_lose_nothing(store: Store, restaurants: Restaurants) -> None:
    restaurant = await opened(restaurants)
    key = restaurant.restaurant_id
    quarters = [time(hour, minute) for hour in (18, 19) for minute in (0, 15, 30, 45)]
    await asyncio.gather(*(restaurants.open_slots(key, evening(3, at), 10) for at in quarters))
    assert [named for _, named in await slots_told(store)] == [[(10, 1)]] * 8
    assert len(await restaurants.close_slots(key, replace(evening(3), times=None))) == 8


# --- what one restaurant may cost


async def test_a_restaurant_that_changes_too_much_waits_and_the_others_do_not(store: Store) -> None:
    clock = 100.0
    quota = Quota(at_once=4, per_second=10, burst=50, clock=lambda: clock)
    restaurants = service(store, quota=quota)
    busy, other = [(await opened(restaurants)).restaurant_id for _ in range(2)]
    seats = 0
    with pytest.raises(Refusal) as refused:
        for seats in range(1, 100):
            await restaurants.open_slots(busy, evening(), seats)
    # Each call costs 5, 2 for its slots and 15 for its event; the one that empties the bucket is still done.
    assert (refused.value.reason, seats) == ("TRY_AGAIN_LATER", 4)
    assert refused.value.retry_after is not None and refused.value.retry_after >= (66 - 50) / 10
    for again in (
        restaurants.close_slots(busy, evening()),
        restaurants.update(busy, "1", "Anker", None),
        restaurants.open_slots(busy, evening(), 99),
    ):
        with pytest.raises(Refusal):
            await again
    assert {one.capacity for one in await restaurants.open_slots(other, evening(), 7)} == {7}
    assert {one.capacity for one in await restaurants.open_slots(other, evening(), 8)} == {8}
    clock += refused.value.retry_after
    assert {one.version for one in await restaurants.open_slots(busy, evening(), 99)} == {4}


async def test_calls_of_one_restaurant_take_their_turns_and_few_of_them_wait(store: Store) -> None:
    restaurants = service(store, quota=Quota(at_once=3, per_second=1e9, burst=1e9))
    key = (await opened(restaurants)).restaurant_id
    outcomes = await asyncio.gather(
        *(restaurants.open_slots(key, evening(3, time(hour)), 10) for hour in range(10, 20)),
        return_exceptions=True,
    )
    refusals = [one for one in outcomes if isinstance(one, Refusal)]
    assert len(refusals) == 7
    assert {one.reason for one in refusals} == {"TRY_AGAIN_LATER"}
    assert all(one.retry_after is not None for one in refusals)
    assert len(await restaurants.open_slots(key, evening(3, time(10)), 10)) == 1


# --- bookings: what is heard


async def test_an_automatic_restaurant_accepts_in_the_same_transaction(
    store: Store, restaurants: Restaurants
) -> None:
    event = about(new_id(), key := new_id())
    await tell(store, restaurants, event(1, PENDING))
    found = await booking(store, key)
    assert (found.state, found.confirmed) == (BookingState.ACCEPTED, False)
    ((envelope, message),) = await told(store)
    assert (envelope.reservation_id, envelope.customer_id, envelope.aggregate_id) == (key, "alice", key)
    assert message.DESCRIPTOR.name == "BookingAccepted"
    assert (message.booking.revision, message.booking.party_size) == (1, 2)
    await tell(store, restaurants, event(2, CONFIRMED))
    assert (await booking(store, key)).confirmed
    assert await told_types(store) == ["BookingAccepted"]


async def test_new_terms_are_accepted_under_their_own_revision(
    store: Store, restaurants: Restaurants
) -> None:
    event = about(new_id(), new_id())
    await tell(store, restaurants, event(1, PENDING), event(2, CONFIRMED), event(3, PENDING, 2))
    revisions = [message.booking.revision for _, message in await told(store)]
    versions = [envelope.aggregate_version for envelope, _ in await told(store)]
    assert revisions == [1, 2]
    assert versions == sorted(set(versions))


SEATED, COMPLETED = ReservationState.SEATED, ReservationState.COMPLETED
STORIES = {
    "modified": [(1, PENDING, 1), (2, CONFIRMED, 1), (3, PENDING, 2), (4, CONFIRMED, 2)],
    "cancelled": [(1, PENDING, 1), (2, CONFIRMED, 1), (3, PENDING, 2), (4, CANCELLED, 2)],
    "seated": [(1, PENDING, 1), (2, CONFIRMED, 1), (3, SEATED, 1), (4, COMPLETED, 1)],
    "missed": [(1, PENDING, 1), (2, CONFIRMED, 1), (3, ReservationState.NO_SHOW, 1)],
    "too late": [(1, PENDING, 1), (2, ReservationState.DECLINED, 1)],
}


@pytest.mark.parametrize("acceptance", list(Acceptance))
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_every_order_of_a_reservations_events_with_duplicates_ends_alike(
    store: Store,
    restaurants: Restaurants,
    story: list[tuple[int, ReservationState, int]],
    acceptance: Acceptance,
) -> None:
    restaurant_id = new_id()
    make = about(restaurant_id, "", acceptance)
    events = [make(*step) for step in story]
    ends = set()
    for order in permutations(events):
        key = new_id()
        named = [replace(event, reservation_id=key) for event in order]
        await tell(store, restaurants, *named)
        end = await booking(store, key)
        count = len(await told(store))
        await tell(store, restaurants, *named, *reversed(named))
        assert await booking(store, key) == end
        assert len(await told(store)) == count
        ends.add(replace(without_times(end), reservation_id=""))
    assert len(ends) == 1


async def test_the_withdrawal_may_be_the_first_thing_heard(store: Store, restaurants: Restaurants) -> None:
    event = about(new_id(), key := new_id())
    await tell(store, restaurants, event(2, CANCELLED), event(1, PENDING))
    assert (await booking(store, key)).state is BookingState.WITHDRAWN
    assert await told_types(store) == ["BookingWithdrawn"]


async def test_an_attempt_that_failed_is_no_booking(store: Store, restaurants: Restaurants) -> None:
    event = about(new_id(), new_id())
    await tell(store, restaurants, event(1, ReservationState.FAILED))
    assert await told_types(store) == []


# --- bookings: what staff say


async def test_staff_accept_seat_and_complete(store: Store, restaurants: Restaurants) -> None:
    restaurant_id, key = new_id(), new_id()
    event = about(restaurant_id, key, Acceptance.MANUAL)
    await tell(store, restaurants, event(1, PENDING))
    for _ in range(2):
        accepted = await restaurants.accept(restaurant_id, key, 1)
    assert accepted.state is BookingState.ACCEPTED
    with pytest.raises(Refusal) as refused:
        await restaurants.seat(restaurant_id, key, 1)
    assert refused.value.reason == "BOOKING_STATE"
    await tell(store, restaurants, event(2, CONFIRMED))
    for _ in range(2):
        await restaurants.seat(restaurant_id, key, 1)
        await restaurants.complete(restaurant_id, key, 1)
    assert (await booking(store, key)).state is BookingState.COMPLETED
    assert await told_types(store) == [
        "BookingReceived",
        "BookingAccepted",
        "BookingSeated",
        "BookingCompleted",
    ]


async def test_a_decline_after_the_acceptance_is_told(store: Store, restaurants: Restaurants) -> None:
    restaurant_id, key = new_id(), new_id()
    event = about(restaurant_id, key)
    await tell(store, restaurants, event(1, PENDING), event(2, CONFIRMED))
    for _ in range(2):
        await restaurants.decline(restaurant_id, key, 1)
    await tell(store, restaurants, event(3, CANCELLED))
    assert (await booking(store, key)).state is BookingState.DECLINED
    assert await told_types(store) == ["BookingAccepted", "BookingDeclined"]


async def test_a_late_acceptance_is_refused_without_effect(store: Store, restaurants: Restaurants) -> None:
    restaurant_id, key = new_id(), new_id()
    event = about(restaurant_id, key, Acceptance.MANUAL, accept_in=timedelta(seconds=-1))
    await tell(store, restaurants, event(1, PENDING))
    with pytest.raises(Refusal) as refused:
        await restaurants.accept(restaurant_id, key, 1)
    assert refused.value.reason == "ACCEPTANCE_EXPIRED"
    assert (await booking(store, key)).state is BookingState.RECEIVED
    assert await told_types(store) == ["BookingReceived"]


async def test_a_stale_revision_is_refused_without_effect(store: Store, restaurants: Restaurants) -> None:
    restaurant_id, key = new_id(), new_id()
    event = about(restaurant_id, key, Acceptance.MANUAL)
    await tell(store, restaurants, event(1, PENDING), event(2, PENDING, 2))
    before = await booking(store, key)
    for call in (restaurants.accept, restaurants.decline, restaurants.seat, restaurants.mark_no_show):
        with pytest.raises(Refusal) as refused:
            await call(restaurant_id, key, 1)
        assert refused.value.reason == "BOOKING_REVISION"
    assert await booking(store, key) == before


async def test_a_no_show_waits_for_the_grace(store: Store, restaurants: Restaurants) -> None:
    restaurant_id, early, late = new_id(), new_id(), new_id()
    for key, dine_in in ((early, timedelta(minutes=-10)), (late, timedelta(minutes=-20))):
        event = about(restaurant_id, key, dine_in=dine_in)
        await tell(store, restaurants, event(1, PENDING), event(2, CONFIRMED))
    with pytest.raises(Refusal) as refused:
        await restaurants.mark_no_show(restaurant_id, early, 1)
    assert refused.value.reason == "TOO_EARLY"
    assert (await restaurants.mark_no_show(restaurant_id, late, 1)).state is BookingState.NO_SHOW


async def test_of_accept_and_decline_at_once_the_answer_that_came_last_may_only_be_the_no(
    store: Store, restaurants: Restaurants
) -> None:
    restaurant_id, key = new_id(), new_id()
    await tell(store, restaurants, about(restaurant_id, key, Acceptance.MANUAL)(1, PENDING))
    await asyncio.gather(
        *(restaurants.accept(restaurant_id, key, 1) for _ in range(3)),
        *(restaurants.decline(restaurant_id, key, 1) for _ in range(3)),
        return_exceptions=True,
    )
    assert (await booking(store, key)).state is BookingState.DECLINED
    assert (await told_types(store)).count("BookingDeclined") == 1


async def test_a_booking_of_another_restaurant_is_not_found(store: Store, restaurants: Restaurants) -> None:
    key = new_id()
    await tell(store, restaurants, about(new_id(), key)(1, PENDING))
    for restaurant_id, reservation_id in ((new_id(), key), (new_id(), new_id())):
        with pytest.raises(Refusal) as refused:
            await restaurants.decline(restaurant_id, reservation_id, 1)
        assert refused.value.reason == "NOT_FOUND"
    assert (await booking(store, key)).state is BookingState.ACCEPTED


# --- bookings: list and watch


async def test_bookings_are_listed_by_time_and_filtered(store: Store, restaurants: Restaurants) -> None:
    mine, other = await opened(restaurants), await opened(restaurants)
    keys = [new_id() for _ in range(5)]
    for number, key in enumerate(keys):
        event = about(mine.restaurant_id, key, dine_in=timedelta(hours=number))
        await tell(store, restaurants, event(1, PENDING))
    await tell(store, restaurants, about(other.restaurant_id, new_id())(1, PENDING))
    await restaurants.decline(mine.restaurant_id, keys[1], 1)

    async def listed(which: BookingFilter, limit: int = 10) -> list[str]:
        return [one.reservation_id for one in await restaurants.list_bookings(which, None, limit)]

    everything = BookingFilter(mine.restaurant_id)
    assert await listed(everything) == keys
    assert await listed(replace(everything, states={BookingState.DECLINED})) == [keys[1]]
    third = await booking(store, keys[2])
    start, end = third.terms.dine_time, third.terms.dine_time + timedelta(hours=1)
    assert await listed(replace(everything, start=start)) == keys[2:]
    assert await listed(replace(everything, end=start)) == keys[:2]
    assert await listed(replace(everything, start=start, end=end)) == [keys[2]]
    after = (third.terms.dine_time, third.reservation_id)
    rest = await restaurants.list_bookings(everything, after, 10)
    assert [one.reservation_id for one in rest] == keys[3:]


async def drained(feed: BookingFeed) -> list[tuple[Booking, Cursor]]:
    """What a watch shows until it has caught up; no page is larger than it may be."""
    found: list[tuple[Booking, Cursor]] = []
    while (page := await feed.poll()) != []:
        assert len(page or ()) <= WATCH_BATCH
        found += page or ()
    return found


async def test_a_feed_begins_with_what_is_open_and_goes_on_with_each_change(
    store: Store,
) -> None:
    woken: list[str] = []
    restaurants = service(store, woken.append)
    restaurant_id = (await opened(restaurants)).restaurant_id
    first, second, ended = new_id(), new_id(), new_id()
    await tell(store, restaurants, about(restaurant_id, first)(1, PENDING))
    feed = await restaurants.watch(restaurant_id, None)
    ((seen, place),) = await drained(feed)
    assert seen.reservation_id == first
    assert await feed.poll() == []
    await tell(store, restaurants, about(restaurant_id, second)(1, PENDING))
    await restaurants.decline(restaurant_id, first, 1)
    changes = [(one.reservation_id, one.state) for one, _ in await drained(feed)]
    assert changes == [(second, BookingState.ACCEPTED), (first, BookingState.DECLINED)]
    assert await feed.poll() == []
    assert woken == [restaurant_id] * 3

    later = await restaurants.watch(restaurant_id, place)
    assert {one.reservation_id for one, _ in await drained(later)} == {first, second}
    await tell(store, restaurants, about(restaurant_id, ended)(1, CANCELLED))
    assert [one.reservation_id for one, _ in await drained(later)] == [ended]


async def many_bookings(store: Store, restaurant_id: str) -> dict[BookingState, list[str]]:
    """More than two pages of open bookings among as many ended ones, all long unchanged; ids by state.

    Many of them share their dine time and their last change.
    """
    base = domain.on_reservation(None, about(restaurant_id, new_id())(1, PENDING), datetime.now(UTC))
    assert base is not None
    dine_time, long_ago = base.terms.dine_time, base.terms.dine_time - timedelta(days=9)
    made: dict[BookingState, list[str]] = defaultdict(list)

    def insert(tx: Transaction) -> None:
        for number in range(5 * WATCH_BATCH):
            state = BookingState.RECEIVED if number % 2 else BookingState.COMPLETED
            terms = replace(base.terms, dine_time=dine_time + timedelta(minutes=number // 40))
            changed = long_ago + timedelta(seconds=number // 150)
            one = replace(
                base, reservation_id=new_id(), state=state, confirmed=False, terms=terms, update_time=changed
            )
            assert persistence.insert_booking(tx, one)
            made[state].append(one.reservation_id)

    await store.write(insert)
    return made


async def test_a_feed_shows_many_open_bookings_once_each_in_pages(
    store: Store, restaurants: Restaurants
) -> None:
    restaurant_id = (await opened(restaurants)).restaurant_id
    made = await many_bookings(store, restaurant_id)
    feed = await restaurants.watch(restaurant_id, None)
    first = await feed.poll()
    assert first is not None
    assert len(first) == WATCH_BATCH
    # Changes while the pages are read: one that was shown, and one that was not.
    shown = {one.reservation_id for one, _ in first}
    gone, waiting = first[0][0].reservation_id, (set(made[BookingState.RECEIVED]) - shown).pop()
    await restaurants.decline(restaurant_id, gone, 1)
    await restaurants.decline(restaurant_id, waiting, 1)
    rest = await drained(feed)
    seen = [one.reservation_id for one, _ in (*first, *rest)]
    assert sorted(seen) == sorted([*made[BookingState.RECEIVED], gone])
    last = {one.reservation_id: one.state for one, _ in (*first, *rest)}
    assert last[gone] == last[waiting] == BookingState.DECLINED

    # From each place that a client can have kept, nothing is missing.
    for number in (0, 57, WATCH_BATCH - 1):
        again = await drained(await restaurants.watch(restaurant_id, first[number][1]))
        both = {one.reservation_id: one.state for one, _ in (*first[: number + 1], *again)}
        assert both == last
    for _, place in rest[-2:]:
        again = await drained(await restaurants.watch(restaurant_id, place))
        assert {one.reservation_id for one, _ in again} <= {gone, waiting}


async def test_a_feed_from_a_made_up_beginning_reads_page_by_page_and_misses_nothing(
    store: Store, restaurants: Restaurants
) -> None:
    restaurant_id = (await opened(restaurants)).restaurant_id
    made = await many_bookings(store, restaurant_id)
    everything = Cursor(None, domain.EARLIEST, None)
    found = await drained(await restaurants.watch(restaurant_id, everything))
    keys = [one.reservation_id for one, _ in found]
    assert sorted(keys) == sorted(key for ids in made.values() for key in ids)
    for number in (0, 149, WATCH_BATCH, 3 * WATCH_BATCH + 7):
        again = await drained(await restaurants.watch(restaurant_id, found[number][1]))
        assert [one.reservation_id for one, _ in again] == keys[number + 1 :]


async def test_a_feed_looks_again_at_the_last_while_in_pages(store: Store, restaurants: Restaurants) -> None:
    """A change whose commit came late is found, though more than a page has come after it."""
    restaurant_id = (await opened(restaurants)).restaurant_id
    feed = await restaurants.watch(restaurant_id, None)
    assert await drained(feed) == []
    keys = [new_id() for _ in range(2 * WATCH_BATCH + 5)]
    late = domain.on_reservation(
        None, about(restaurant_id, new_id())(1, PENDING), await store.read(lambda tx: tx.now)
    )
    assert late is not None
    events = [about(restaurant_id, key)(1, PENDING) for key in keys]

    def hear_all(tx: Transaction) -> None:
        for one in events:
            restaurants.on_reservation(tx, one)

    await store.write(hear_all)
    assert sorted(one.reservation_id for one, _ in await drained(feed)) == sorted(keys)
    assert await drained(feed) == []
    await store.write(lambda tx: persistence.insert_booking(tx, late))
    assert [one.reservation_id for one, _ in await drained(feed)] == [late.reservation_id]
    assert await drained(feed) == []


async def test_two_processes_on_one_database_move_a_booking_once(postgres: PostgresServer) -> None:
    url = postgres.fresh("restaurant_svc")
    stores = [Store.open(url), Store.open(url)]
    try:
        here, there = (service(store) for store in stores)
        restaurant_id = new_id()
        keys = [new_id() for _ in range(40)]
        make = [about(restaurant_id, key) for key in keys]
        await asyncio.gather(
            *(tell(stores[0], here, event(1, PENDING), event(2, CONFIRMED)) for event in make),
            *(tell(stores[1], there, event(2, CONFIRMED), event(1, PENDING)) for event in reversed(make)),
        )
        declined = await asyncio.gather(
            *(one.decline(restaurant_id, key, 1) for key in keys for one in (here, there))
        )
        assert {one.state for one in declined} == {BookingState.DECLINED}
        assert (await told_types(stores[0])).count("BookingDeclined") == len(keys)
    finally:
        for store in stores:
            await store.close()


async def test_two_processes_opening_slots_of_one_day_lose_none(postgres: PostgresServer) -> None:
    url = postgres.fresh("restaurant_svc")
    stores = [Store.open(url), Store.open(url)]
    try:
        services = [service(store) for store in stores]
        key = (await opened(services[0])).restaurant_id
        quarters = [time(hour, minute) for hour in range(12, 22) for minute in (0, 15, 30, 45)]
        await asyncio.gather(
            *(services[n % 2].open_slots(key, evening(3, at), 10) for n, at in enumerate(quarters))
        )
        events = await slots_told(stores[0])
        assert sorted(int(aggregate.rpartition("/")[2]) for aggregate, _ in events) == [
            *range(1, len(quarters) + 1)
        ]
        assert [named for _, named in events] == [[(10, 1)]] * len(quarters)
    finally:
        for store in stores:
            await store.close()
