"""The settings of the mesh on one machine: a wrong one stops it, and is named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from local_mesh import parts, settings
from local_mesh.commands import Mesh, show_settings
from local_mesh.envoy.edge import EdgeValues
from local_mesh.failure import Failure
from local_mesh.places import Places
from local_mesh.supervision import STOP_SECONDS


def told(given: dict[str, str]) -> str:
    with pytest.raises(Failure) as failure:
        settings.build(given)
    return str(failure.value)


def test_without_settings_every_port_is_the_documented_one() -> None:
    assert settings.build({}).ports == {
        "EDGE_PORT": 8080,
        "EDGE_ADMIN_PORT": 8090,
        "POLICY_PORT": 8092,
        "POLICY_ADMIN_PORT": 8093,
        "RESERVATION_PORT": 8081,
        "DEPOSIT_PORT": 8082,
        "HISTORY_PORT": 8083,
        "RESTAURANT_PORT": 8084,
        "SANDBOX_PORT": 8085,
        "RESERVATION_METRICS_PORT": 9081,
        "DEPOSIT_METRICS_PORT": 9082,
        "HISTORY_METRICS_PORT": 9083,
        "RESTAURANT_METRICS_PORT": 9084,
        "SANDBOX_METRICS_PORT": 9085,
        "RABBITMQ_PORT": 5673,
        "RABBITMQ_DIST_PORT": 25673,
        "EPMD_PORT": 4370,
    }


def test_a_misspelt_setting_is_refused_with_the_one_that_was_meant() -> None:
    assert "RESERVATON_PORT: there is no such setting. Did you mean RESERVATION_PORT?" in told(
        {"RESERVATON_PORT": "9"}
    )


@pytest.mark.parametrize("value", ["", "0", "65536", "http", "-1", "80.5"])
def test_a_port_that_is_none_is_refused(value: str) -> None:
    assert f"RESERVATION_PORT={value}: must be a port" in told({"RESERVATION_PORT": value})


def test_all_problems_are_told_at_once() -> None:
    text = told(
        {"RABBITMQ_PORT": "x", "SAMPLES": "maybe", "AMQP_URL": "http://here", "DEPOSIT_COLOUR": "red"}
    )
    for problem in ("RABBITMQ_PORT=x", "SAMPLES=maybe", "AMQP_URL=http://here", "DEPOSIT_COLOUR"):
        assert problem in text


def test_one_port_for_two_things_is_refused() -> None:
    assert "RESERVATION_PORT=9500: DEPOSIT_PORT is the same port" in told(
        {"DEPOSIT_PORT": "9500", "RESERVATION_PORT": "9500"}
    )


def test_a_setting_of_a_service_goes_to_that_service_only() -> None:
    mesh = settings.build({"RESERVATION_GROUP_COMMIT": "false"})
    assert [name for name, values in mesh.services.items() if "GROUP_COMMIT" in values] == ["reservation"]


def test_the_retention_goes_to_every_service_and_to_the_broker_unless_one_is_told_otherwise(
    tmp_path: Path,
) -> None:
    mesh = settings.build({"RETENTION_DAYS": "7", "HISTORY_RETENTION_DAYS": "90"})
    places = Places(tmp_path)
    told_days = {
        service: parts._environment(service, service, mesh, places).get("DINEMESH_RETENTION_DAYS")
        for service in settings.SERVICES
    }
    assert told_days == {"sandbox": None, "history": "90"} | dict.fromkeys(
        ("reservation", "deposit", "restaurant"), "7"
    )
    parts._broker_users(mesh, places)
    (policy,) = json.loads(places.broker_definitions.read_text())["policies"]
    assert policy["definition"]["max-age"] == "7D"


@pytest.mark.parametrize("days", ["0", "1.5", "-3", "3651", "soon"])
def test_a_retention_that_is_none_is_refused(days: str) -> None:
    assert f"RETENTION_DAYS={days}: must be whole days, from 1 to 3650" in told({"RETENTION_DAYS": days})


def test_a_broker_of_ones_own_needs_no_ports_of_ours() -> None:
    mesh = settings.build({"AMQP_URL": "amqp://me:secret@broker:5672/"})
    assert not mesh.own_broker
    assert "RABBITMQ_PORT" not in mesh.ports


def test_settings_survive_being_written_down() -> None:
    mesh = settings.build({"STATE_DIR": "elsewhere", "HISTORY_PORT": "9999", "SAMPLES": "off"})
    assert settings.MeshSettings.from_json(mesh.to_json()) == mesh


def test_settings_come_from_makes_command_line_and_from_prefixed_variables() -> None:
    environment = {
        "MAKEFLAGS": "s -j2 --jobserver-auth=3,4 -- "
        r"RESERVATION_PORT=9000 SERVICE=deposit RESERVATION_DATABASE_URL=a\ b",
        "RESERVATION_PORT": "9000",
        "RESERVATION_DATABASE_URL": "a b",
        "SERVICE": "deposit",
        "DINEMESH_HISTORY_PORT": "9100",
        "DEPOSIT_PORT": "tcp://10.0.0.1:80",
    }
    assert settings.given_values(environment) == {
        "RESERVATION_PORT": "9000",
        "RESERVATION_DATABASE_URL": "a b",
        "HISTORY_PORT": "9100",
    }


def test_makes_command_line_wins_over_the_environment() -> None:
    environment = {
        "MAKEFLAGS": " -- HISTORY_PORT=9200",
        "HISTORY_PORT": "9200",
        "DINEMESH_HISTORY_PORT": "9100",
    }
    assert settings.given_values(environment) == {"HISTORY_PORT": "9200"}


def shown(given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """What `make settings` prints: by name, the value and the lines below it, as one."""
    capsys.readouterr()
    show_settings(Mesh(given))
    found = re.findall(r"^([A-Z0-9_]+)=(.*)\n((?: {4}.*\n)+)", capsys.readouterr().out, re.MULTILINE)
    return {name: (value, " ".join(below.split())) for name, value, below in found}


def test_each_setting_is_shown_with_its_value_default_unit_and_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "STATE_DIR": str(tmp_path),
        "EDGE_DRAIN_SECONDS": "7",
        "RESERVATION_GROUP_COMMIT": "off",
        "DEPOSIT_DATABASE_URL": "postgresql+psycopg://me:secret@there/deposit",
    }
    told = shown(given, capsys)
    assert list(told) == settings.all_names()
    for name, (_, about) in told.items():
        assert re.fullmatch(r"default \S+; [a-zA-Z:, 0-9]+\. [A-Z].{10,}", about), f"{name}\n{about}"
    assert told["EDGE_DRAIN_SECONDS"][0] == "7"
    assert told["EDGE_DRAIN_SECONDS"][1].startswith("default 10; seconds. What calls in flight get")
    assert told["RESERVATION_GROUP_COMMIT"][0] == "off"
    assert told["RESERVATION_GROUP_COMMIT"][1].startswith(
        "default on; on or off. Commit what waits together."
    )
    assert told["DEPOSIT_DATABASE_URL"][0] == "postgresql+psycopg://...@there/deposit"
    assert told["DEPOSIT_DATABASE_URL"][1].startswith(
        f"default sqlite:///{tmp_path}/data/deposit.sqlite; URL."
    )
    # What the mesh tells a service is shown, not what the service has by itself.
    assert told["RESERVATION_DEPOSIT_ADDRESS"][0] == "127.0.0.1:8092"
    assert told["HISTORY_LOG_LEVEL"][1].startswith("default INFO; DEBUG, INFO, WARNING, ERROR. ")


def test_what_make_settings_shows_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = shown({"STATE_DIR": str(tmp_path)}, capsys)
    # The passwords of the mesh's own broker are not shown.
    given = {name: value for name, (value, _) in first.items() if value and not name.endswith("AMQP_URL")}
    assert shown(given, capsys) == first
    for service in settings.SERVICES:
        for cls in settings.service_classes(service):
            own = {
                name.lower(): given[f"{service.upper()}_{name}"]
                for name in settings.service_settings(service)
                if f"{service.upper()}_{name}" in given
            }
            if "amqp_url" in cls.model_fields:
                own["amqp_url"] = "amqp://broker/"
            cls.model_validate(own)


def edge(**given: str) -> EdgeValues:
    mesh = settings.build({f"EDGE_{name}": value for name, value in given.items()})
    return parts.edge_values(mesh, Places(mesh.state_dir))


def test_what_the_edge_is_told_arrives() -> None:
    values = edge(PORT="9080", CUSTOMER_RATE_PER_SECOND="3", STREAM_IDLE_SECONDS="2.5", TRUSTED_HOPS="2")
    assert values.trusted_hops == 2
    assert (values.port, values.customer_rate_per_second, values.stream_idle_seconds) == (9080, 3, 2.5)
    assert values.deposit == ["127.0.0.1:8082"]


def test_what_make_settings_shows_for_the_edge_is_what_it_has() -> None:
    assert edge(**settings.edge_settings()) == edge()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_PER_SECOND", "0"),
        ("RATE_BURST", "1.5"),
        ("TRUSTED_HOPS", "-1"),
        ("TRUSTED_HOPS", "10.0.0.0/8"),
        ("DEFAULT_DEADLINE_SECONDS", "never"),
        ("DRAIN_SECONDS", "16"),
        ("ADMIN_PORT", "0"),
        ("ALLOWED_ORIGINS", "dinemesh.example"),
        ("ALLOWED_ORIGINS", "https://dinemesh.example/page"),
        ("ALLOWED_ORIGINS", "*"),
    ],
)
def test_a_wrong_setting_of_the_edge_is_named(name: str, value: str) -> None:
    assert f"EDGE_{name}={value}: must be" in told({f"EDGE_{name}": value})


def test_a_misspelt_setting_of_the_edge_is_refused_with_the_one_that_was_meant() -> None:
    assert "EDGE_RATE_PER_SECND: there is no such setting. Did you mean EDGE_RATE_PER_SECOND?" in told(
        {"EDGE_RATE_PER_SECND": "5"}
    )


def test_the_edge_and_a_service_on_one_port_are_refused() -> None:
    assert "is the same port" in told({"EDGE_PORT": "8081"})


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        ("https://dinemesh.example", "https://dinemesh.example", "https://dinemeshXexample"),
        ("https://dinemesh.example", "https://dinemesh.example", "https://dinemesh.example:444"),
        ("http://localhost:*", "http://localhost:5173", "http://localhost.evil.example"),
        ("http://localhost:*", "http://localhost", "http://localhost:"),
        (
            "https://*.dinemesh.example",
            "https://www.dinemesh.example",
            "https://evil.example/.dinemesh.example",
        ),
        ("http://[::1]:3000", "http://[::1]:3000", "http://1:3000"),
        ("http://other,https://dinemesh.example", "https://dinemesh.example", "http://other,"),
    ],
)
def test_an_origin_is_allowed_as_a_whole(setting: str, allowed: str, refused: str) -> None:
    patterns = edge(ALLOWED_ORIGINS=setting).allowed_origins
    assert any(re.fullmatch(pattern, allowed) for pattern in patterns)
    assert not any(re.fullmatch(pattern, refused) for pattern in patterns)


def test_reservation_asks_the_proxy_and_the_proxy_asks_deposit() -> None:
    mesh = settings.build({"POLICY_PORT": "9192", "DEPOSIT_PORT": "9182"})
    assert environments(mesh)["reservation"]["DINEMESH_DEPOSIT_ADDRESS"] == "127.0.0.1:9192"
    assert parts.policy_values(mesh).deposit == ["127.0.0.1:9182"]
    past = settings.build({"RESERVATION_DEPOSIT_ADDRESS": "127.0.0.1:8082"})
    assert environments(past)["reservation"]["DINEMESH_DEPOSIT_ADDRESS"] == "127.0.0.1:8082"


def test_what_the_proxy_before_deposit_is_told_arrives() -> None:
    values = parts.policy_values(settings.build({"POLICY_CALLS_LIMIT": "5", "POLICY_EJECTION_SECONDS": "2"}))
    assert (values.calls_limit, values.ejection_seconds) == (5, 2)
    assert "POLICY_CALLS_LIMIT=0: must be" in told({"POLICY_CALLS_LIMIT": "0"})
    assert "Did you mean POLICY_CALLS_LIMIT?" in told({"POLICY_CALL_LIMIT": "5"})


def test_reservation_waits_longer_than_the_proxy_or_is_refused() -> None:
    assert "RESERVATION_DEPOSIT_DEADLINE_MS=3000: must be above POLICY_CHARGE_TIMEOUT_SECONDS (3)" in told(
        {"RESERVATION_DEPOSIT_DEADLINE_MS": "3000"}
    )
    settings.build({"RESERVATION_DEPOSIT_DEADLINE_MS": "3000", "POLICY_CHARGE_TIMEOUT_SECONDS": "2.5"})
    assert "RESERVATION_DEPOSIT_DEADLINE_MS=4000: must be above POLICY_CHARGE_TIMEOUT_SECONDS (5)" in told(
        {"POLICY_CHARGE_TIMEOUT_SECONDS": "5"}
    )


POSTGRESQL = {"DEPOSITS": "2", "DEPOSIT_DATABASE_URL": "postgresql+psycopg://me:secret@here/deposit"}


def test_two_deposits_on_one_database_stand_behind_the_proxy_and_the_edge() -> None:
    mesh = settings.build(POSTGRESQL)
    both = ["127.0.0.1:8082", "127.0.0.1:8086"]
    assert parts.policy_values(mesh).deposit == both
    assert parts.edge_values(mesh, Places(mesh.state_dir)).deposit == both
    told_to = environments(mesh)
    one, other = told_to["deposit"], told_to["deposit-2"]
    assert {name for name in one if one[name] != other[name]} == {"DINEMESH_PORT", "DINEMESH_METRICS_PORT"}
    assert (other["DINEMESH_PORT"], other["DINEMESH_METRICS_PORT"]) == ("8086", "9086")
    # One of them can stop, and nobody notices: the proxies ask every second.
    assert float(one["DINEMESH_DRAIN_SECONDS"]) >= 3
    assert "deposit-2" not in environments(settings.build({}))


def test_two_deposits_on_a_file_are_refused_with_the_setting_that_is_missing() -> None:
    for given in ({"DEPOSITS": "2"}, {"DEPOSITS": "2", "DEPOSIT_DATABASE_URL": "sqlite:////tmp/one.sqlite"}):
        text = told(given)
        assert "DEPOSITS=2: several instances need one PostgreSQL, like DEPOSIT_DATABASE_URL=post" in text
    assert "DEPOSITS=3: must be 1 or 2" in told({"DEPOSITS": "3"})


def test_the_ports_of_a_second_deposit_count_only_if_there_is_one() -> None:
    assert "DEPOSIT_2_PORT" not in settings.build({"DEPOSIT_2_PORT": "8081"}).ports
    assert "is the same port" in told(POSTGRESQL | {"DEPOSIT_2_PORT": "8081"})


def environments(mesh: settings.MeshSettings) -> dict[str, Mapping[str, str]]:
    return {part.name: part.environment for part in parts.build(mesh, Places(mesh.state_dir), None)}


def test_the_edge_has_drained_before_the_supervisor_kills_it() -> None:
    assert settings.LONGEST_DRAIN_SECONDS < STOP_SECONDS
    assert parts.POLICY_DRAIN_SECONDS < settings.LONGEST_DRAIN_SECONDS
