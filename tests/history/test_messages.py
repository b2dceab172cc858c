"""Events become entries: every event of every contract, and those of tomorrow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from dinemesh.history.v1 import history_pb2
from dinemesh.kit import wire
from dinemesh.kit.inbox import Inbox, Received
from dinemesh.kit.refusal import Refusal
from dinemesh.reservation.v1 import events_pb2 as reservation_events
from dinemesh.reservation.v1 import reservation_pb2
from history_svc import handlers, messages, persistence
from history_svc.domain import Kind, Live, Money, Past, Place
from history_svc.usecases import Timeline
from tests.history import stories


def received(body: bytes) -> Received[Any]:
    none: Any = None
    subscription = handlers.subscription(Timeline(none, print))
    return Inbox(none, persistence.inbox, subscription).decode(body)


def concerns_a_customer(event: type[Message]) -> bool:
    return any(name in event.DESCRIPTOR.fields_by_name for name in ("reservation", "deposit", "booking"))


@pytest.mark.parametrize("event", stories.all_events(), ids=lambda event: event.__name__)
def test_every_event_of_a_customer_has_a_kind_of_its_name(event: type[Message]) -> None:
    entry = messages.from_event(received(stories.envelope(event(), aggregate_id="a-1", customer_id="alice")))
    if not concerns_a_customer(event):
        assert entry.kind is Kind.UNKNOWN
        return
    assert entry.kind.value.replace("_", "").lower() == event.__name__.lower()
    shown = messages.to_entry(entry)
    assert history_pb2.TimelineEntryKind.Name(shown.kind) == f"TIMELINE_ENTRY_KIND_{entry.kind.value}"


def test_the_kinds_of_the_contract_are_those_of_the_domain() -> None:
    named = {
        name.removeprefix("TIMELINE_ENTRY_KIND_")
        for name in history_pb2.TimelineEntryKind.DESCRIPTOR.values_by_name
    }
    assert named == {kind.value for kind in Kind} - {"UNKNOWN"} | {"UNSPECIFIED"}


def test_an_entry_shows_what_the_event_said() -> None:
    cancelled = stories.reservation(
        "r-1",
        "alice",
        revision=3,
        state=reservation_pb2.RESERVATION_STATE_CANCELLED,
        cancelled_by=reservation_pb2.CANCELLED_BY_CUSTOMER,
    )
    event = reservation_events.ReservationCancelled(
        reservation=cancelled, refunded=wire.to_money(8000, "EUR"), forfeited=wire.to_money(0, "EUR")
    )
    body = stories.envelope(
        event, aggregate_id="r-1", customer_id="alice", reservation_id="r-1", event_id="e-1"
    )
    shown = messages.to_entry(messages.from_event(received(body)))
    assert shown == history_pb2.TimelineEntry(
        event_id="e-1",
        kind=history_pb2.TIMELINE_ENTRY_KIND_RESERVATION_CANCELLED,
        occur_time=wire.to_timestamp(stories.START),
        reservation_id="r-1",
        restaurant_id=stories.RESTAURANT,
        amount=wire.to_money(8000, "EUR"),
        refunded=wire.to_money(8000, "EUR"),
        forfeited=wire.to_money(0, "EUR"),
        state="CANCELLED",
        revision=3,
        dine_time=wire.to_timestamp(stories.DINE_TIME),
        party_size=4,
        correlation_id="the request",
        summary="You cancelled a table for 4 on Sat 12 Dec 2026, 19:00 UTC; 80.00 EUR goes back to you.",
    )


def test_a_no_show_shows_all_that_was_forfeited() -> None:
    forfeits = [
        reservation_events.ForfeitInstruction(
            forfeit_id="f", deposit_id="d", amount=wire.to_money(minor, "EUR")
        )
        for minor in (8000, 4000)
    ]
    event = reservation_events.ReservationNoShowRecorded(
        reservation=stories.reservation("r-1", "alice", forfeits=forfeits)
    )
    entry = messages.from_event(received(stories.envelope(event, aggregate_id="r-1")))
    assert entry.facts.forfeited == Money(12000, "EUR")


def test_an_event_type_of_tomorrow_is_kept_by_type_and_ids() -> None:
    body = stories.envelope(
        StringValue(value="try the soup"),
        aggregate_id="m-1",
        version=7,
        customer_id="alice",
        reservation_id="r-1",
        kind="dinemesh.marketing.v1.DishRecommended",
    )
    entry = messages.from_event(received(body))
    assert entry.kind is Kind.UNKNOWN
    assert (entry.origin.type, entry.origin.source) == ("dinemesh.marketing.v1.DishRecommended", "marketing")
    assert (entry.origin.aggregate_id, entry.origin.aggregate_version) == ("m-1", 7)
    assert (entry.origin.customer_id, entry.origin.reservation_id) == ("alice", "r-1")
    assert "dinemesh.marketing.v1.DishRecommended" in entry.summary


def test_a_state_of_tomorrow_is_shown_by_its_number() -> None:
    event = reservation_events.ReservationPlaced()
    event.reservation.state = 99  # type: ignore[assignment]
    assert messages.from_event(received(stories.envelope(event, aggregate_id="r-1"))).facts.state == "99"


PLACE = Place(stories.START + timedelta(microseconds=7), "e-9")


WHOSE = ("alice", "r-1")


def test_tokens_come_back_as_they_went() -> None:
    assert messages.PAGES.decode(messages.PAGES.encode(PLACE, *WHOSE), *WHOSE) == PLACE
    for cursor in (Past(12, PLACE), Live(13)):
        assert messages.cursor_of(messages.resume_token(cursor, *WHOSE), *WHOSE) == cursor
    assert messages.PAGES.decode("", *WHOSE) is None
    assert messages.cursor_of("", *WHOSE) is None


@pytest.mark.parametrize("whose", [("alice", "r-2"), ("alice", ""), ("bob", "r-1")])
def test_a_token_of_another_timeline_is_refused(whose: tuple[str, str]) -> None:
    page = messages.PAGES.encode(PLACE, *WHOSE)
    resumption = messages.resume_token(Live(1), *WHOSE)
    for token in (page, resumption, messages.resume_token(Past(1, PLACE), *WHOSE)):
        with pytest.raises(Refusal) as refused:
            messages.PAGES.decode(token, *whose)
        assert [violation.field for violation in refused.value.violations] == ["page_token"]
        with pytest.raises(Refusal) as refused:
            messages.cursor_of(token, *whose)
        assert [violation.field for violation in refused.value.violations] == ["resume_token"]


@pytest.mark.parametrize("half", [(1, None, "e"), (1, PLACE.occur_time, None)])
def test_half_of_a_place_is_refused(half: tuple[Any, ...]) -> None:
    token = messages._WATCH.encode(messages._ResumePlace(*half), *WHOSE)
    with pytest.raises(Refusal) as refused:
        messages.cursor_of(token, *WHOSE)
    assert refused.value.reason == "INVALID_ARGUMENT"
