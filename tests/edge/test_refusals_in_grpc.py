"""What the edge itself refuses is a refusal like any other to clients of gRPC."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.edge.rpcs import RPCS
from tests.edge.stand_in import Seen, StandIn, Wire
from tests.mesh.people import bearer, until
from tests.support.edge import RunningEdge
from tests.support.refusals import Refused, refused

LIST = RPCS["ListReservations"].path
Code = grpc.StatusCode


async def call(address: str, method: str, token: str | None, body: bytes = b"", do: str = "") -> Refused:
    metadata = (*(bearer(token) if token else ()), ("x-do", do))
    async with grpc.aio.insecure_channel(address) as channel:
        rpc: Any = channel.unary_unary(method)
        return await refused(rpc(body, metadata=metadata, timeout=10))


@pytest.mark.parametrize(
    ("method", "role", "body", "code", "reason"),
    [
        (LIST, None, b"", Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        (LIST, "service", b"", Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
        (RPCS["CreateDeposit"].path, "customer", b"", Code.UNIMPLEMENTED, "NO_SUCH_METHOD"),
        (RPCS["RetryRefund"].path, None, b"", Code.UNIMPLEMENTED, "NO_SUCH_METHOD"),
        (
            "/dinemesh.sandbox.v1.SandboxService/CreateCharge",
            "operator",
            b"",
            Code.UNIMPLEMENTED,
            "NO_SUCH_METHOD",
        ),
        ("/v1/reservations", "customer", b"", Code.UNIMPLEMENTED, "NO_SUCH_METHOD"),
        (LIST, "customer", b"x" * 70_000, Code.INVALID_ARGUMENT, "BODY_TOO_LARGE"),
    ],
)
async def test_it_has_code_reason_and_message(
    edge_alone: RunningEdge,
    stand_in: StandIn,
    method: str,
    role: str | None,
    body: bytes,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    stand_in.seen.clear()
    token = None if role is None else stand_in.keys.token("alice", role)
    said = await call(edge_alone.address, method, token, body)
    assert (said.code, said.domain, said.reason) == (code, "dinemesh", reason)
    assert said.message and "{" not in said.message
    assert stand_in.seen == []


async def test_a_limit_says_when_to_come_again(
    own_edge: Callable[..., RunningEdge], stand_in: StandIn
) -> None:
    """So that a client that repeats by itself does so at the right time."""
    edge = own_edge(behind=stand_in, customer_rate_per_second=1, customer_rate_burst=1)
    token = stand_in.keys.token("greedy", "customer")
    async with grpc.aio.insecure_channel(edge.address) as channel:
        rpc: Any = channel.unary_unary(LIST)
        await rpc(b"", metadata=bearer(token), timeout=10)
    said = await call(edge.address, LIST, token)
    assert (said.code, said.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert said.retry_after is not None and 1 <= said.retry_after < 3
    assert int(str(said.trailing["retry-after"])) == math.ceil(said.retry_after)
    assert int(str(said.trailing["grpc-retry-pushback-ms"])) == said.retry_after * 1000


async def test_a_service_that_is_away_is_unavailable_and_nothing_was_changed(
    own_edge: Callable[..., RunningEdge], stand_in: StandIn
) -> None:
    edge = own_edge(behind=stand_in, addresses={"reservation": "127.0.0.1:1"})
    said = await call(edge.address, LIST, stand_in.keys.token("alice", "customer"))
    assert (said.code, said.reason, said.retry_after) == (Code.UNAVAILABLE, "UNAVAILABLE", 1)
    assert "nothing was changed" in said.message


async def test_a_connection_that_breaks_leaves_it_open_whether_a_change_was_made(
    own_edge: Callable[..., RunningEdge], stand_in: StandIn
) -> None:
    wire = Wire(stand_in)
    edge = own_edge(behind=stand_in, addresses={"reservation": wire.address})
    method = RPCS["CancelReservation"].path
    stand_in.seen.clear()
    token = stand_in.keys.token("alice", "customer")
    waiting = asyncio.create_task(call(edge.address, method, token, do="sleep 5"))
    await until(_seen(stand_in), bool, 5)
    wire.cut()
    said = await waiting
    assert (said.code, said.reason, said.retry_after) == (Code.UNAVAILABLE, "NO_ANSWER", 1)
    assert "not known whether a change was made" in said.message
    assert len(stand_in.calls("CancelReservation")) == 1, "the edge has repeated a change"


def _seen(stand_in: StandIn) -> Callable[[], Awaitable[list[Seen]]]:
    async def seen() -> list[Seen]:
        return list(stand_in.seen)

    return seen
