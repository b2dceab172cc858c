"""Watches: streams that tail the database, woken early by a change in the same process.

What makes it work across processes is the polling; the wake-up only makes it quick.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from dinemesh.kit import call, wire
from dinemesh.kit.settings import ServiceSettings
from dinemesh.watch.v1 import watch_pb2

T = TypeVar("T")

# A watch says EXPIRED this long before its caller's deadline, or the caller would see a broken stream.
_DEADLINE_MARGIN_SECONDS = 0.25


class End(enum.Enum):
    """Why a watch ends; the last item of every watch. The names are those of dinemesh.watch.v1.EndReason."""

    FINISHED = "FINISHED"
    SERVER_STOPPING = "SERVER_STOPPING"
    EXPIRED = "EXPIRED"

    def message(self) -> watch_pb2.End:
        """As it goes over the wire."""
        return watch_pb2.End(reason=watch_pb2.EndReason.Value(f"END_REASON_{self.name}"))


class Heartbeat(enum.Enum):
    """Nothing has changed for a while."""

    HEARTBEAT = "HEARTBEAT"

    def message(self) -> watch_pb2.Heartbeat:
        """As it goes over the wire, with the time at which it is sent."""
        return watch_pb2.Heartbeat(time=wire.to_timestamp(dt.datetime.now(dt.UTC)))


HEARTBEAT: Final = Heartbeat.HEARTBEAT


@dataclass(frozen=True, slots=True)
class Pace:
    """How a watch keeps time, in seconds."""

    poll_seconds: float = 0.5
    heartbeat_seconds: float = 15.0
    max_seconds: float = 3600.0

    @classmethod
    def of(cls, settings: ServiceSettings) -> Pace:
        return cls(settings.watch_poll_ms / 1000, settings.heartbeat_seconds, settings.watch_max_seconds)


class Changes:
    """Tells the watches of this process that something under a key has changed, or that the server stops."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, set[asyncio.Event]] = defaultdict(set)
        self.stopping = False

    def notify(self, key: Hashable) -> None:
        """Wakes the watches of `key`. From the event loop's thread, such as in `tx.after_commit`."""
        for event in self._waiting.get(key, ()):
            event.set()

    def stop(self) -> None:
        """Ends all watches with SERVER_STOPPING."""
        self.stopping = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    def listen(self, key: Hashable) -> _Listening:
        """Hears of every change from now on, also of one between two waits."""
        return _Listening(self._waiting, key)

    async def wait(self, key: Hashable, seconds: float) -> None:
        """Returns after a change under `key`, or after `seconds`. In a loop use `listen`: it misses none."""
        with self.listen(key) as heard:
            if not self.stopping:
                await heard.wait(seconds)


class _Listening:
    def __init__(self, waiting: dict[Hashable, set[asyncio.Event]], key: Hashable) -> None:
        self._waiting = waiting
        self._key = key
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._waiting[self._key].add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        events = self._waiting[self._key]
        events.discard(self._event)
        if not events:
            del self._waiting[self._key]

    async def wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()


async def tail(
    poll: Callable[[], Awaitable[Sequence[T]]],
    changes: Changes,
    key: Hashable,
    pace: Pace,
    *,
    finished: Callable[[T], bool] = lambda _: False,
) -> AsyncGenerator[T | Heartbeat | End, None]:
    """Yields what `poll` finds, a HEARTBEAT when it was quiet, and one End as the last item.

    `poll` returns what is new since it was called last (it keeps its own place; the first call returns what
    the watch starts with) and is called again at once as long as it finds something. `finished(item)` tells
    the item after which nothing more can come. A watch does not outlive its caller's token or deadline.
    """
    end = _end_of_time(pace)
    spoke = time.monotonic()
    with changes.listen(key) as heard:
        while True:
            found = await poll()
            for item in found:
                yield item
                if finished(item):
                    yield End.FINISHED
                    return
            now = time.monotonic()
            if found:
                spoke = now
            elif now - spoke >= pace.heartbeat_seconds:
                yield HEARTBEAT
                spoke = now
            if changes.stopping:
                yield End.SERVER_STOPPING
                return
            if now >= end:
                yield End.EXPIRED
                return
            if not found:
                quiet_until = min(spoke + pace.heartbeat_seconds, end)
                await heard.wait(min(pace.poll_seconds, quiet_until - now))


def _end_of_time(pace: Pace) -> float:
    now = time.monotonic()
    longest = pace.max_seconds
    left = call.time_left()
    if left is not None:
        longest = min(longest, left - _DEADLINE_MARGIN_SECONDS)
    expires_at = call.identity().expires_at
    if expires_at is not None:
        longest = min(longest, expires_at - time.time())
    return now + longest
