"""How long a client waits is what the service sees, however the client speaks."""

from __future__ import annotations

import httpx
import pytest

from dinemesh.history.v1 import history_service_pb2
from dinemesh.reservation.v1 import reservation_service_pb2
from tests.edge.conftest import calls_logged
from tests.mesh.people import Doors, bearer, new_id
from tests.support import grpc_web
from tests.support.mesh import RunningMesh

LIST = "/dinemesh.reservation.v1.ReservationService/ListReservations"
LATE = 1000
"""Milliseconds that a busy machine may take from the edge to the service."""


async def seen_by_the_service(mesh: RunningMesh, correlation_id: str) -> int | None:
    """Milliseconds that the caller had left when its call arrived; None if it had set no deadline."""
    (line,) = await calls_logged(mesh, "reservation", correlation_id)
    found: int | None = line.get("deadline_ms")
    return found


def headers_of(mesh: RunningMesh, correlation_id: str, timeout: str) -> dict[str, str]:
    found = {"authorization": f"Bearer {mesh.token('alice', 'customer')}", "x-correlation-id": correlation_id}
    return found | ({"grpc-timeout": timeout} if timeout else {})


CASES = [
    pytest.param("", 10_000, id="none asked for: the default"),
    pytest.param("2S", 2_000, id="a shorter one"),
    pytest.param("15S", 15_000, id="a longer one"),
    pytest.param("2H", 30_000, id="one above what is allowed"),
]


@pytest.mark.parametrize(("timeout", "milliseconds"), CASES)
async def test_a_json_clients_deadline_is_seen_by_the_service(
    http: httpx.AsyncClient, mesh: RunningMesh, timeout: str, milliseconds: int
) -> None:
    answer = await http.get("/v1/reservations", headers=headers_of(mesh, correlation := new_id(), timeout))
    assert answer.status_code == 200, answer.text
    seen = await seen_by_the_service(mesh, correlation)
    assert seen is not None and milliseconds - LATE <= seen <= milliseconds + 100


@pytest.mark.parametrize(("timeout", "milliseconds"), CASES)
async def test_a_grpc_web_clients_deadline_is_seen_by_the_service(
    http: httpx.AsyncClient, mesh: RunningMesh, timeout: str, milliseconds: int
) -> None:
    answer = await grpc_web.call(http, LIST, b"", headers_of(mesh, correlation := new_id(), timeout))
    assert answer.status == 0
    seen = await seen_by_the_service(mesh, correlation)
    assert seen is not None and milliseconds - LATE <= seen <= milliseconds + 100


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [
        pytest.param(None, 10_000, id="none asked for: the default"),
        pytest.param(2, 2_000, id="a shorter one"),
        pytest.param(15, 15_000, id="a longer one"),
        pytest.param(7200, 30_000, id="one above what is allowed"),
    ],
)
async def test_a_grpc_clients_deadline_is_seen_by_the_service(
    doors: Doors, mesh: RunningMesh, timeout: float | None, milliseconds: int
) -> None:
    await doors.reservation.ListReservations(
        reservation_service_pb2.ListReservationsRequest(),
        metadata=(*bearer(mesh.token("alice", "customer")), ("x-correlation-id", correlation := new_id())),
        timeout=timeout,
    )
    seen = await seen_by_the_service(mesh, correlation)
    assert seen is not None and milliseconds - LATE <= seen <= milliseconds + 100


async def test_a_watch_has_as_long_as_the_services_give_it(doors: Doors, mesh: RunningMesh) -> None:
    """3600 s of the services' own, so that the last message is theirs; the edge ends only what forgot to."""
    watch = doors.history.WatchTimeline(
        history_service_pb2.WatchTimelineRequest(),
        metadata=(*bearer(mesh.token("alice", "customer")), ("x-correlation-id", correlation := new_id())),
    )
    await watch.read()  # a heartbeat: it has begun
    watch.cancel()
    (line,) = await calls_logged(mesh, "history", correlation)
    assert 3_600_000 < line["deadline_ms"] <= 3_660_100
