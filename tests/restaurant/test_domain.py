"""The restaurant's rules, without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import permutations
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dinemesh.kit.refusal import Refusal
from restaurant_svc import domain
from restaurant_svc.domain import (
    Acceptance,
    Booking,
    BookingAccepted,
    BookingReceived,
    BookingState,
    BookingWithdrawn,
    Policy,
    ReservationSnapshot,
    ReservationState,
    Restaurant,
    Span,
    Terms,
)

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DINE_TIME = datetime(2026, 3, 10, 18, tzinfo=UTC)

POLICY = Policy(
    deposit_per_person=1000,
    currency="EUR",
    free_cancel_window_seconds=86_400,
    acceptance=Acceptance.AUTO,
    acceptance_limit_seconds=0,
    acceptance_lead_seconds=0,
    no_show_grace_seconds=900,
    slot_interval_seconds=900,
    service_duration_seconds=7200,
    max_party_size=20,
)
RESTAURANT = Restaurant("r-1", "Zum Anker", "Europe/Berlin", POLICY, 1, NOW, NOW)


def fields(refused: pytest.ExceptionInfo[Refusal]) -> list[str]:
    return [one.field for one in refused.value.violations]


# --- time zones and daylight saving


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Europe",
        "Europe/Nowhere",
        "europe/berlin",
        "localtime",
        "posix/Europe/Berlin",
        "zone.tab",
        "leapseconds",
        "Factory",
        "../../etc/passwd",
        "/etc/localtime",
        "Europe/Berlin\n",
        "UTC\0",
        "A" * 300,
    ],
)
def test_what_is_not_a_time_zone_is_refused_by_field(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        domain.time_zone(name, "restaurant.time_zone")
    assert refused.value.violations[0].field == "restaurant.time_zone"


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_iana_time_zones_are_taken(name: str) -> None:
    assert domain.time_zone(name, "zone").key == name


def test_a_time_that_daylight_saving_skips_does_not_exist() -> None:
    assert domain.instant(BERLIN, date(2026, 3, 29), time(2, 30)) is None
    assert domain.instant(BERLIN, date(2026, 3, 29), time(2, 0)) is None
    assert domain.instant(BERLIN, date(2026, 3, 29), time(3, 0)) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert domain.instant(BERLIN, date(2026, 3, 29), time(1, 59, 59)) == datetime(
        2026, 3, 29, 0, 59, 59, tzinfo=UTC
    )


def test_a_time_that_comes_twice_is_the_first() -> None:
    assert domain.instant(BERLIN, date(2026, 10, 25), time(2, 30)) == datetime(
        2026, 10, 25, 0, 30, tzinfo=UTC
    )
    assert domain.instant(BERLIN, date(2026, 10, 25), time(2, 30, fold=1)) == datetime(
        2026, 10, 25, 0, 30, tzinfo=UTC
    )


def test_a_whole_day_that_a_zone_skipped_has_no_times() -> None:
    assert domain.instant(ZoneInfo("Pacific/Apia"), date(2011, 12, 30), time(12)) is None


def test_half_hour_shifts_are_known() -> None:
    lord_howe = ZoneInfo("Australia/Lord_Howe")
    assert domain.instant(lord_howe, date(2026, 10, 4), time(2, 15)) is None
    assert domain.instant(lord_howe, date(2026, 10, 4), time(2, 30)) == datetime(
        2026, 10, 3, 15, 30, tzinfo=UTC
    )


def test_the_same_local_hour_is_another_instant_after_the_change() -> None:
    times = domain.dine_times(RESTAURANT, Span(date(2026, 3, 28), date(2026, 3, 29), (time(19),)))
    assert times[date(2026, 3, 28)] == [datetime(2026, 3, 28, 18, tzinfo=UTC)]
    assert times[date(2026, 3, 29)] == [datetime(2026, 3, 29, 17, tzinfo=UTC)]


def test_a_skipped_time_is_refused_and_named() -> None:
    span = Span(date(2026, 3, 28), date(2026, 3, 30), (time(1), time(2, 30)))
    with pytest.raises(Refusal) as refused:
        domain.dine_times_to_open(RESTAURANT, span)
    (violation,) = refused.value.violations
    assert violation.field == "times[1]"
    assert "2026-03-29" in violation.description


def test_slots_lie_on_the_grid_from_local_midnight() -> None:
    with pytest.raises(Refusal) as refused:
        domain.dine_times_to_open(
            RESTAURANT, Span(date(2026, 3, 10), date(2026, 3, 10), (time(18), time(18, 10)))
        )
    assert fields(refused) == ["times[1]"]


def test_repeated_times_are_one_slot() -> None:
    times = domain.dine_times(RESTAURANT, Span(date(2026, 3, 10), date(2026, 3, 10), (time(18), time(18))))
    assert len(times[date(2026, 3, 10)]) == 1


@pytest.mark.parametrize(
    ("span", "field"),
    [
        (Span(date(2026, 3, 2), date(2026, 3, 1), (time(18),)), "last_date"),
        (Span(date(2026, 3, 1), date(2027, 3, 2), (time(18),)), "last_date"),
        (Span(date(2026, 2, 27), date(2026, 3, 1), (time(18),)), "first_date"),
        (Span(date.min, date.max, None), "last_date"),
        (Span(date(2028, 4, 1), date(2028, 4, 1), (time(18),)), "last_date"),
        (Span(date(2026, 3, 1), date(2027, 3, 1), tuple(time(hour, 15) for hour in range(24)) * 2), "times"),
    ],
)
def test_a_span_is_bounded(span: Span, field: str) -> None:
    with pytest.raises(Refusal) as refused:
        domain.check_span(span, date(2026, 3, 1))
    assert field in fields(refused)


def test_a_year_of_evenings_is_one_span() -> None:
    times = tuple(time(18 + quarter // 4, quarter % 4 * 15) for quarter in range(24))
    domain.check_span(Span(date(2026, 3, 1), date(2027, 3, 1), times), date(2026, 3, 1))


def test_a_call_is_cut_into_groups_that_hold_the_writer_for_a_moment_only() -> None:
    first, size = datetime(2026, 3, 10, tzinfo=UTC), domain.SLOTS_AT_ONCE
    days = {
        date(2026, 3, 10) + timedelta(days=n): [first + timedelta(days=n, minutes=at) for at in range(count)]
        for n, count in enumerate((0, 3, 2 * size, 1, size - 1))
    }
    cut = list(domain.groups(days))
    assert [sum(map(len, part.values())) for part in cut] == [size, size, size, 3]
    put_together = [(day, at) for part in cut for day, moments in part.items() for at in moments]
    assert put_together == [(day, at) for day, moments in days.items() for at in moments]
    assert list(domain.groups({})) == []


# --- restaurants


def test_an_update_without_a_difference_is_none() -> None:
    assert domain.updated(RESTAURANT, name="Zum Anker", policy=POLICY, now=NOW + timedelta(1)) is RESTAURANT


def test_an_update_keeps_what_is_left_out_and_changes_the_etag() -> None:
    later = NOW + timedelta(1)
    renamed = domain.updated(RESTAURANT, name="Anker", policy=None, now=later)
    assert (renamed.name, renamed.policy, renamed.update_time) == ("Anker", POLICY, later)
    assert renamed.etag != RESTAURANT.etag


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"deposit_per_person": 0}, "policy.deposit_per_person"),
        ({"deposit_per_person": -1}, "policy.deposit_per_person"),
        ({"deposit_per_person": 10**12, "max_party_size": 2}, "policy.deposit_per_person"),
        ({"free_cancel_window_seconds": -1}, "policy.free_cancel_window_seconds"),
        ({"free_cancel_window_seconds": 31_536_001}, "policy.free_cancel_window_seconds"),
        ({"acceptance": Acceptance.MANUAL}, "policy.acceptance_limit_seconds"),
        ({"acceptance_limit_seconds": 2_592_001}, "policy.acceptance_limit_seconds"),
        ({"acceptance_lead_seconds": 2_592_001}, "policy.acceptance_lead_seconds"),
        ({"no_show_grace_seconds": 86_401}, "policy.no_show_grace_seconds"),
        ({"slot_interval_seconds": 0}, "policy.slot_interval_seconds"),
        ({"slot_interval_seconds": 86_401}, "policy.slot_interval_seconds"),
        ({"service_duration_seconds": 59}, "policy.service_duration_seconds"),
        ({"max_party_size": 0}, "policy.max_party_size"),
        ({"max_party_size": 1001}, "policy.max_party_size"),
    ],
)
def test_a_policy_out_of_bounds_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    domain.check_policy(POLICY)
    with pytest.raises(Refusal) as refused:
        domain.check_policy(replace(POLICY, **changes))
    assert fields(refused) == [field]


# --- bookings: what the reservation says


def terms(revision: int = 1, acceptance: Acceptance = Acceptance.AUTO, **changes: Any) -> Terms:
    value = Terms(
        revision=revision,
        dine_time=DINE_TIME,
        party_size=1 + revision,
        acceptance=acceptance,
        accept_deadline=NOW + timedelta(hours=1),
        no_show_grace=timedelta(minutes=15),
        service=timedelta(hours=2),
    )
    return replace(value, **changes)


def heard(
    version: int, state: ReservationState, revision: int = 1, acceptance: Acceptance = Acceptance.AUTO
) -> ReservationSnapshot:
    return ReservationSnapshot("res-1", "r-1", "alice", version, state, terms(revision, acceptance))


PENDING, CONFIRMED = ReservationState.PENDING_ACCEPTANCE, ReservationState.CONFIRMED
CANCELLED, GONE = ReservationState.CANCELLED, ReservationState.COMPLETED


def hear_all(*events: ReservationSnapshot) -> Booking | None:
    booking: Booking | None = None
    for event in events:
        booking = domain.on_reservation(booking, event, NOW)
    return booking


def listen(*events: ReservationSnapshot) -> Booking:
    booking = hear_all(*events)
    assert booking is not None
    return booking


def test_an_automatic_restaurant_accepts_at_once_but_is_confirmed_by_the_reservation_only() -> None:
    booking = listen(heard(1, PENDING))
    assert (booking.state, booking.confirmed) == (BookingState.ACCEPTED, False)
    booking = listen(heard(1, PENDING), heard(2, CONFIRMED))
    assert (booking.state, booking.confirmed) == (BookingState.ACCEPTED, True)


def test_an_automatic_restaurant_does_not_accept_after_the_deadline() -> None:
    booking = domain.on_reservation(None, heard(1, PENDING), NOW + timedelta(hours=1))
    assert booking is not None and booking.state is BookingState.RECEIVED


def test_a_manual_restaurant_waits_for_a_person() -> None:
    assert listen(heard(1, PENDING, acceptance=Acceptance.MANUAL)).state is BookingState.RECEIVED


def test_a_reservation_that_was_never_offered_is_no_booking() -> None:
    assert hear_all(heard(1, ReservationState.PENDING_DEPOSIT), heard(2, ReservationState.FAILED)) is None


def test_the_first_thing_heard_may_be_the_withdrawal() -> None:
    booking = listen(heard(5, ReservationState.CANCELLED), heard(1, PENDING))
    assert booking.state is BookingState.WITHDRAWN


def test_a_duplicate_changes_nothing() -> None:
    booking = listen(heard(1, PENDING))
    assert domain.on_reservation(booking, heard(1, PENDING), NOW + timedelta(minutes=1)) is booking


def test_an_event_without_news_moves_no_version() -> None:
    booking = listen(heard(1, PENDING), heard(2, CONFIRMED))
    again = domain.on_reservation(booking, heard(3, CONFIRMED), NOW + timedelta(minutes=1))
    assert again == replace(booking, heard_version=3)


@pytest.mark.parametrize(
    "story",
    [
        (heard(1, PENDING), heard(2, CONFIRMED), heard(3, PENDING, 2), heard(4, CONFIRMED, 2)),
        (heard(1, PENDING), heard(2, CONFIRMED), heard(3, PENDING, 2), heard(4, CANCELLED, 2)),
        (heard(1, PENDING), heard(2, CONFIRMED), heard(3, ReservationState.SEATED), heard(4, GONE)),
        (heard(1, PENDING), heard(2, CONFIRMED), heard(3, ReservationState.NO_SHOW)),
        (heard(1, PENDING), heard(2, ReservationState.DECLINED)),
        (
            heard(1, PENDING, 1, Acceptance.MANUAL),
            heard(2, PENDING, 2, Acceptance.MANUAL),
            heard(3, ReservationState.CANCELLED, 2, Acceptance.MANUAL),
        ),
        (heard(1, PENDING, 1, Acceptance.MANUAL), heard(2, PENDING, 2, Acceptance.MANUAL)),
    ],
)
def test_every_order_of_a_reservations_events_ends_alike(story: tuple[ReservationSnapshot, ...]) -> None:
    def end(events: tuple[ReservationSnapshot, ...]) -> tuple[object, ...]:
        booking = listen(*events, *events)
        return booking.state, booking.confirmed, booking.terms, booking.heard_version

    ends = {end(order) for order in permutations(story)}
    assert ends == {end(story)}


def test_a_new_revision_is_asked_anew() -> None:
    manual = listen(heard(1, PENDING, 1, Acceptance.MANUAL))
    accepted = domain.accept(manual, 1, NOW)
    asked = domain.on_reservation(accepted, heard(2, PENDING, 2, Acceptance.MANUAL), NOW)
    assert asked is not None
    assert (asked.state, asked.confirmed, asked.terms.revision) == (BookingState.RECEIVED, False, 2)


def test_where_a_person_said_no_to_the_old_terms_the_machine_does_not_say_yes_to_the_new() -> None:
    declined = domain.decline(listen(heard(1, PENDING)), 1, NOW)
    asked = domain.on_reservation(declined, heard(2, PENDING, 2), NOW)
    assert asked is not None and asked.state is BookingState.RECEIVED


SOON = DINE_TIME - timedelta(minutes=90)
"""Guests who come early are seated, and a generous policy still lets the customer modify."""


def seated_before_the_news(complete: bool = False) -> Booking:
    """Staff were told that the guests are seated; that the customer has modified is still on its way."""
    seated = domain.seat(listen(heard(1, PENDING), heard(2, CONFIRMED)), 1, SOON)
    return domain.complete(seated, 1, SOON) if complete else seated


@pytest.mark.parametrize("is_complete", [False, True], ids=["seated", "completed"])
def test_guests_who_are_here_stay_here_when_news_of_other_terms_comes(is_complete: bool) -> None:
    before = seated_before_the_news(is_complete)
    after = domain.on_reservation(before, heard(3, PENDING, 2), SOON + timedelta(seconds=1))
    assert after is not None
    assert (after.state, after.terms.revision, after.confirmed) == (before.state, 2, False)
    # The reservation forgot what was said of the old terms: it is told of the new ones.
    told = domain.BookingCompleted(after) if is_complete else domain.BookingSeated(after)
    assert (domain.booking_event(before, after), after.accepted_revision) == (told, 2)
    agreed = domain.on_reservation(after, heard(4, ReservationState.SEATED, 2), SOON + timedelta(seconds=2))
    assert agreed is not None and (agreed.state, agreed.confirmed) == (before.state, True)
    assert domain.booking_event(after, agreed) is None


def test_guests_who_are_here_stay_here_whichever_news_comes_first() -> None:
    before = seated_before_the_news()
    modified, cancelled = heard(3, PENDING, 2), heard(4, ReservationState.CANCELLED, 2)
    ends = set()
    for order in permutations((modified, cancelled)):
        booking: Booking | None = before
        for event in order:
            booking = domain.on_reservation(booking, event, SOON)
        assert booking is not None
        ends.add((booking.state, booking.terms.revision, booking.confirmed))
    assert ends == {(BookingState.SEATED, 2, False)}


def test_guests_of_tonight_are_not_the_guests_of_another_day() -> None:
    moved = replace(heard(3, PENDING, 2), terms=terms(2, dine_time=DINE_TIME + timedelta(days=1)))
    asked = domain.on_reservation(seated_before_the_news(), moved, SOON)
    assert asked is not None
    assert (asked.state, asked.confirmed) == (BookingState.RECEIVED, False)


def test_a_declined_booking_stays_declined_when_the_reservation_ends() -> None:
    declined = domain.decline(listen(heard(1, PENDING)), 1, NOW)
    after = domain.on_reservation(declined, heard(2, ReservationState.CANCELLED), NOW)
    assert after is not None and after.state is BookingState.DECLINED


def test_a_confirmation_under_way_does_not_revive_a_declined_booking() -> None:
    declined = domain.decline(listen(heard(1, PENDING)), 1, NOW)
    after = domain.on_reservation(declined, heard(2, CONFIRMED), NOW)
    assert after is not None and (after.state, after.confirmed) == (BookingState.DECLINED, False)


# --- bookings: what the restaurant says of it


def test_what_was_heard_is_told_once() -> None:
    manual = listen(heard(1, PENDING, 1, Acceptance.MANUAL))
    assert domain.booking_event(None, manual) == BookingReceived(manual)
    automatic = listen(heard(1, PENDING))
    assert domain.booking_event(None, automatic) == BookingAccepted(automatic)
    confirmed = listen(heard(1, PENDING), heard(2, CONFIRMED))
    assert domain.booking_event(automatic, confirmed) is None
    again = listen(heard(1, PENDING), heard(2, PENDING, 2))
    assert domain.booking_event(automatic, again) == BookingAccepted(again)
    withdrawn = listen(heard(1, ReservationState.CANCELLED))
    assert domain.booking_event(None, withdrawn) == BookingWithdrawn(withdrawn)


# --- bookings: what staff say

RECEIVED = listen(heard(1, PENDING, acceptance=Acceptance.MANUAL))
ACCEPTED = domain.accept(RECEIVED, 1, NOW)
CONFIRMED_BOOKING = replace(ACCEPTED, confirmed=True)
SEATED = domain.seat(CONFIRMED_BOOKING, 1, DINE_TIME)
NO_SHOW_TIME = DINE_TIME + timedelta(minutes=15)


def reason(refused: pytest.ExceptionInfo[Refusal]) -> str:
    return refused.value.reason


def test_staff_accept_until_the_deadline() -> None:
    assert domain.accept(RECEIVED, 1, NOW + timedelta(minutes=59)).state is BookingState.ACCEPTED
    with pytest.raises(Refusal) as refused:
        domain.accept(RECEIVED, 1, NOW + timedelta(hours=1))
    assert reason(refused) == "ACCEPTANCE_EXPIRED"


def test_a_repeated_acceptance_is_the_first_one_even_after_the_deadline() -> None:
    assert domain.accept(ACCEPTED, 1, NOW + timedelta(days=1)) is ACCEPTED
    assert domain.accept(SEATED, 1, NOW + timedelta(days=1)) is SEATED


def test_a_decline_after_an_acceptance_is_possible() -> None:
    declined = domain.decline(CONFIRMED_BOOKING, 1, NOW)
    assert (declined.state, declined.confirmed) == (BookingState.DECLINED, False)
    assert domain.decline(declined, 1, NOW) is declined


def test_a_decline_is_never_too_late() -> None:
    assert domain.decline(RECEIVED, 1, NOW + timedelta(days=1)).state is BookingState.DECLINED


def test_a_declined_booking_cannot_be_accepted() -> None:
    with pytest.raises(Refusal) as refused:
        domain.accept(domain.decline(RECEIVED, 1, NOW), 1, NOW)
    assert reason(refused) == "BOOKING_STATE"
    assert refused.value.metadata == {"state": "DECLINED"}


def test_what_is_said_of_another_revision_is_refused() -> None:
    for revision in (0, 2):
        with pytest.raises(Refusal) as refused:
            domain.accept(RECEIVED, revision, NOW)
        assert reason(refused) == "BOOKING_REVISION"
        assert refused.value.metadata == {"revision": "1"}


def test_a_decline_remembers_that_these_terms_had_been_accepted() -> None:
    asked = listen(heard(1, PENDING, acceptance=Acceptance.MANUAL))
    assert asked.accepted_revision == 0
    assert domain.decline(asked, 1, NOW).accepted_revision == 0
    declined = domain.decline(domain.accept(asked, 1, NOW), 1, NOW)
    assert (declined.state, declined.accepted_revision) == (BookingState.DECLINED, 1)


def test_guests_of_an_unconfirmed_booking_are_not_seated_nor_missed() -> None:
    for call in (domain.seat, domain.mark_no_show):
        with pytest.raises(Refusal) as refused:
            call(ACCEPTED, 1, NO_SHOW_TIME)
        assert reason(refused) == "BOOKING_STATE"


def test_guests_are_seated_from_two_hours_before_until_a_day_after_service() -> None:
    assert domain.seat(CONFIRMED_BOOKING, 1, DINE_TIME - timedelta(hours=2)).state is BookingState.SEATED
    with pytest.raises(Refusal) as refused:
        domain.seat(CONFIRMED_BOOKING, 1, DINE_TIME - timedelta(hours=2, seconds=7))
    assert (reason(refused), refused.value.retry_after) == ("TOO_EARLY", 7)
    with pytest.raises(Refusal) as refused:
        domain.seat(CONFIRMED_BOOKING, 1, DINE_TIME + timedelta(hours=26))
    assert reason(refused) == "BOOKING_STATE"
    assert domain.seat(SEATED, 1, DINE_TIME + timedelta(days=9)) is SEATED


def test_a_no_show_is_recorded_only_after_the_grace() -> None:
    with pytest.raises(Refusal) as refused:
        domain.mark_no_show(CONFIRMED_BOOKING, 1, NO_SHOW_TIME - timedelta(seconds=1))
    assert (reason(refused), refused.value.retry_after) == ("TOO_EARLY", 1)
    marked = domain.mark_no_show(CONFIRMED_BOOKING, 1, NO_SHOW_TIME)
    assert marked.state is BookingState.NO_SHOW
    assert domain.mark_no_show(marked, 1, NO_SHOW_TIME) is marked


def test_only_seated_guests_complete() -> None:
    completed = domain.complete(SEATED, 1, DINE_TIME)
    assert completed.state is BookingState.COMPLETED
    assert domain.complete(completed, 1, DINE_TIME) is completed
    for booking in (RECEIVED, CONFIRMED_BOOKING):
        with pytest.raises(Refusal) as refused:
            domain.complete(booking, 1, DINE_TIME)
        assert reason(refused) == "BOOKING_STATE"


def test_a_guest_is_either_here_or_not() -> None:
    with pytest.raises(Refusal):
        domain.mark_no_show(SEATED, 1, NO_SHOW_TIME)
    with pytest.raises(Refusal):
        domain.seat(domain.mark_no_show(CONFIRMED_BOOKING, 1, NO_SHOW_TIME), 1, NO_SHOW_TIME)


@pytest.mark.parametrize(
    "call", [domain.accept, domain.decline, domain.seat, domain.mark_no_show, domain.complete]
)
def test_a_withdrawn_booking_takes_no_staff_call(call: Callable[[Booking, int, datetime], Booking]) -> None:
    withdrawn = listen(heard(1, PENDING), heard(2, ReservationState.CANCELLED))
    with pytest.raises(Refusal) as refused:
        call(withdrawn, 1, NO_SHOW_TIME)
    assert reason(refused) == "BOOKING_STATE"
