"""Dead letters: what no subscriber could read or take. Listed without touching them, sent round by hand."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from dinemesh.kit.batches import DecodeError, events_in
from dinemesh.kit.bus import REASON, Bus, dead_letter_queue

# An operator's look or pass ends, however much arrives meanwhile.
MOST = 10_000
GIVEN_BACK_SECONDS = 2.0


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter; the first event of one that holds several. `type` and `correlation_id` are empty where
    the envelope cannot be read; `reason` is in the broker's words."""

    queue: str
    event_id: str
    type: str
    correlation_id: str
    reason: str
    count: int
    since: datetime | None
    size_bytes: int


async def list_dead(bus: Bus, queue: str, *, most: int = MOST) -> list[DeadLetter]:
    """The dead letters of `queue`, oldest first; they stay where they are."""
    held: list[AbstractIncomingMessage] = []
    async with bus.channel(0) as channel:
        dead = await channel.declare_queue(dead_letter_queue(queue), passive=True)
        while len(held) < most and (message := await dead.get(fail=False)) is not None:
            held.append(message)
        if held:
            await held[-1].nack(multiple=True, requeue=True)  # they stand in their order again
    if held:
        await _given_back(bus, queue, len(held))
    return [_describe(queue, message) for message in held]


async def _given_back(bus: Bus, queue: str, count: int) -> None:
    """The broker puts back what a look had held in its own time; whoever redrives next must find it. Somebody
    else may have redriven it meanwhile: then there is nothing to wait for."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GIVEN_BACK_SECONDS):
            while await count_dead(bus, queue) < count:  # noqa: ASYNC110 - the broker does not tell
                await asyncio.sleep(0.01)


async def redrive(bus: Bus, queue: str, *, most: int = MOST) -> int:
    """Send each dead letter of `queue` back to it once; returns how many. Acknowledged after the confirm,
    so none is lost; a second copy is absorbed by the inbox."""
    sent = 0
    async with bus.channel(1) as channel:
        dead = await channel.declare_queue(dead_letter_queue(queue), passive=True)
        # Those that die again at once come back behind the ones counted here.
        for _ in range(min(most, dead.declaration_result.message_count or 0)):
            message = await dead.get(fail=False)
            if message is None:
                break
            await bus.publish_to_queue(message.body, queue, event_id=message.message_id or "unreadable")
            await message.ack()
            sent += 1
    return sent


async def count_dead(bus: Bus, queue: str) -> int:
    """How many dead letters `queue` has."""
    async with bus.channel(1) as channel:
        dead = await channel.declare_queue(dead_letter_queue(queue), passive=True)
        return dead.declaration_result.message_count or 0


def _describe(queue: str, message: AbstractIncomingMessage) -> DeadLetter:
    try:
        envelope = events_in(message.body)[0]
        event_id, kind, correlation_id = envelope.event_id, envelope.type, envelope.correlation_id
    except DecodeError:
        event_id, kind, correlation_id = "", "", ""
    death = _first_death(message)
    since = death.get("time", message.timestamp)
    return DeadLetter(
        queue=queue,
        event_id=event_id or message.message_id or "",
        type=kind,
        correlation_id=correlation_id,
        reason=str(death.get("reason", message.headers.get(REASON, "unknown"))),
        count=int(death.get("count", 1)),
        since=since.replace(tzinfo=UTC) if isinstance(since, datetime) and since.tzinfo is None else since,
        size_bytes=len(message.body),
    )


def _first_death(message: AbstractIncomingMessage) -> dict[str, Any]:
    deaths = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return dict(deaths[0])
    return {}


__all__ = ["DeadLetter", "count_dead", "list_dead", "redrive"]
