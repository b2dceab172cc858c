"""The settings of reservation that a start refuses, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reservation_svc.settings import ReservationSettings


def settings(**changes: Any) -> ReservationSettings:
    values: dict[str, Any] = {
        "port": 0,
        "metrics_port": 0,
        "database_url": "sqlite:///reservation.db",
        "amqp_url": "amqp://127.0.0.1:1/",
        "jwks_file": Path("jwks.json"),
    }
    return ReservationSettings(**(values | changes))


@pytest.mark.parametrize(
    "address", ["deposit:8082", "10.0.0.1:8082,10.0.0.2:8082", "[::1]:8082,[::2]:8082", "[::1]:8082"]
)
def test_deposit_may_be_one_address_or_several_instances(address: str) -> None:
    assert settings(deposit_address=address).deposit_address == address


@pytest.mark.parametrize(
    "address", ["deposit-1:8082,deposit-2:8082", "10.0.0.1:8082,", "10.0.0.1:8082,[::1]:8082"]
)
def test_instances_of_deposit_that_could_not_be_found_stop_the_start(address: str) -> None:
    with pytest.raises(ValidationError, match="several instances"):
        settings(deposit_address=address)


def test_times_that_do_not_fit_into_each_other_stop_the_start() -> None:
    with pytest.raises(ValidationError, match="attempt_deadline_seconds"):
        settings(deposit_deadline_ms=10_000, attempt_deadline_seconds=10)
    with pytest.raises(ValidationError, match="hold_expire_seconds"):
        settings(hold_expire_seconds=10)
    with pytest.raises(ValidationError, match="least_time_ms"):
        settings(answer_margin_ms=600)
