"""Calls to others carry what they must, and never wait longer than their caller."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from dinemesh.history.v1 import history_service_pb2 as pb
from dinemesh.history.v1 import history_service_pb2_grpc as pb_grpc
from dinemesh.kit import call, errors
from dinemesh.kit.channel import ServiceToken, open_channel
from dinemesh.kit.channel import call as make_call
from dinemesh.kit.health import Health
from dinemesh.kit.refusal import Refusal
from tests.kit.serving import Servicer, answer, serving
from tests.support.ports import free_ports

REQUEST = pb.ListTimelineEntriesRequest()


async def test_a_call_carries_our_token_and_the_callers_ids(tmp_path: Path) -> None:
    seen: list[call.Call] = []

    async def look(request: Any, context: Any) -> Any:
        seen.append(call.current.get())
        return await answer(request, context)

    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with serving(tmp_path, Servicer(look)) as server:
        file = tmp_path / "token"
        file.write_text(server.keys.token("alice", "customer") + "\n")
        channel = open_channel(f"127.0.0.1:{server.service.port}")
        stub: Any = pb_grpc.HistoryServiceStub(channel)
        with call.working_on(call.Call("order-7", traceparent=traceparent, deadline=time.monotonic() + 2)):
            await make_call(stub.ListTimelineEntries, REQUEST, timeout=60, token=ServiceToken(file))
        await channel.close()
    assert (seen[0].correlation_id, seen[0].traceparent) == ("order-7", traceparent)
    assert seen[0].deadline is not None
    assert seen[0].deadline < time.monotonic() + 2.5, "the caller's deadline is the smaller one"


async def test_a_call_ends_with_its_own_timeout(tmp_path: Path) -> None:
    async def never(_request: Any, _context: Any) -> Any:
        await asyncio.Event().wait()

    async with serving(tmp_path, Servicer(never)) as server:
        file = tmp_path / "token"
        file.write_text(server.keys.token("alice", "customer"))
        channel = open_channel(f"127.0.0.1:{server.service.port}")
        stub: Any = pb_grpc.HistoryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await make_call(stub.ListTimelineEntries, REQUEST, timeout=0.2, token=ServiceToken(file))
        await channel.close()
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert errors.from_call(failed.value) is None, "the outcome is unknown"


async def test_what_another_service_refused_is_understood(tmp_path: Path) -> None:
    async def refuse(_request: Any, _context: Any) -> Any:
        raise Refusal("CARD_DECLINED", "no", retry_after=1.5, metadata={"decline_code": "stolen"})

    async with serving(tmp_path, Servicer(refuse)) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.list()
    said = errors.from_call(failed.value)
    assert said is not None
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CARD_DECLINED")
    assert (said.message, said.overloaded) == ("no", False)
    assert said.retry_after is not None and 1.5 <= said.retry_after <= 1.875
    assert said.metadata == {"decline_code": "stolen"}


@pytest.mark.parametrize(
    ("metadata", "overloaded"),
    [
        ((("x-envoy-overloaded", "true"),), True),
        ((), None),
        ((("grpc-status-details-bin", b"\xff\xff"),), None),
    ],
)
def test_what_a_proxy_answered_is_unknown_unless_it_says_overloaded(
    metadata: Any, overloaded: bool | None
) -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, grpc.aio.Metadata(*metadata))
    said = errors.from_call(error)
    assert (said.overloaded if said else None) is overloaded


async def test_a_refusal_with_a_pushback_is_not_sent_again_by_the_library(tmp_path: Path) -> None:
    received = 0

    async def refuse(_request: Any, _context: Any) -> Any:
        nonlocal received
        received += 1
        raise Refusal("UNAVAILABLE", "broken", retry_after=0)

    async with serving(tmp_path, Servicer(refuse)) as server:
        channel = open_channel(f"127.0.0.1:{server.service.port}")
        stub: Any = pb_grpc.HistoryServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ListTimelineEntries(REQUEST, metadata=server.token(), timeout=10)
        await channel.close()
    assert received == 1


async def test_after_an_outage_the_channel_works_again_within_seconds(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    channel = open_channel(f"127.0.0.1:{port}")
    stub: Any = pb_grpc.HistoryServiceStub(channel)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.ListTimelineEntries(REQUEST, timeout=10)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    async with serving(tmp_path, port=port) as server:
        async with asyncio.timeout(10):
            while True:
                try:
                    await stub.ListTimelineEntries(REQUEST, metadata=server.token(), timeout=5)
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    await asyncio.sleep(0.05)
    await channel.close()


def test_a_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(OSError, match="token"):
        ServiceToken(file)
    file.write_text("first\n")
    token = ServiceToken(file)
    assert token.current() == "first"
    file.write_text("second")
    os.utime(file, ns=(1, 1))
    assert token.current() == "second"
    file.unlink()
    assert token.current() == "second"


class Instance:
    """One of several servers behind a channel; counts the calls that it answers."""

    def __init__(self) -> None:
        self.health = Health()
        self.answered = 0
        self.under_way = 0
        self._server = grpc.aio.server()
        self.health.add_to(self._server)
        handler: Any = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("instance.Instance", {"Call": handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def _answer(self, _request: bytes, _context: Any) -> bytes:
        self.under_way += 1
        await asyncio.sleep(0.02)
        self.under_way -= 1
        self.answered += 1
        return b""

    async def start(self) -> None:
        await self._server.start()
        self.health.set_ready(True)

    async def stop(self, *, drain_seconds: float) -> None:
        """As a service stops (dinemesh/kit/service.py); without a drain, as it must not."""
        if drain_seconds:
            self.health.stop()
            await asyncio.sleep(drain_seconds)
        self.health.close()
        await self._server.stop(None if not drain_seconds else 5)


@pytest.fixture
async def instances() -> AsyncIterator[list[Instance]]:
    found = [Instance(), Instance()]
    for one in found:
        await one.start()
    yield found
    for one in found:
        await one.stop(drain_seconds=0)


class Callers:
    """Ten of them call `instance.Instance/Call` all the time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.failed: list[str] = []
        self._call: Any = channel.unary_unary("/instance.Instance/Call")
        self._calling = [asyncio.create_task(self._repeat()) for _ in range(10)]

    async def _repeat(self) -> None:
        while True:
            try:
                await self._call(b"", timeout=5)
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code()}: {error.details()}")
                await asyncio.sleep(0.002)

    async def leave(self) -> None:
        for one in self._calling:
            one.cancel()
        await asyncio.wait(self._calling)


