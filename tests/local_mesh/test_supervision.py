"""The supervisor's configuration: what each process gets, and that odd values arrive whole."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest
from supervisor.datatypes import dict_of_key_value_pairs

from local_mesh import parts, settings
from local_mesh.failure import Failure
from local_mesh.places import Places
from local_mesh.supervision import write_config


def written(tmp_path: Path, given: dict[str, str]) -> configparser.RawConfigParser:
    mesh = settings.build({"STATE_DIR": str(tmp_path / "state"), "AMQP_URL": "amqp://broker/", **given})
    places = Places(mesh.state_dir)
    places.make()
    write_config(mesh, places, parts.build(mesh, places, None))
    parser = configparser.RawConfigParser()
    parser.read(places.supervisor_config)
    return parser


def environment(config: configparser.RawConfigParser, part: str) -> dict[str, str]:
    values = dict_of_key_value_pairs(config[f"program:{part}"]["environment"].replace("%%", "%"))
    return {name: value for name, value in values.items() if name.startswith("DINEMESH_")}


def test_each_process_gets_its_own_settings_and_no_others(tmp_path: Path) -> None:
    config = written(tmp_path, {"DEPOSIT_CHARGE_TIMEOUT_MS": "500"})
    assert environment(config, "deposit")["DINEMESH_CHARGE_TIMEOUT_MS"] == "500"
    assert "DINEMESH_CHARGE_TIMEOUT_MS" not in environment(config, "reservation")
    assert environment(config, "deposit")["DINEMESH_SANDBOX_ADDRESS"] == "127.0.0.1:8085"
    assert environment(config, "reservation")["DINEMESH_DEPOSIT_ADDRESS"] == "127.0.0.1:8092"
    for service in settings.SERVICES:
        known = {f"DINEMESH_{name}" for name in settings.service_settings(service)}
        assert environment(config, service).keys() <= known


def test_what_the_user_exported_does_not_leak_into_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINEMESH_PORT", "1")
    assert environment(written(tmp_path, {}), "history")["DINEMESH_PORT"] == "8083"


def test_a_database_url_arrives_whole(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:p%40ss,w=rd%25@db:5432/name?options=-c%20x%3D1&a='b'c"
    assert (
        environment(written(tmp_path, {"HISTORY_DATABASE_URL": url}), "history")["DINEMESH_DATABASE_URL"]
        == url
    )


@pytest.mark.parametrize("value", ['a"b', "a'", "a\\b", "a\nb"])
def test_a_value_that_cannot_be_passed_on_is_refused_by_name(tmp_path: Path, value: str) -> None:
    with pytest.raises(Failure, match="DINEMESH_DATABASE_URL"):
        written(tmp_path, {"HISTORY_DATABASE_URL": value})


def test_the_socket_fits_however_long_the_path_of_the_checkout_is(tmp_path: Path) -> None:
    places = Places(tmp_path / ("deep" * 40) / "state")
    assert len(os.fsencode(places.socket)) <= 107


def test_the_configuration_is_for_our_user_only(tmp_path: Path) -> None:
    written(tmp_path, {})
    assert (tmp_path / "state" / "supervisord.conf").stat().st_mode & 0o077 == 0
