"""A real server in the test's own process, with one small servicer over the contract of history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from dinemesh.history.v1 import history_service_pb2 as pb
from dinemesh.history.v1 import history_service_pb2_grpc as pb_grpc
from dinemesh.kit.interceptors import ANYONE
from dinemesh.kit.service import Service
from dinemesh.kit.settings import ServiceSettings
from tests.support.mesh import Keys

SERVICE = "dinemesh.history.v1.HistoryService"
LIST = f"/{SERVICE}/ListTimelineEntries"
WATCH = f"/{SERVICE}/WatchTimeline"
ACCESS = {LIST: frozenset({"customer"}), WATCH: ANYONE}

Listing = Callable[[pb.ListTimelineEntriesRequest, Any], Awaitable[pb.ListTimelineEntriesResponse]]
Watching = Callable[[pb.WatchTimelineRequest, Any], AsyncIterator[pb.WatchTimelineResponse]]


async def answer(_request: Any, _context: Any) -> pb.ListTimelineEntriesResponse:
    return pb.ListTimelineEntriesResponse(next_page_token="answered")


async def one_message(_request: Any, _context: Any) -> AsyncIterator[pb.WatchTimelineResponse]:
    yield pb.WatchTimelineResponse()


class Servicer(pb_grpc.HistoryServiceServicer):
    """Does what a test gives it to do."""

    def __init__(self, listing: Listing = answer, watching: Watching = one_message) -> None:
        self.listing = listing
        self.watching = watching

    async def ListTimelineEntries(self, request: pb.ListTimelineEntriesRequest, context: Any) -> Any:
        return await self.listing(request, context)

    async def WatchTimeline(self, request: pb.WatchTimelineRequest, context: Any) -> Any:
        async for message in self.watching(request, context):
            yield message


class Serving:
    """A running service and what a client of it needs."""

    def __init__(self, service: Service, servicer: Servicer, keys: Keys, task: asyncio.Task[None]) -> None:
        self.service = service
        self.servicer = servicer
        self.keys = keys
        self.task = task
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{service.port}")
        self.stub: Any = pb_grpc.HistoryServiceStub(self.channel)

    def token(self, role: str = "customer", **claims: Any) -> tuple[tuple[str, str], ...]:
        """Metadata with a token."""
        return (("authorization", f"Bearer {self.keys.token('alice', role, **claims)}"),)

    async def list(self, *metadata: tuple[str, str], **options: Any) -> pb.ListTimelineEntriesResponse:
        """A call that is allowed, with more metadata."""
        answered: pb.ListTimelineEntriesResponse = await self.stub.ListTimelineEntries(
            pb.ListTimelineEntriesRequest(), metadata=(*self.token(), *metadata), timeout=10, **options
        )
        return answered


def settings_for(folder: Path, **changes: Any) -> ServiceSettings:
    values: dict[str, Any] = {
        "port": 0,
        "metrics_port": 0,
        "database_url": f"sqlite:///{folder}/test.db",
        "amqp_url": "amqp://127.0.0.1:1/",
        "jwks_file": folder / "jwks.json",
        "drain_seconds": 0,
        "stop_grace_seconds": 5,
    }
    return ServiceSettings(**(values | changes))


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until something is so; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what it waits for has no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    folder: Path,
    servicer: Servicer | None = None,
    *,
    arrange: Callable[[Service], None] = lambda _: None,
    limits: dict[str, Any] | None = None,
    ready: bool = True,
    **changes: Any,
) -> AsyncIterator[Serving]:
    """A service that runs inside the block. `arrange` adds parts; `ready=False` waits only for its ports."""
    keys = Keys(folder)
    servicer = servicer or Servicer()
    service = Service("history", settings_for(folder, **changes))
    service.add_servicer(pb_grpc.add_HistoryServiceServicer_to_server, servicer, SERVICE, ACCESS, limits)
    arrange(service)
    task = asyncio.create_task(service.run())
    await until(lambda: task.done() or (service.health.ready if ready else service.metrics_port > 0))
    if task.done():
        task.result()
    running = Serving(service, servicer, keys, task)
    try:
        yield running
    finally:
        await running.channel.close()
        service.stop()
        await task
