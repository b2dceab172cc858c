"""`make up DEPOSITS=2`: one of them goes, and bookings go on."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from local_mesh import machine, parts, tokens
from local_mesh.broker import RunningBroker
from tests.local_mesh.running import LocalMesh, free_table, wait_until
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer


@pytest.fixture
def mesh(tmp_path: Path, broker: RunningBroker, postgres: PostgresServer) -> Iterator[LocalMesh]:
    port, metrics_port = free_ports(2)
    whole = LocalMesh(
        tmp_path / "state",
        AMQP_URL=broker.fresh_url(),
        DEPOSITS="2",
        DEPOSIT_DATABASE_URL=postgres.fresh("deposit_svc"),
        DEPOSIT_2_PORT=str(port),
        DEPOSIT_2_METRICS_PORT=str(metrics_port),
    )
    try:
        whole.up()
        yield whole
    finally:
        whole.down()
    assert machine.processes_of(whole.settings.state_dir) == []


def book(mesh: LocalMesh, table: dict[str, str]) -> httpx.Response:
    token = tokens.person(mesh.places, "alice", "customer")
    return httpx.post(
        f"http://{mesh.settings.address('edge')}/v1/reservations",
        headers={"authorization": f"Bearer {token}"},
        json={"requestId": str(uuid.uuid4()), "partySize": 1, "paymentToken": "tok_visa", **table},
        timeout=15,
    )


def taken(mesh: LocalMesh, part: str) -> int:
    """Charges that this instance has answered."""
    return len(re.findall(r'"message": "call".*CreateDeposit', mesh.places.log(part).read_text()))


def has_taken(mesh: LocalMesh, part: str, charges: int) -> bool:
    return taken(mesh, part) == charges


def test_of_two_deposits_either_can_be_taken_away(mesh: LocalMesh) -> None:
    status = mesh.run("status")
    assert status.returncode == 0, status.stdout
    assert re.search(r"^deposit-2 +running +ready ", status.stdout, re.MULTILINE)
    # Up means that both proxies know both of them.
    assert [parts.found_ready(mesh.settings, proxy, "deposit") for proxy in ("edge", "policy")] == [2, 2]
    other_database = mesh.run(
        "up", DINEMESH_DEPOSIT_DATABASE_URL="postgresql+psycopg://me:secret@elsewhere/deposit"
    )
    assert "The mesh runs with DEPOSIT_DATABASE_URL=postgresql+psycopg://...@" in other_database.stderr
    table = free_table(mesh)
    for gone, other in (("deposit", "deposit-2"), ("deposit-2", "deposit")):
        assert mesh.run("stop", SERVICE=gone).returncode == 0
        assert not parts.is_well(mesh.settings, gone, "live")
        wanted = taken(mesh, other) + 3
        for _ in range(3):
            answer = book(mesh, table)
            assert answer.status_code == 200, answer.text
        # The log comes by way of the supervisor, a moment later.
        wait_until(partial(has_taken, mesh, other, wanted), f"all calls at {other}", 10)
        assert mesh.get("/healthz/deposit") == 200
        assert mesh.run("start", SERVICE=gone).returncode == 0
    audit = mesh.run("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
