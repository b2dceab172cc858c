"""A watch finds every change, says that it lives, and always says why it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from dinemesh.kit import call
from dinemesh.kit.watch import HEARTBEAT, PAGE_PAUSE_SECONDS, Changes, End, Heartbeat, Pace, tail
from dinemesh.watch.v1 import watch_pb2
from tests.kit.serving import until

SLOW = Pace(poll_seconds=3600, heartbeat_seconds=3600, max_seconds=3600)


class Source:
    """What a watch polls."""

    def __init__(self, *items: str) -> None:
        self.items = list(items)
        self.polls = 0

    async def poll(self) -> list[str]:
        self.polls += 1
        found, self.items = self.items, []
        return found


async def following(stream: AsyncIterator[str | Heartbeat | End]) -> str | Heartbeat | End:
    async with asyncio.timeout(10):
        return await anext(stream)


async def test_it_starts_with_what_is_there_and_is_woken_by_a_change() -> None:
    source, changes = Source("a", "b"), Changes()
    stream = tail(source.poll, changes, "key", SLOW)
    assert [await following(stream), await following(stream)] == ["a", "b"]
    waiting = asyncio.ensure_future(following(stream))
    await until(lambda: source.polls >= 2)
    source.items.append("c")
    changes.notify("other key")
    changes.notify("key")
    assert await waiting == "c"


async def test_a_change_during_a_poll_is_not_missed() -> None:
    changes, found = Changes(), list[str]()
    polls = 0

    async def poll() -> list[str]:
        nonlocal polls
        polls += 1
        if polls == 1:
            changes.notify("key")  # committed after this poll has looked
            found.append("late")
            return []
        return [found.pop()]

    assert await following(tail(poll, changes, "key", SLOW)) == "late"


async def test_what_another_process_changed_is_found_by_polling() -> None:
    source = Source()
    stream = tail(source.poll, Changes(), "key", Pace(0.01, 3600, 3600))
    waiting = asyncio.ensure_future(following(stream))
    await until(lambda: source.polls >= 3)
    source.items.append("from elsewhere")
    assert await waiting == "from elsewhere"


async def test_silence_is_filled_with_heartbeats() -> None:
    stream = tail(Source().poll, Changes(), "key", Pace(3600, 0.01, 3600))
    assert [await following(stream), await following(stream)] == [HEARTBEAT, HEARTBEAT]


async def test_pages_that_hold_nothing_are_passed_over_without_waiting() -> None:
    pages: list[list[str] | None] = [None, ["a"], None, None, ["b"]]

    async def poll() -> list[str] | None:
        return pages.pop(0) if pages else []

    stream = tail(poll, Changes(), "key", SLOW)
    assert [await following(stream), await following(stream)] == ["a", "b"]


async def test_a_watch_that_is_far_behind_leaves_time_and_turns_to_the_others() -> None:
    """One whose pages never end reads no faster than its pace; another comes in between each two of them."""
    changes, reads = Changes(polls_at_once=1), list[str]()
    at_once = most = 0

    def reading(name: str) -> Callable[[], Awaitable[list[str]]]:
        async def poll() -> list[str]:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            reads.append(name)
            await asyncio.sleep(0.01)
            at_once -= 1
            return [name]

        return poll

    async def follow(name: str) -> None:
        async for _ in tail(reading(name), changes, name, SLOW):
            pass

    began = time.monotonic()
    names = ("behind", "too", "third")
    following_all = [asyncio.ensure_future(follow(name)) for name in names]
    await until(lambda: len(reads) >= 30)
    seconds = time.monotonic() - began
    changes.stop()
    await asyncio.gather(*following_all)
    assert most == 1
    assert seconds >= 9 * PAGE_PAUSE_SECONDS
    for start in range(0, 27, 3):
        assert sorted(reads[start : start + 3]) == sorted(names)


async def test_a_stop_ends_a_watch_that_is_far_behind() -> None:
    changes = Changes()

    async def poll() -> None:
        return None

    stream = tail(poll, changes, "key", SLOW)
    waiting = asyncio.ensure_future(following(stream))
    await asyncio.sleep(0)
    changes.stop()
    assert await waiting is End.SERVER_STOPPING


async def test_it_ends_with_the_item_after_which_nothing_comes() -> None:
    stream = tail(
        Source("a", "last", "never").poll, Changes(), "key", SLOW, finished=lambda item: item == "last"
    )
    assert [item async for item in stream] == ["a", "last", End.FINISHED]


async def test_it_ends_when_the_server_stops_after_what_was_still_new() -> None:
    source, changes = Source("a"), Changes()
    stream = tail(source.poll, changes, "key", SLOW)
    assert await following(stream) == "a"
    waiting = asyncio.ensure_future(following(stream))
    await until(lambda: source.polls >= 2)
    changes.stop()
    assert await waiting is End.SERVER_STOPPING
    assert [item async for item in stream] == []
    assert not changes._waiting, "nobody is waited for any more"


async def test_it_ends_before_its_longest_time_its_callers_deadline_and_its_token_do() -> None:
    now = time.monotonic()
    expiring = call.Identity("alice", "customer", expires_at=time.time() + 0.05)
    for pace, working in (
        (Pace(3600, 3600, 0.05), call.Call("c")),
        (SLOW, call.Call("c", deadline=now + 0.4)),
        (SLOW, call.Call("c", identity=expiring)),
    ):
        with call.working_on(working):
            assert await following(tail(Source().poll, Changes(), "key", pace)) is End.EXPIRED
    assert time.monotonic() < now + 5


def test_every_end_and_the_heartbeat_have_their_message() -> None:
    reasons = {end.message().reason for end in End}
    assert reasons == set(watch_pb2.EndReason.values()) - {watch_pb2.END_REASON_UNSPECIFIED}
    assert abs(HEARTBEAT.message().time.ToSeconds() - time.time()) < 60