async def until_it_answers(instance: Instance, calls: int = 20) -> None:
    """Waits for so many more answers of it."""
    wanted = instance.answered + calls
    async with asyncio.timeout(10):
        while instance.answered < wanted:  # noqa: ASYNC110  what it waits for has no event
            await asyncio.sleep(0.005)


async def test_of_several_instances_one_may_stop_and_no_call_fails(instances: list[Instance]) -> None:
    stops, stays = instances
    channel = open_channel(f"{stops.address},{stays.address}")
    callers = Callers(channel)
    for one in instances:
        await until_it_answers(one)
    await stops.stop(drain_seconds=0.5)
    answered = stops.answered
    await until_it_answers(stays)
    await callers.leave()
    assert callers.failed == []
    assert stops.answered == answered
    await channel.close()


async def test_an_instance_that_stops_without_a_drain_fails_calls(instances: list[Instance]) -> None:
    """The control of the test above: its callers would see it. Nothing is repeated by the library."""
    stops, stays = instances
    channel = open_channel(f"{stops.address},{stays.address}")
    callers = Callers(channel)
    for one in instances:
        await until_it_answers(one)
    while not stops.under_way:  # noqa: ASYNC110  as above
        await asyncio.sleep(0)
    await stops.stop(drain_seconds=0)
    await until_it_answers(stays)
    await callers.leave()
    assert callers.failed
    await channel.close()


async def test_an_instance_that_is_not_ready_gets_no_calls_until_it_is(instances: list[Instance]) -> None:
    sick, well = instances
    channel = open_channel(f"{sick.address},{well.address}")
    callers = Callers(channel)
    for one in instances:
        await until_it_answers(one)
    sick.health.set_ready(False)
    await until_it_answers(well)
    answered = sick.answered
    await until_it_answers(well, 100)
    assert sick.answered == answered
    sick.health.set_ready(True)
    await until_it_answers(sick)
    await callers.leave()
    assert callers.failed == []
    await channel.close()
