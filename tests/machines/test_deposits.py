"""Deposit keeps its promises, whoever tells it what."""

from __future__ import annotations

from itertools import count

import pytest

from deposit_svc import persistence
from deposit_svc.domain import Deposit, Refund
from tests.machines.deposits import Deposits
from tests.machines.play import finds, play


def test_whatever_deposit_is_told_each_cent_is_held_returned_once_or_kept() -> None:
    play(Deposits, examples=30)


def test_the_machine_finds_a_movement_that_the_ledger_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    post = persistence._post

    def all_but_the_first(*args: object) -> None:
        tx, deposit, movements = args
        if movements[1:]:  # type: ignore[index]
            post(tx, deposit, movements[1:])  # type: ignore[index,arg-type]

    monkeypatch.setattr(persistence, "_post", all_but_the_first)
    assert "by the deposit" in finds(Deposits, examples=20)


def test_the_machine_finds_a_refund_that_is_asked_for_under_another_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reply is lost, and the next call is a second refund."""
    numbers = count()
    monkeypatch.setattr(Refund, "provider_key", property(lambda self: f"{self.refund_id}/{next(numbers)}"))
    assert finds(Deposits, examples=20).startswith("AssertionError")


def test_the_machine_finds_a_void_that_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deposit, "void", lambda self, now: None)
    assert finds(Deposits, examples=60)
