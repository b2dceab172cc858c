"""Restaurant and history come to the same end, whatever came first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from dinemesh.kit.inbox import Inbox
from dinemesh.kit.store import Transaction
from history_svc import persistence
from history_svc.domain import Entry
from restaurant_svc import domain
from restaurant_svc.domain import Booking, BookingState, ReservationSnapshot
from tests.machines.bookings import Bookings
from tests.machines.play import finds, play

PLAYS = 80


def test_in_whatever_order_it_is_told_a_booking_ends_as_its_reservation_and_the_timeline_is_whole() -> None:
    play(Bookings, examples=35)


def test_the_machine_finds_an_event_that_comes_late_and_is_taken_for_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hear = domain.on_reservation

    def by_the_last(booking: Booking | None, snapshot: ReservationSnapshot, now: datetime) -> Booking | None:
        forgetful = replace(booking, heard_version=0) if booking is not None else None
        return hear(forgetful, snapshot, now)

    monkeypatch.setattr(Inbox, "_newest", lambda *told: list(told[-1]))
    monkeypatch.setattr(domain, "on_reservation", by_the_last)
    assert "it went back in time" in finds(Bookings, PLAYS)


def test_the_machine_finds_new_terms_that_nobody_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acceptance of the old terms stands for the new ones."""
    hear = domain.on_reservation

    def never_asked(booking: Booking | None, snapshot: ReservationSnapshot, now: datetime) -> Booking | None:
        after = hear(booking, snapshot, now)
        if booking is not None and after is not None and booking.state is BookingState.ACCEPTED:
            return replace(after, state=BookingState.ACCEPTED)
        return after

    monkeypatch.setattr(domain, "on_reservation", never_asked)
    assert "for staff" in finds(Bookings, PLAYS)


def test_the_machine_finds_an_event_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    append = persistence.append

    def only_older(tx: Transaction, entries: Sequence[Entry]) -> None:
        append(tx, [one for one in entries if one.origin.aggregate_version < 4])

    monkeypatch.setattr(persistence, "append", only_older)
    assert "without an entry" in finds(Bookings, PLAYS)
