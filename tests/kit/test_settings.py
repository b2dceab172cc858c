"""Settings fail loudly: every problem is named with its variable."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
from pydantic import model_validator

from dinemesh.kit.settings import ServiceSettings, load

GOOD = {
    "DINEMESH_PORT": "8081",
    "DINEMESH_METRICS_PORT": "9081",
    "DINEMESH_DATABASE_URL": "sqlite:///x.db",
    "DINEMESH_AMQP_URL": "amqp://localhost",
    "DINEMESH_JWKS_FILE": "jwks.json",
}


class Own(ServiceSettings):
    deposit_deadline_ms: int = 3000
    hold_ms: int = 5000

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.deposit_deadline_ms >= self.hold_ms:
            raise ValueError("deposit_deadline_ms must be below hold_ms")
        return self


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)


def test_a_service_reads_the_common_settings_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINEMESH_DEPOSIT_DEADLINE_MS", "1500")
    settings = load(Own)
    assert (settings.port, settings.deposit_deadline_ms) == (8081, 1500)
    assert settings.jwks_file == Path("jwks.json")


def test_every_problem_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DINEMESH_PORT", "hunter2")
    monkeypatch.setenv("DINEMESH_DEPOSIT_DEADLINE", "1500")
    monkeypatch.setenv("DINEMESH_LOG_LEVEL", "LOUD")
    monkeypatch.delenv("DINEMESH_AMQP_URL")
    with pytest.raises(SystemExit) as ended:
        load(Own)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    for name in ("PORT", "DEPOSIT_DEADLINE: unknown", "LOG_LEVEL", "AMQP_URL: is required"):
        assert f"DINEMESH_{name}" in told
    assert "hunter2" not in told


def test_a_password_in_a_url_is_not_shown() -> None:
    assert "sqlite:///x.db" not in repr(load(Own))


def test_settings_that_contradict_each_other_are_told_as_their_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DINEMESH_HOLD_MS", "3000")
    with pytest.raises(SystemExit):
        load(Own)
    told = capsys.readouterr().err
    assert "deposit_deadline_ms must be below hold_ms" in told
    assert "DINEMESH_:" not in told


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "a month", "", "3651", "1e1", "²"])
def test_a_retention_is_some_whole_days(
    days: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(Own).retention_days == 30
    monkeypatch.setenv("DINEMESH_RETENTION_DAYS", "7")
    assert load(Own).retention_days == 7
    monkeypatch.setenv("DINEMESH_RETENTION_DAYS", days)
    with pytest.raises(SystemExit):
        load(Own)
    assert (
        "DINEMESH_RETENTION_DAYS: must be whole days, from 1 to 3650, such as 30" in capsys.readouterr().err
    )
