"""All services together keep their promises, and what breaks one is seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest

from deposit_svc import persistence as deposit_persistence
from deposit_svc.domain import Deposit
from dinemesh.kit.store import Transaction
from history_svc import persistence as history_persistence
from history_svc.domain import Entry
from reservation_svc.domain import RequestRecord, Reservation
from reservation_svc.persistence import requests, seat_inventory
from tests.machines.mesh import Mesh
from tests.machines.play import finds, play

PLAYS = 60
"""Most mistakes show in the first few."""


def test_whatever_happens_in_whatever_order_money_seats_and_events_are_conserved() -> None:
    play(Mesh, examples=30)


def test_the_machine_finds_seats_that_are_never_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat_inventory, "release", lambda *_: None)
    assert "seats sold are not the seats" in finds(Mesh, PLAYS)


def test_the_machine_finds_a_request_id_that_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(
        tx: Transaction, customer_id: str, request_id: str, old: RequestRecord | None, new: RequestRecord
    ) -> bool:
        return True

    monkeypatch.setattr(requests, "point", forget)
    said = finds(Mesh, PLAYS)
    seen = ("one request id, two reservations", "UNIQUE constraint", "no request id has led to it")
    assert any(one in said for one in seen), said


def test_the_machine_finds_a_tombstone_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    add = deposit_persistence.add

    def without_tombstones(tx: Transaction, deposit: Deposit, settle_time: datetime | None) -> bool:
        if settle_time is None:
            return True
        return add(tx, deposit, settle_time)

    monkeypatch.setattr(deposit_persistence, "add", without_tombstones)
    assert "captures" in finds(Mesh, PLAYS)


def test_the_machine_finds_a_capture_that_nobody_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reservation fails by an unknown outcome, and orders no void."""
    monkeypatch.setattr(Reservation, "_void", lambda self, *_: self)
    said = finds(Mesh, PLAYS)
    assert "still holds" in said or "captures" in said, said


def test_the_machine_finds_a_timeline_that_depends_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    append = history_persistence.append
    newest: dict[str, int] = {}

    def only_newer(tx: Transaction, entries: Sequence[Entry]) -> None:
        for entry in entries:
            origin = entry.origin
            if origin.aggregate_version > newest.get(origin.aggregate_id, 0):
                newest[origin.aggregate_id] = origin.aggregate_version
                append(tx, [entry])

    monkeypatch.setattr(history_persistence, "append", only_newer)
    assert "history" in finds(Mesh, PLAYS)
