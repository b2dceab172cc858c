"""What the edge says when a service does not answer: each caller hears only what helps with that call."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from tests.edge.conftest import CALL_SECONDS
from tests.edge.rpcs import RPCS
from tests.edge.stand_in import StandIn, Wire
from tests.mesh.people import new_id
from tests.support.edge import RunningEdge
from tests.support.json_refusals import JsonRefused, json_refusal, the_service_was_first
from tests.support.mesh import SERVICES
from tests.support.refusals import refused

LATE = "the service did not answer in time"
BROKEN = "the connection to the service broke"
TRIES = 10
UNKNOWN = "it is not known whether a change was made"
CALLS: dict[str, tuple[str, str, str]] = {
    "a read": ("GET", "/v1/reservations", ""),
    "a change with a request_id": (
        "POST",
        "/v1/reservations",
        f"; {UNKNOWN}: repeat with the same request_id",
    ),
    "a change of a restaurant with one": (
        "POST",
        "/v1/restaurants",
        f"; {UNKNOWN}: repeat with the same request_id",
    ),
    "a change without": ("POST", "/v1/restaurants/x/slots:open", f"; {UNKNOWN}: read first how it stands"),
    "another": ("POST", "/v1/reservations/x:cancel", f"; {UNKNOWN}: read first how it stands"),
}
"""Verb, path, and how the message ends."""


def asked(http: httpx.Client, stand_in: StandIn, kind: str, do: str, **more: str) -> httpx.Response:
    verb, path, _ = CALLS[kind]
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}", "x-do": do} | more
    body: dict[str, Any] = {"json": {}} if verb == "POST" else {}
    return http.request(verb, path, headers=headers, **body)


def told(http: httpx.Client, stand_in: StandIn, kind: str, do: str) -> JsonRefused:
    return json_refusal(asked(http, stand_in, kind, do))


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_that_took_too_long_is_told_what_to_do(
    edge_alone: RunningEdge, stand_in: StandIn, kind: str
) -> None:
    with httpx.Client(base_url=edge_alone.url, timeout=CALL_SECONDS) as http:
        for _ in range(TRIES):
            answer = asked(http, stand_in, kind, "sleep 3", **{"grpc-timeout": "300m"})
            if not the_service_was_first(answer):
                break
    said = json_refusal(answer)
    assert (said.status, said.reason, said.retry_after) == (504, "DEADLINE_EXCEEDED", 1)
    assert said.message == LATE + CALLS[kind][2]


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_whose_connection_broke_is_told_what_to_do(
    own_edge: Callable[..., RunningEdge], stand_in: StandIn, kind: str
) -> None:
    wire = Wire(stand_in)
    edge = own_edge(behind=stand_in, addresses=dict.fromkeys(SERVICES, wire.address))
    edge.wait_until_healthy()
    stand_in.seen.clear()
    with (
        httpx.Client(base_url=edge.url, timeout=CALL_SECONDS) as http,
        ThreadPoolExecutor(1) as other,
    ):
        waiting = other.submit(told, http, stand_in, kind, "sleep 5")
        end = time.monotonic() + CALL_SECONDS
        while not stand_in.seen:
            assert time.monotonic() < end and not waiting.done(), "it did not arrive"
            time.sleep(0.01)
        wire.cut()
        said = waiting.result()
    assert (said.status, said.reason, said.retry_after) == (503, "NO_ANSWER", 1)
    assert said.message == BROKEN + CALLS[kind][2]


def no_call_at_all(config: dict[str, Any]) -> None:
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] == "reservation":
            cluster["circuit_breakers"] = {"thresholds": [{"max_requests": 0}]}


async def test_too_many_calls_at_once_are_told_that_it_is_too_busy(
    own_edge: Callable[..., RunningEdge], stand_in: StandIn
) -> None:
    """Not that the service cannot be reached, after which somebody would look for a fault."""
    edge = own_edge(behind=stand_in, mutate=no_call_at_all)
    with httpx.Client(base_url=edge.url, timeout=CALL_SECONDS) as http:
        said = told(http, stand_in, "a read", "")
    assert (said.status, said.reason, said.retry_after) == (503, "UNAVAILABLE", 1)
    assert said.message == "the service is too busy, and nothing was changed"
    async with grpc.aio.insecure_channel(edge.address) as channel:
        call: Any = channel.unary_unary(RPCS["ListReservations"].path)
        token = stand_in.keys.token("alice", "customer")
        metadata = (("authorization", f"Bearer {token}"), ("x-correlation-id", new_id()))
        refusal = await refused(call(b"", metadata=metadata, timeout=CALL_SECONDS))
    assert refusal.reason == "UNAVAILABLE" and "too busy" in refusal.message
