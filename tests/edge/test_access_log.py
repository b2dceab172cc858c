"""One line for each call, with what an operator asks for and nothing that is secret."""

from __future__ import annotations

from typing import Any

import grpc
import httpx

from tests.edge.rpcs import RPCS
from tests.edge.stand_in import StandIn
from tests.mesh.people import bearer, new_id
from tests.support import grpc_web
from tests.support.edge import RunningEdge

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
