"""One line for each call, with what an operator asks for, nothing that is secret, and not too much of it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from dinemesh.event.v1.envelope_pb2 import Envelope
from tests.edge.conftest import calls_logged
from tests.edge.rpcs import RPCS, Rpc
from tests.edge.stand_in import StandIn
from tests.history.conftest import connected
from tests.kit.serving import until
from tests.mesh.people import bearer, new_id
from tests.support import grpc_web
from tests.support.edge import RunningEdge
from tests.support.mesh import SERVICES, RunningMesh

FIELDS = {
    *("time", "message", "method", "path", "grpc_method", "http_code", "grpc_status", "ms", "correlation_id"),
    *("request_bytes", "response_bytes", "flags", "details", "route", "upstream", "attempts", "protocol"),
    "client",
}


async def test_a_call_in_json(alone: httpx.AsyncClient, edge_alone: RunningEdge, stand_in: StandIn) -> None:
    token = stand_in.keys.token("alice", "customer")
    answer = await alone.get(
        "/v1/deposits", params={"page_token": "secret-place"}, headers={"authorization": f"Bearer {token}"}
    )
    line = edge_alone.logged(correlation_id=answer.headers["x-correlation-id"])
    assert set(line) == FIELDS
    assert (line["method"], line["path"]) == ("GET", "/v1/deposits")
    assert (line["route"], line["grpc_method"]) == ("ListDeposits", RPCS["ListDeposits"].path)
    assert (line["http_code"], line["grpc_status"]) == (200, "OK")
    assert (line["upstream"], line["attempts"]) == (stand_in.address, 1)
    assert isinstance(line["ms"], int) and line["response_bytes"] == len(answer.content)
    whole = edge_alone.log.read_text()
    assert token not in whole and "secret-place" not in whole


async def test_a_call_in_grpc_that_is_refused_has_its_status_beside_an_http_code_of_200(
    channel_alone: grpc.aio.Channel, edge_alone: RunningEdge, stand_in: StandIn
) -> None:
    call: Any = channel_alone.unary_unary(RPCS["ListReservations"].path)
    token = stand_in.keys.token("alice", "customer")
    metadata = (*bearer(token), ("x-do", "refuse ETAG_MISMATCH"), ("x-correlation-id", wanted := new_id()))
    try:
        await call(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.ABORTED
    line = edge_alone.logged(correlation_id=wanted)
    assert (line["http_code"], line["grpc_status"], line["protocol"]) == (200, "Aborted", "HTTP/2")
    assert line["path"] == line["grpc_method"] == RPCS["ListReservations"].path


async def test_a_call_in_grpc_web(
    alone: httpx.AsyncClient, edge_alone: RunningEdge, stand_in: StandIn
) -> None:
    headers = {"authorization": f"Bearer {stand_in.keys.token('alice', 'service')}"}
    answer = await grpc_web.call(alone, RPCS["ListReservations"].path, b"", headers)
    line = edge_alone.logged(correlation_id=answer.headers["x-correlation-id"])
    assert line["grpc_status"] == "PermissionDenied"
    assert line["details"].startswith("rbac_access_denied")


async def test_a_refusal_of_the_edge_tells_why(alone: httpx.AsyncClient, edge_alone: RunningEdge) -> None:
    answer = await alone.get("/v1/reservations/x:frobnicate?token=secret-word")
    line = edge_alone.logged(correlation_id=answer.headers["x-correlation-id"])
    assert (line["http_code"], line["path"]) == (404, "/v1/reservations/x:frobnicate")
    assert "NOT_FOUND" in line["details"]
    assert "secret-word" not in edge_alone.log.read_text()


async def test_what_a_client_calls_itself_is_cut_for_the_logs_of_proxies_behind_the_edge(
    alone: httpx.AsyncClient, stand_in: StandIn
) -> None:
    assert (await alone.get("/v1/restaurants", headers={"user-agent": "a" * 3000})).status_code == 200
    assert stand_in.calls("ListRestaurants")[-1].metadata["user-agent"] == "a" * 200


LONGEST = 1024
"""Bytes of a line, without the stack trace of a service."""
LONG = {"letters": 4000 * "x", "quotes": 4000 * '"', "another alphabet": 4000 * "\u6f22"}


def filled(rpc: Rpc, text: str) -> Message:
    """A request with the text wherever one may stand."""
    request = rpc.request()
    for field in rpc.request.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(request, field.name, text)
        elif field.type == field.TYPE_STRING:
            getattr(request, field.name).append(text)
    return request


def page_token(text: str) -> str:
    """Of the form that the services give out, with the text for each value."""
    return base64.urlsafe_b64encode(json.dumps({"id": text, "name": text, "time": text}).encode()).decode()


async def sent_through_every_door(
    mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient, text: str
) -> None:
    """In each field of each request, in tokens, metadata and page tokens, and as events."""
    plain = text if text.isascii() else "x" * len(text)
    alice = {"authorization": f"Bearer {mesh.token('alice', 'customer')}"}
    callers = [
        {**alice, "user-agent": plain[:2000], "x-anything": plain[:2000]},
        {**alice, "x-correlation-id": plain},
        {"authorization": f"Bearer {plain}"},
        {"authorization": f"Bearer {mesh.token('sam', 'staff', plain[:1000])}"},
    ]
    async with contextlib.AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for name, address in (("edge", edge.address), *((one, mesh[one].address) for one in SERVICES))
        }
        for rpc, caller in itertools.product(RPCS.values(), callers):
            requests = [filled(rpc, text)]
            if "page_token" in rpc.request.DESCRIPTOR.fields_by_name:
                requests += (rpc.request(page_token=page_token(sent)) for sent in (text, 700 * "\ud800"))
            for request in requests:
                for channel in (channels[rpc.service], channels["edge"]):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await rpc.over_grpc(channel, request, tuple(caller.items()))
                if rpc.verb and not rpc.streams:
                    await grpc_web.call(http, rpc.path, request.SerializeToString(), caller)
                    call = rpc.over_http(request)
                    query = {key: str(value)[:2000] for key, value in call.query.items()}
                    await http.request(
                        rpc.verb, call.path[:4000], params=query, json=call.body, headers=caller
                    )
    async with connected(mesh.amqp_url) as bus:
        # Without a type it cannot be read; what it says of itself is in the line that tells so.
        body = Envelope(event_id=text, aggregate_id=text, correlation_id=text).SerializeToString()
        for event in (text.encode(), body):
            await bus.publish(event, "reservation.v1.confirmed", event_id=plain[:200])


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
async def test_nothing_that_is_sent_makes_a_line_of_a_log_long(
    mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient, text: str
) -> None:
    logs = [edge.log, *(mesh[name].log for name in SERVICES)]
    before = [log.stat().st_size for log in logs]
    await sent_through_every_door(mesh, edge, http, text)
    last = {"authorization": f"Bearer {mesh.token('alice', 'customer')}", "x-correlation-id": new_id()}
    await http.get("/v1/reservations", headers=last)
    edge.logged(correlation_id=last["x-correlation-id"])
    await calls_logged(mesh, "reservation", last["x-correlation-id"])
    history = mesh["history"].log
    unread = b"cannot be read and becomes a dead letter"
    await until(lambda: history.read_bytes()[before[-1] :].count(unread) >= 2)
    for log, size in zip(logs, before, strict=True):
        lines = log.read_bytes()[size:].splitlines()
        assert len(lines) > 10, log
        for line in lines:
            without = line
            if b'"exc_info"' in line:
                said = json.loads(line)
                assert text[:500] not in said.pop("exc_info")
                without = json.dumps(said).encode()
            assert len(without) <= LONGEST, f"{log.name}: {line[:400]!r}"
