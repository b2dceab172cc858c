"""The reservation service in the test's own process: real gRPC, real tokens, a pod behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from dinemesh.kit.service import Service
from dinemesh.kit.settings import ServiceSettings
from dinemesh.reservation.v1 import reservation_service_pb2_grpc
from reservation_svc import servicer
from reservation_svc.usecases.context import ReservationContext
from tests.support.mesh import Keys

SECONDS = 10


class Client:
    """A caller with a token of its own."""

    def __init__(self, channel: grpc.aio.Channel, keys: Keys) -> None:
        self.channel = channel
        self.keys = keys
        self.stub: Any = reservation_service_pb2_grpc.ReservationServiceStub(channel)

    def token(self, sub: str, role: str = "customer", restaurant_id: str | None = None) -> Any:
        """Metadata of a call."""
        return (("authorization", f"Bearer {self.keys.token(sub, role, restaurant_id)}"),)

    async def call(
        self,
        method: str,
        request: Any,
        sub: str = "alice",
        role: str = "customer",
        restaurant: str | None = None,
    ) -> Any:
        return await getattr(self.stub, method)(
            request, metadata=self.token(sub, role, restaurant), timeout=SECONDS
        )

    async def call_raw(self, method: str, body: bytes) -> bytes:
        """A call whose request is these bytes."""
        path = f"/{servicer.SERVICE_NAME}/{method}"
        raw: Any = self.channel.unary_unary(path)
        answer: bytes = await raw(body, metadata=self.token("alice"), timeout=SECONDS)
        return answer


@asynccontextmanager
async def serving(ctx: ReservationContext, folder: Path) -> AsyncIterator[tuple[Client, Service]]:
    """Serves `ctx` inside the block."""
    keys = Keys(folder)
    values: dict[str, Any] = {
        "port": 0,
        "metrics_port": 0,
        "database_url": "sqlite:///unused",
        "amqp_url": "amqp://127.0.0.1:1/",
        "jwks_file": folder / "jwks.json",
        "drain_seconds": 0,
        "stop_grace_seconds": 5,
        "watch_poll_ms": 20,
        "heartbeat_seconds": 0.3,
    }
    service = Service("reservation", ServiceSettings(**values))
    service.add_servicer(
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server,
        servicer.ReservationServicer(ctx, service.changes, service.pace),
        servicer.SERVICE_NAME,
        servicer.ACCESS,
    )
    task = asyncio.create_task(service.run())
    async with asyncio.timeout(SECONDS):
        while not (task.done() or service.health.ready):  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.005)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.port}")
    try:
        yield Client(channel, keys), service
    finally:
        await channel.close()
        service.stop()
        await task
