"""The broker as the operator's commands use it: connected for one command, and asked about queues by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from aio_pika.exceptions import ChannelNotFoundEntity

from dinemesh.kit.bus import Bus, BusUnavailable, Refused
from dinemesh.kit.dead_letters import DeadLetter, count_dead, list_dead, redrive
from dinemesh.kit.workers import cancel

LISTENS: Mapping[str, tuple[str, ...]] = {
    "reservation.restaurants": ("restaurant",),
    "reservation.deposits": ("deposit",),
    "deposit.instructions": ("reservation",),
    "restaurant.bookings": ("reservation",),
    "history.timeline": ("reservation", "deposit", "restaurant"),
}
"""By subscriber, whose events it takes: the mesh's own. Subscribers are named by whoever runs the command."""
QUEUES = tuple(LISTENS)

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 3.0
"""A broker that takes messages says within milliseconds that it has no such queue."""
_NO_QUEUE = "dinemesh.no-such-queue"

T = TypeVar("T")


class NoBroker(Exception):
    """The broker was not reached in time."""


class NoQueue(Exception):
    """A queue that was named does not exist."""


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
    """The dead letters of a queue; none of one of the mesh that was not declared yet. Raises NoQueue."""
    return (await _asked(bus, queue, list_dead)) or []


async def redriven(bus: Bus, queue: str) -> int:
    """How many dead letters of a queue were sent back to it. Raises NoQueue."""
    return (await _asked(bus, queue, redrive)) or 0


async def check_exists(bus: Bus, queue: str) -> None:
    """Raises NoQueue."""
    await _asked(bus, queue, count_dead)


async def _asked(bus: Bus, queue: str, question: Callable[[Bus, str], Awaitable[T]]) -> T | None:
    """None for a queue of the mesh that was not declared yet: its subscriber has never run."""
    try:
        return await question(bus, queue)
    except ChannelNotFoundEntity:
        if queue in QUEUES:
            return None
        raise NoQueue(
            f"there is no queue {queue} with dead letters; those of the mesh are {', '.join(QUEUES)}, and a"
            " subscriber that joined later has one of its own"
        ) from None


async def blocks(bus: Bus) -> bool:
    """Whether the broker takes no messages from anybody, because it is short of memory or disk. It blocks
    those who send something, after their first message: these go to a queue that does not exist, and leave
    nothing behind."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            for _ in range(2):
                with suppress(Refused):
                    await bus.publish_to_queue(b"", _NO_QUEUE, event_id="probe")
    except (BusUnavailable, TimeoutError):
        return bus.blocked
    return False
