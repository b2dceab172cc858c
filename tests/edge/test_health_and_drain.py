"""What the edge says of itself and of the services, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from tests.edge.conftest import CALL_SECONDS
from tests.edge.stand_in import StandIn
from tests.support.edge import RunningEdge
from tests.support.json_refusals import json_refusal
from tests.support.mesh import SERVICES, state_of

NOTICED = 10.0
"""Seconds; two checks, one a second, and room for a busy machine."""
OwnEdge = Callable[..., RunningEdge]


@pytest.fixture
def services(stand_in: StandIn) -> Iterator[dict[str, StandIn]]:
    """A stand-in for each of them."""
    found = {name: StandIn(stand_in.keys) for name in SERVICES}
    yield found
    for one in found.values():
        one.stop()


@pytest.fixture
def before_them(own_edge: OwnEdge, stand_in: StandIn, services: dict[str, StandIn]) -> RunningEdge:
    addresses = {name: one.address for name, one in services.items()}
    return own_edge(behind=stand_in, addresses=addresses)


def healths(edge: RunningEdge) -> dict[str, int]:
    paths = ["/livez", "/healthz", *(f"/healthz/{name}" for name in SERVICES)]
    with httpx.Client(base_url=edge.url, timeout=CALL_SECONDS) as http:
        return {path: http.get(path).status_code for path in paths}


def not_ready(answer: httpx.Response, message: str) -> None:
    """It says so, and nothing else that could be meant for callers of an RPC or for another Envoy."""
    said = json_refusal(answer)
    assert (said.status, said.reason, said.message) == (503, "UNAVAILABLE", message)
    assert not [name for name in answer.headers if name.startswith("x-envoy")], answer.headers


def well_but(*sick: str) -> dict[str, int]:
    found = {f"/healthz/{name}": 503 if name in sick else 200 for name in SERVICES}
    return {"/livez": 200, "/healthz": 503 if sick else 200} | found


def wait_for(edge: RunningEdge, expected: dict[str, int]) -> None:
    end = time.monotonic() + NOTICED
    while (found := healths(edge)) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.05)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_not_ready_is_told_apart_from_the_others(
    before_them: RunningEdge, services: dict[str, StandIn], service: str
) -> None:
    wait_for(before_them, well_but())
    services[service].healthy = False
    wait_for(before_them, well_but(service))
    for path in ("/healthz", f"/healthz/{service}"):
        answer = httpx.get(f"{before_them.url}{path}", timeout=CALL_SECONDS)
        not_ready(answer, "a service behind the edge is not ready")
    services[service].healthy = True
    wait_for(before_them, well_but())


def test_a_service_that_is_gone_is_noticed_and_refused_at_once(
    before_them: RunningEdge, services: dict[str, StandIn], stand_in: StandIn
) -> None:
    wait_for(before_them, well_but())
    services["history"].stop()
    wait_for(before_them, well_but("history"))
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    with httpx.Client(base_url=before_them.url, headers=headers, timeout=CALL_SECONDS) as http:
        started = time.monotonic()
        said = json_refusal(http.get("/v1/timeline"))
        assert time.monotonic() - started < 1
        assert (said.status, said.reason, said.retry_after) == (503, "UNAVAILABLE", 1)
        assert "nothing was changed" in said.message
        assert http.get("/v1/reservations").status_code == 200


def test_health_needs_no_token_says_nothing_more_and_is_not_in_the_access_log(
    edge_alone: RunningEdge,
) -> None:
    answer = httpx.get(f"{edge_alone.url}/healthz", timeout=CALL_SECONDS)
    assert (answer.status_code, answer.text) == (200, "")
    assert not [name for name in answer.headers if name.startswith("x-envoy")]
    missing = httpx.get(f"{edge_alone.url}/healthz/sandbox", timeout=CALL_SECONDS)
    assert json_refusal(missing).reason == "NO_SUCH_METHOD"
    edge_alone.logged(correlation_id=missing.headers["x-correlation-id"])
    assert answer.headers["x-correlation-id"] not in edge_alone.log.read_text()


def envoy_of(edge: RunningEdge) -> int:
    """Its process, which is the child of the runner."""
    tasks = f"/proc/{edge.pid}/task/{edge.pid}/children"
    with open(tasks) as children:
        (pid,) = children.read().split()
    return int(pid)


def refuses_connections(edge: RunningEdge) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", edge.port), timeout=1):
            return False
    except ConnectionRefusedError:
        return True


async def eventually(what: Callable[[], bool], seconds: float = NOTICED) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.02)


async def test_a_call_in_flight_is_finished_before_the_edge_ends(
    own_edge: OwnEdge, stand_in: StandIn
) -> None:
    edge = own_edge(behind=stand_in)
    envoy = envoy_of(edge)
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    stand_in.seen.clear()
    async with (
        httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=CALL_SECONDS) as busy,
        httpx.AsyncClient(base_url=edge.url, timeout=CALL_SECONDS) as idle,
    ):
        assert (await idle.get("/livez")).status_code == 200  # its connection stays
        in_flight = asyncio.create_task(busy.get("/v1/reservations", headers={"x-do": "sleep 1.5"}))
        await eventually(lambda: len(stand_in.seen) == 1)
        edge.ask_to_stop()
        await eventually(lambda: refuses_connections(edge))
        assert not in_flight.done(), "void: it had ended before the edge was asked"
        told = await idle.get("/livez")
        assert (told.status_code, told.headers.get("connection")) == (503, "close")
        not_ready(told, "this edge is being stopped")
        answer = await in_flight
        assert (answer.status_code, answer.headers.get("connection")) == (200, "close")
    await eventually(lambda: not edge.running)
    assert state_of(envoy) == ""


async def test_a_grpc_call_in_flight_is_finished_too(own_edge: OwnEdge, stand_in: StandIn) -> None:
    edge = own_edge(behind=stand_in)
    stand_in.seen.clear()
    metadata = (
        ("authorization", f"Bearer {stand_in.keys.token('alice', 'customer')}"),
        ("x-do", "sleep 1.5"),
    )
    async with grpc.aio.insecure_channel(edge.address) as channel:
        method = "/dinemesh.reservation.v1.ReservationService/ListReservations"
        rpc: Any = channel.unary_unary(method)
        call = rpc(b"", metadata=metadata, timeout=CALL_SECONDS)
        await eventually(lambda: len(stand_in.seen) == 1)
        edge.ask_to_stop()
        await eventually(lambda: refuses_connections(edge))
        assert not call.done(), "void: it had ended before the edge was asked"
        assert await call == b""
    await eventually(lambda: not edge.running)


async def test_a_watch_does_not_keep_the_edge_from_ending(own_edge: OwnEdge, stand_in: StandIn) -> None:
    """It breaks when the time for draining is over, and its client finds no `end`."""
    edge = own_edge(behind=stand_in, drain_seconds=1)
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}", "x-do": "quiet 30"}
    async with (
        httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=CALL_SECONDS) as http,
        http.stream("GET", "/v1/reservations/x:watch") as response,
    ):
        lines = response.aiter_lines()
        assert list(json.loads(await anext(lines))) == ["heartbeat"]
        edge.ask_to_stop()
        started = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(lines)
        assert time.monotonic() - started > 0.8, "it was not given its time"
    await eventually(lambda: not edge.running)


def test_an_edge_that_has_nothing_to_finish_ends_at_once(own_edge: OwnEdge, stand_in: StandIn) -> None:
    edge = own_edge(behind=stand_in, drain_seconds=60)
    started = time.monotonic()
    edge.stop()
    assert time.monotonic() - started < 10
    assert refuses_connections(edge)


async def test_envoy_goes_with_its_runner(own_edge: OwnEdge, stand_in: StandIn) -> None:
    edge = own_edge(behind=stand_in)
    envoy = envoy_of(edge)
    edge.kill()
    await eventually(lambda: state_of(envoy) in ("", "Z"))
    await eventually(lambda: refuses_connections(edge))


async def test_the_runner_goes_with_envoy_so_that_a_supervisor_starts_both(
    own_edge: OwnEdge, stand_in: StandIn
) -> None:
    edge = own_edge(behind=stand_in)
    os.kill(envoy_of(edge), signal.SIGKILL)
    await eventually(lambda: not edge.running)
