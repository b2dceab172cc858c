"""Settings that cannot work stop the start and are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from deposit_svc.settings import DepositSettings
from dinemesh.kit.settings import load

GOOD = {
    "PORT": "8082",
    "METRICS_PORT": "9082",
    "DATABASE_URL": "sqlite:///deposit.db",
    "AMQP_URL": "amqp://127.0.0.1/",
    "JWKS_FILE": "jwks.json",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(f"DINEMESH_{name}", value)
    return monkeypatch


def test_the_defaults_fit_together(settings: pytest.MonkeyPatch) -> None:
    loaded = load(DepositSettings)
    assert loaded.jwks_file == Path("jwks.json")
    assert loaded.charge_timeout_ms / 1000 < loaded.stop_grace_seconds, "a stop lets a charge finish"
    assert loaded.pending_settle_seconds * 1000 > loaded.charge_timeout_ms
    assert loaded.settle_lease_seconds > 3 * loaded.provider_timeout_ms / 1000 + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENDING_SETTLE_SECONDS", "5"),
        ("CHARGES_IN_FLIGHT_LIMIT", "0"),
        ("PROVIDER", "stripe"),
        ("CHARGE_TIMEOUT", "5"),
    ],
)
def test_a_setting_that_cannot_work_stops_the_start_and_is_named(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    settings.setenv(f"DINEMESH_{name}", value)
    with pytest.raises(SystemExit) as stopped:
        load(DepositSettings)
    assert stopped.value.code == 2
    assert f"DINEMESH_{name}" in capsys.readouterr().err
