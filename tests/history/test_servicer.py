"""HistoryService as a client meets it: a real process, real events, real tokens."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import grpc
import pytest

from dinemesh.history.v1 import history_pb2
from dinemesh.history.v1 import history_service_pb2 as api
from dinemesh.watch.v1 import watch_pb2
from tests.history import stories
from tests.history.conftest import LiveHistory
from tests.support.refusals import refused

WATCH_SECONDS = 30
Watch = grpc.aio.UnaryStreamCall[api.WatchTimelineRequest, api.WatchTimelineResponse]


@pytest.fixture
def reservation_id() -> str:
    return str(uuid.uuid4())


def someone() -> str:
    """A customer whom no other test knows."""
    return f"customer-{uuid.uuid4()}"


def kinds(entries: Iterable[history_pb2.TimelineEntry]) -> list[str]:
    return [stories.kind_name(entry.kind) for entry in entries]


async def next_of(watch: Watch) -> api.WatchTimelineResponse:
    message = await watch.read()
    assert isinstance(message, api.WatchTimelineResponse), "the stream ended"
    return message


async def rest_of(watch: Watch) -> list[api.WatchTimelineResponse]:
    """All messages up to the end of the stream."""
    messages = []
    while isinstance(message := await watch.read(), api.WatchTimelineResponse):
        messages.append(message)
    return messages


async def test_the_timeline_shows_each_step_in_its_order(live: LiveHistory, reservation_id: str) -> None:
    alice = someone()
    story = stories.booked_and_cancelled(alice, reservation_id)
    await live.tell(*reversed(story), *story)
    await live.shows(alice, len(story))
    request = api.ListTimelineEntriesRequest(reservation_id=reservation_id.upper())
    answer = await live.stub().ListTimelineEntries(request, metadata=live.as_(alice))
    assert kinds(answer.entries) == list(stories.KINDS_OF_THE_STORY)
    assert {entry.reservation_id for entry in answer.entries} == {reservation_id}
    assert all(entry.summary for entry in answer.entries)
    assert answer.next_page_token == ""


async def test_pages_follow_each_other(live: LiveHistory, reservation_id: str) -> None:
    alice = someone()
    story = stories.booked_and_cancelled(alice, reservation_id)
    await live.tell(*story)
    await live.shows(alice, len(story))
    found: list[str] = []
    token = ""
    while True:
        request = api.ListTimelineEntriesRequest(page_size=3, page_token=token)
        page = await live.stub().ListTimelineEntries(request, metadata=live.as_(alice))
        assert len(page.entries) <= 3
        found += kinds(page.entries)
        token = page.next_page_token
        if not token:
            break
    assert found == list(stories.KINDS_OF_THE_STORY)


async def test_somebody_elses_timeline_is_not_found(live: LiveHistory, reservation_id: str) -> None:
    alice, bob = someone(), someone()
    await live.tell(*stories.booked_and_cancelled(alice, reservation_id))
    await live.shows(alice, len(stories.KINDS_OF_THE_STORY))
    nobodys = str(uuid.uuid4())
    for asked in (reservation_id, nobodys):
        request = api.ListTimelineEntriesRequest(reservation_id=asked)
        told = await refused(live.stub().ListTimelineEntries(request, metadata=live.as_(bob)))
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        watch = live.stub().WatchTimeline(
            api.WatchTimelineRequest(reservation_id=asked), metadata=live.as_(bob)
        )
        told = await refused(watch.read())
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    mine = await live.stub().ListTimelineEntries(api.ListTimelineEntriesRequest(), metadata=live.as_(bob))
    assert list(mine.entries) == []


@pytest.mark.parametrize("role", ["staff", "operator", "service"])
async def test_a_timeline_is_for_customers(live: LiveHistory, role: str) -> None:
    metadata = live.as_("someone", role)
    told = await refused(live.stub().ListTimelineEntries(api.ListTimelineEntriesRequest(), metadata=metadata))
    assert told.code is grpc.StatusCode.PERMISSION_DENIED
    told = await refused(live.stub().WatchTimeline(api.WatchTimelineRequest(), metadata=metadata).read())
    assert told.code is grpc.StatusCode.PERMISSION_DENIED


async def test_without_a_token_there_is_nothing_to_see(live: LiveHistory) -> None:
    told = await refused(live.stub().ListTimelineEntries(api.ListTimelineEntriesRequest()))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (
            api.ListTimelineEntriesRequest(reservation_id="'; DROP TABLE timeline_entries; --"),
            "reservation_id",
        ),
        (api.ListTimelineEntriesRequest(reservation_id="../../etc/passwd"), "reservation_id"),
        (api.ListTimelineEntriesRequest(reservation_id="\x00"), "reservation_id"),
        (api.ListTimelineEntriesRequest(page_size=-1), "page_size"),
        (api.ListTimelineEntriesRequest(page_token="junk"), "page_token"),
        (api.ListTimelineEntriesRequest(page_token="A" * 5000), "page_token"),
        (api.WatchTimelineRequest(reservation_id="x"), "reservation_id"),
        (api.WatchTimelineRequest(resume_token="junk"), "resume_token"),
    ],
)
async def test_a_bad_request_names_its_field(
    live: LiveHistory, request_: api.ListTimelineEntriesRequest | api.WatchTimelineRequest, field: str
) -> None:
    metadata = live.as_("alice")
    if isinstance(request_, api.WatchTimelineRequest):
        told = await refused(live.stub().WatchTimeline(request_, metadata=metadata).read())
    else:
        told = await refused(live.stub().ListTimelineEntries(request_, metadata=metadata))
    assert (told.code, told.reason, told.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        (field,),
    )


async def test_a_watch_is_live_breathes_and_goes_on_where_it_was(
    live: LiveHistory, reservation_id: str
) -> None:
    alice = someone()
    story = stories.booked_and_cancelled(alice, reservation_id)
    await live.tell(*story[:3])
    await live.shows(alice, 3)
    watch = live.stub().WatchTimeline(
        api.WatchTimelineRequest(), metadata=live.as_(alice), timeout=WATCH_SECONDS
    )
    seen: list[api.WatchTimelineResponse] = []
    beats = 0
    told_more = False
    async for message in watch:
        if message.HasField("heartbeat"):
            beats += 1
        elif message.HasField("entry"):
            seen.append(message)
        if len(seen) == 3 and beats and not told_more:
            await live.tell(*story[3:])
            told_more = True
        if len(seen) == len(story):
            break
    watch.cancel()
    assert kinds(message.entry for message in seen) == list(stories.KINDS_OF_THE_STORY)
    assert beats >= 1

    resumed = live.stub().WatchTimeline(
        api.WatchTimelineRequest(resume_token=seen[4].resume_token),
        metadata=live.as_(alice),
        timeout=WATCH_SECONDS,
    )
    rest = [await next_of(resumed) for _ in range(3)]
    assert kinds(message.entry for message in rest) == list(stories.KINDS_OF_THE_STORY[5:])
    resumed.cancel()


async def test_a_watch_says_that_its_time_is_over(live: LiveHistory) -> None:
    watch = live.stub().WatchTimeline(api.WatchTimelineRequest(), metadata=live.as_(someone()), timeout=1.5)
    messages = await rest_of(watch)
    assert messages[-1].end.reason == watch_pb2.END_REASON_EXPIRED


async def test_a_watch_says_that_the_server_stops(live: LiveHistory, reservation_id: str) -> None:
    alice = someone()
    story = stories.booked_and_cancelled(alice, reservation_id)
    await live.tell(*story)
    await live.shows(alice, len(story))
    watch = live.stub().WatchTimeline(
        api.WatchTimelineRequest(), metadata=live.as_(alice), timeout=WATCH_SECONDS
    )
    assert (await next_of(watch)).HasField("entry")
    before = live.part.pid
    live.part.stop()
    messages = await rest_of(watch)
    assert messages[-1].end.reason == watch_pb2.END_REASON_SERVER_STOPPING
    live.part.start()
    assert live.part.pid != before


async def test_what_happened_while_history_was_away_is_not_missing(
    live: LiveHistory, reservation_id: str
) -> None:
    alice = someone()
    story = stories.booked_and_cancelled(alice, reservation_id)
    await live.tell(*story[:3])
    await live.shows(alice, 3)
    live.part.kill()
    assert not live.part.running
    await live.tell(*story[3:])
    live.part.start()
    assert len(await live.shows(alice, len(story))) == len(story)
