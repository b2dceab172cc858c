"""A real history service: a process of its own, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from dinemesh.event.v1 import envelope_pb2
from dinemesh.history.v1 import history_service_pb2 as api
from dinemesh.history.v1 import history_service_pb2_grpc
from dinemesh.kit.bus import Bus
from local_mesh.broker import RunningBroker
from tests.history import stories
from tests.support.mesh import Keys, Part
from tests.support.ports import free_ports

ARRIVE_SECONDS = 30


@dataclass
class LiveHistory:
    """The process, the keys that it trusts, and a way to tell it events."""

    part: Part
    keys: Keys
    amqp_url: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def stub(self) -> history_service_pb2_grpc.HistoryServiceAsyncStub:
        channel = grpc.aio.insecure_channel(self.part.address)
        self.channels.append(channel)
        return history_service_pb2_grpc.HistoryServiceStub(channel)

    def as_(self, sub: str, role: str = "customer") -> tuple[tuple[str, str], ...]:
        """Metadata with a token."""
        restaurant_id = stories.RESTAURANT if role == "staff" else None
        return (("authorization", f"Bearer {self.keys.token(sub, role, restaurant_id)}"),)

    async def tell(self, *bodies: bytes) -> None:
        """Publishes events as a service would."""
        async with connected(self.amqp_url) as bus:
            for body in bodies:
                event = envelope_pb2.Envelope.FromString(body)
                await bus.publish(body, f"{event.source}.v1.happened", event_id=event.event_id)

    async def shows(self, customer_id: str, count: int) -> list[str]:
        """The sentences of a customer's timeline, once there are so many."""
        sentences: list[str] = []
        request = api.ListTimelineEntriesRequest(page_size=200)
        stub = self.stub()
        async with asyncio.timeout(ARRIVE_SECONDS):
            while len(sentences) < count:
                answer = await stub.ListTimelineEntries(
                    request, metadata=self.as_(customer_id), wait_for_ready=True
                )
                sentences = [entry.summary for entry in answer.entries]
                await asyncio.sleep(0.02)
        return sentences


@asynccontextmanager
async def connected(amqp_url: str) -> AsyncIterator[Bus]:
    """A bus that is connected inside the block."""
    bus = Bus(amqp_url, "test")
    running = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(ARRIVE_SECONDS):
            await bus.wait_connected(ARRIVE_SECONDS)
            while not bus.can_publish:  # noqa: ASYNC110 (the bus has no event for it)
                await asyncio.sleep(0.01)
        yield bus
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture(scope="module")
def history_process(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHistory]:
    live = make_history(tmp_path_factory.mktemp("history"), broker.fresh_url())
    live.part.start()
    yield live
    live.part.stop()


@pytest.fixture
async def live(history_process: LiveHistory) -> AsyncIterator[LiveHistory]:
    yield history_process
    for channel in history_process.channels:
        await channel.close()
    history_process.channels.clear()


def make_history(folder: Path, amqp_url: str, **settings: str) -> LiveHistory:
    """A history service that is not started yet."""
    keys = Keys(folder)
    port, metrics_port = free_ports(2)
    environment = {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "DATABASE_URL": f"sqlite:///{folder}/history.db",
        "AMQP_URL": amqp_url,
        "JWKS_FILE": str(keys.jwks_file),
        "DRAIN_SECONDS": "0",
        "STOP_GRACE_SECONDS": "1",
        "HEARTBEAT_SECONDS": "0.5",
        "WATCH_POLL_MS": "100",
    }
    part = Part("history", "history_svc.main", port, environment | settings, folder / "history.log")
    return LiveHistory(part, keys, amqp_url)
