"""Reservation keeps its promises, whatever deposit and the restaurant say."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import bindparam, update

from reservation_svc.domain import BookingSnapshot, Move, Reservation, Rules
from reservation_svc.persistence import seat_inventory
from reservation_svc.persistence.tables import slots
from tests.machines.play import finds, play
from tests.machines.reservations import Reservations

PLAYS = 80


def test_whatever_reservation_is_told_seats_and_deposits_belong_to_its_bookings() -> None:
    play(Reservations, examples=40)


def test_the_machine_finds_staff_who_are_heard_on_terms_that_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hear = Reservation.on_booking

    def of_any_revision(self: Reservation, news: BookingSnapshot, *times: datetime) -> list[Move]:
        return hear(self, BookingSnapshot(news.state, self.terms.revision, news.accepted), *times)

    monkeypatch.setattr(Reservation, "on_booking", of_any_revision)
    assert "terms that are gone" in finds(Reservations, 3 * PLAYS)


def test_the_machine_finds_terms_that_were_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reservation_svc.usecases.reserve.check_policy", lambda *_: None)
    assert "never shown" in finds(Reservations, PLAYS)


def test_the_machine_finds_a_seat_that_is_sold_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seats are counted without the guard."""
    unguarded = update(slots).where(seat_inventory._AT).values(sold=slots.c.sold + bindparam("seats"))
    monkeypatch.setattr(seat_inventory, "_HOLD", unguarded)
    monkeypatch.setattr("reservation_svc.usecases.reserve.check_slot", lambda *_: None)
    assert "oversold" in finds(Reservations, PLAYS)


def test_the_machine_finds_a_booking_that_is_changed_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def unlimited(self: Reservation, difference: int, rules: Rules) -> int:
        return self.priced_modifications + bool(difference)

    monkeypatch.setattr(Reservation, "_count_change", unlimited)
    said = finds(Reservations, 5 * PLAYS)  # several paid changes of one booking are rare
    assert "too often" in said or "than there may be" in said or "too many terms" in said, said


def test_the_machine_finds_a_stray_capture_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A modification that nobody waits for any more, and its charge."""
    monkeypatch.setattr(Reservation, "on_deposit", lambda *_: None)
    monkeypatch.setattr(Reservation, "_void", lambda self, *_: self)
    said = finds(Reservations, PLAYS)
    assert "gone its way" in said or "still holds" in said, said
