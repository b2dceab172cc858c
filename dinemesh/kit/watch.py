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
# Between two pages of a watch: one that is far behind, or whose subject never rests, reads 20 pages a second
# and leaves the processor to others. Nobody who looks on sees a twentieth of a second.
PAGE_PAUSE_SECONDS = 0.05


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
        """Takes the pace from a service's settings, where the poll interval is in milliseconds."""
        return cls(settings.watch_poll_ms / 1000, settings.heartbeat_seconds, settings.watch_max_seconds)


class Changes:
    """Tells the watches of this process that something under a key has changed, or that the server stops."""

    def __init__(self, polls_at_once: int = 1) -> None:
        """`polls_at_once` is how many reader threads watches may hold: fewer than there are."""
        self._waiting: dict[Hashable, set[asyncio.Event]] = defaultdict(set)
        self.stopping = False
        self.turn = asyncio.Semaphore(polls_at_once)
        """Held by a watch while it reads. First come, first served, so that all have fair turns."""

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
    poll: Callable[[], Awaitable[Sequence[T] | None]],
    changes: Changes,
    key: Hashable,
    pace: Pace,
    *,
    finished: Callable[[T], bool] = lambda _: False,
) -> AsyncGenerator[T | Heartbeat | End, None]:
    """Yields what `poll` finds, a HEARTBEAT when it was quiet, and one End as the last item.

    `poll` reads one page, in the watch's turn, and returns what is new in it (it keeps its own place; the
    first calls return what the watch starts with), or None where nothing is and there are more pages. It is
    called again after PAGE_PAUSE_SECONDS, or, once it returned an empty page, when there is reason to.
    `finished(item)` tells the item after which nothing more can come. A watch does not outlive its caller's
    token or deadline.
    """
    end = _end_of_time(pace)
    spoke = time.monotonic()
    with changes.listen(key) as heard:
        while True:
            async with changes.turn:
                found = await poll()
            for item in found or ():
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
            if found or found is None:
                await asyncio.sleep(PAGE_PAUSE_SECONDS)
            else:
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
