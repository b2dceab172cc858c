"""The broker as the operator's commands use it: connected for one command, and asked about queues by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.exceptions import ChannelNotFoundEntity

from dinemesh.kit.bus import Bus, BusUnavailable, Refused
from dinemesh.kit.dead_letters import DeadLetter, list_dead
from dinemesh.kit.workers import cancel

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 3.0
"""A broker that takes messages says within milliseconds that it has no such queue."""
_NO_QUEUE = "dinemesh.no-such-queue"


class NoBroker(Exception):
    """The broker was not reached in time."""


@asynccontextmanager
async def connected(amqp_url: str) -> AsyncIterator[Bus]:
    """A bus that is connected inside the block. Raises NoBroker."""
    bus = Bus(amqp_url, "operations")
    running = asyncio.create_task(bus.run())
    try:
        if not await bus.wait_connected(CONNECT_SECONDS):
            raise NoBroker(f"the broker was not reached within {CONNECT_SECONDS:g} s")
        yield bus
    finally:
        await cancel(running)


async def dead_letters_of(bus: Bus, queue: str) -> list[DeadLetter]:
    """The dead letters of a queue; none if there is no such queue."""
    try:
        return await list_dead(bus, queue)
    except ChannelNotFoundEntity:
        return []


async def blocks(bus: Bus) -> bool:
    """Whether the broker takes no messages from anybody, because it is short of memory or disk. It says so
    to those who send something: this goes to a queue that does not exist, and leaves nothing behind."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await bus.publish_to_queue(b"", _NO_QUEUE, event_id="probe")
    except Refused:
        return False
    except (BusUnavailable, TimeoutError):
        return bus.blocked
    return False
