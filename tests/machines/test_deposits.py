"""Deposit keeps its promises, whoever tells it what."""

from __future__ import annotations

import pytest

from deposit_svc import persistence
from deposit_svc.domain import Deposit
from tests.machines.deposits import Deposits
from tests.machines.play import finds, play


def test_whatever_deposit_is_told_each_cent_is_held_returned_once_or_kept() -> None:
    play(Deposits, examples=40)


def test_the_machine_finds_a_movement_that_the_ledger_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    post = persistence._post

    def all_but_the_first(*args: object) -> None:
        tx, deposit, movements = args
        if movements[1:]:  # type: ignore[index]
            post(tx, deposit, movements[1:])  # type: ignore[index,arg-type]

    monkeypatch.setattr(persistence, "_post", all_but_the_first)
    assert "by the deposit" in finds(Deposits, examples=20)


def test_the_machine_finds_an_instruction_that_is_obeyed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    record = persistence.record
    monkeypatch.setattr(persistence, "record", lambda tx, one: record(tx, one) or True)
    said = finds(Deposits, examples=60)
    assert "told twice" in said or "not what was ordered" in said or "UNIQUE" in said, said


def test_the_machine_finds_a_void_that_a_late_charge_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deposit, "void", lambda self, now: None)
    assert finds(Deposits, examples=60)
