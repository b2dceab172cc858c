"""Readiness and liveness as a probe sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dinemesh.kit.health import Health
from tests.kit.serving import SERVICE, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def asking(channel: grpc.aio.Channel) -> Any:
    make: Any = health_pb2_grpc.HealthStub
    return make(channel)


async def status(channel: grpc.aio.Channel, name: str) -> int:
    answer = await asking(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return int(answer.status)


async def test_a_server_is_alive_but_not_ready_until_told_so() -> None:
    health, server = Health(), grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await status(channel, "") == NOT_SERVING
        assert await status(channel, "live") == SERVING
        health.set_ready(True)
        assert await status(channel, "") == SERVING
        health.stop()
        health.set_ready(True)
        assert await status(channel, "") == NOT_SERVING
        assert await status(channel, "live") == SERVING
    await server.stop(None)


async def test_a_ready_service_answers_by_its_full_name_and_refuses_unknown_ones(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await status(server.channel, SERVICE) == SERVING
        listed = await asking(server.channel).List(health_pb2.HealthListRequest(), timeout=10)
        assert set(listed.statuses) == {"", "live", SERVICE}
        try:
            await status(server.channel, "dinemesh.other.v1.Service")
            raise AssertionError("known")
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_of_health_tells_the_stop_and_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, stop_grace_seconds=60) as server:
        watch = asking(server.channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert (await watch.read()).status == SERVING
        unknown = asking(server.channel).Watch(health_pb2.HealthCheckRequest(service="x"), timeout=30)
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        server.service.stop()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await asyncio.wait_for(server.task, 20)


async def test_a_watch_of_health_lasts_through_the_drain() -> None:
    """A gRPC client whose watch has ended asks again at once, and again, until the door closes."""
    health, server = Health(), grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    health.set_ready(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = asking(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert (await watch.read()).status == SERVING
        health.stop()
        assert (await watch.read()).status == NOT_SERVING
        ended = asyncio.ensure_future(watch.read())
        for _ in range(3):  # whatever would end it is done before these are answered
            assert await status(channel, "") == NOT_SERVING
        assert not ended.done()
        health.close()
        assert await asyncio.wait_for(ended, 10) is grpc.aio.EOF
    await server.stop(None)
