"""The timeline on both engines: what goes in, who reads it, in which order, and that it can be made again."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy import create_engine, inspect

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store, Transaction
from history_svc import handlers, persistence
from history_svc.domain import Cursor, Entry, Kind, Live, Past, Place
from history_svc.usecases import WATCH_BATCH, Feed, Timeline
from tests.history import stories
from tests.support.plans import enters, plans


class History:
    """A timeline on a database of its own, fed with the bytes of events as they come from the broker."""

    def __init__(self, store: Store) -> None:
        self.woken: list[str] = []
        self.timeline = Timeline(store, self.woken.append)
        self.store = store
        self._inbox = Inbox(store, persistence.inbox, handlers.subscription(self.timeline))

    async def hear(self, *bodies: bytes) -> list[bool]:
        return [await self._inbox.take(self._inbox.decode(body)) for body in bodies]

    async def kinds(self, customer_id: str, reservation_id: str = "") -> list[str]:
        page = await self.timeline.entries(customer_id, reservation_id, None, 200)
        return [entry.kind.value for entry in page.entries]


@pytest.fixture
async def store(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    store = Store.open(fresh_database("history_svc"))
    yield store
    await store.close()


@pytest.fixture
def history(store: Store) -> History:
    return History(store)


@pytest.fixture
def reservation_id() -> str:
    return str(uuid.uuid4())


def test_the_migrations_make_the_tables_that_the_code_expects(fresh_database: Callable[[str], str]) -> None:
    engine = create_engine(fresh_database("history_svc"))
    found = inspect(engine)
    for table in persistence.metadata.sorted_tables:
        made = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert made == {column.name: column.nullable for column in table.columns}, table.name
        assert {index["name"] for index in found.get_indexes(table.name) if not index["unique"]} == {
            index.name for index in table.indexes
        }
    engine.dispose()


async def test_a_reservation_is_told_from_the_charge_to_the_refund(
    history: History, reservation_id: str
) -> None:
    await history.hear(*stories.booked_and_cancelled("alice", reservation_id))
    assert await history.kinds("alice", reservation_id) == list(stories.KINDS_OF_THE_STORY)
    assert history.woken == ["alice"] * len(stories.KINDS_OF_THE_STORY)


async def test_every_order_and_every_duplicate_gives_the_same_timeline(
    history: History, fresh_database: Callable[[str], str], reservation_id: str
) -> None:
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*story)
    expected = await history.timeline.digest()
    for seed in range(3):
        other_store = Store.open(fresh_database("history_svc"))
        try:
            other = History(other_store)
            told_twice = story * 2
            random.Random(seed).shuffle(told_twice)
            await other.hear(*told_twice)
            assert await other.timeline.digest() == expected
            assert await other.kinds("alice") == list(stories.KINDS_OF_THE_STORY)
        finally:
            await other_store.close()


async def test_the_digest_sees_one_changed_letter(history: History, reservation_id: str) -> None:
    await history.hear(*stories.booked_and_cancelled("alice", reservation_id))
    before = await history.timeline.digest()
    change = persistence.timeline_entries.update().where(
        persistence.timeline_entries.c.kind == Kind.BOOKING_RECEIVED.value
    )
    await history.store.write(lambda tx: tx.changed(change.values(summary="The restaurant has received it")))
    after = await history.timeline.digest()
    assert after.entries == before.entries and after.checksum != before.checksum


async def test_an_older_version_that_comes_late_is_kept(history: History, reservation_id: str) -> None:
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*reversed(story))
    assert len(await history.kinds("alice")) == len(story)


async def test_an_unknown_event_is_kept(history: History, reservation_id: str) -> None:
    await history.hear(
        stories.envelope(
            StringValue(value="soup"),
            aggregate_id="m-1",
            customer_id="alice",
            reservation_id=reservation_id,
            kind="dinemesh.marketing.v1.DishRecommended",
        )
    )
    page = await history.timeline.entries("alice", reservation_id, None, 10)
    assert [entry.origin.type for entry in page.entries] == ["dinemesh.marketing.v1.DishRecommended"]


async def test_an_event_of_no_customer_is_kept_and_shown_to_nobody(history: History) -> None:
    await history.hear(stories.envelope(StringValue(), aggregate_id="restaurant-1"))
    assert (await history.timeline.digest()).entries == 1
    assert await history.kinds("alice") == []
    assert history.woken == []


async def test_somebody_elses_reservation_is_not_found(history: History, reservation_id: str) -> None:
    await history.hear(*stories.booked_and_cancelled("alice", reservation_id))
    assert await history.kinds("bob") == []
    for asked in (reservation_id, str(uuid.uuid4())):
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await history.kinds("bob", asked)
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await history.timeline.watch("bob", asked, None)


async def pages(history: History, reservation_id: str, size: int) -> list[Entry]:
    found: list[Entry] = []
    place = None
    while True:
        page = await history.timeline.entries("alice", reservation_id, place, size)
        assert len(page.entries) <= size
        found += page.entries
        place = page.next_place
        if place is None:
            return found


@pytest.mark.parametrize("size", [1, 3, 8, 9])
async def test_pages_are_whole_even_at_one_instant(history: History, reservation_id: str, size: int) -> None:
    ids = [str(uuid.uuid4()) for _ in range(8)]
    for event_id in ids:
        await history.hear(
            stories.envelope(
                StringValue(),
                aggregate_id="a",
                customer_id="alice",
                reservation_id=reservation_id,
                event_id=event_id,
            )
        )
    assert [entry.origin.event_id for entry in await pages(history, reservation_id, size)] == sorted(ids)


async def test_a_page_stays_where_it_is_when_older_events_arrive(
    history: History, reservation_id: str
) -> None:
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*story[4:])
    first = await history.timeline.entries("alice", "", None, 2)
    await history.hear(*story[:4])
    second = await history.timeline.entries("alice", "", first.next_place, 9)
    kinds = [entry.kind.value for entry in (*first.entries, *second.entries)]
    assert kinds == list(stories.KINDS_OF_THE_STORY[4:])


async def drained(feed: Feed) -> list[str]:
    return [entry.kind.value for entry, _ in await everything(feed)]


async def everything(feed: Feed) -> list[tuple[Entry, Cursor]]:
    """What a watch shows until it has caught up; no page is larger than it may be."""
    found: list[tuple[Entry, Cursor]] = []
    while (page := await feed.poll()) != []:
        assert len(page or ()) <= WATCH_BATCH
        found += page or ()
    return found


async def test_a_watch_tells_the_past_in_order_and_then_whatever_arrives(
    history: History, reservation_id: str
) -> None:
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*reversed(story[2:5]))
    feed = await history.timeline.watch("alice", "", None)
    await history.hear(story[6])
    assert await drained(feed) == [*stories.KINDS_OF_THE_STORY[2:5], stories.KINDS_OF_THE_STORY[6]]
    await history.hear(story[7], story[0])  # the second is older than all the watch has seen
    assert await drained(feed) == [stories.KINDS_OF_THE_STORY[7], stories.KINDS_OF_THE_STORY[0]]
    assert await drained(feed) == []


async def test_a_watch_goes_on_from_any_of_its_places(history: History, reservation_id: str) -> None:
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*story[:4])
    feed = await history.timeline.watch("alice", reservation_id, None)
    await history.hear(*story[4:])
    seen = await everything(feed)
    assert isinstance(seen[-1][1], Live)
    for number, (_, cursor) in enumerate(seen, start=1):
        resumed = await history.timeline.watch("alice", reservation_id, cursor)
        assert await drained(resumed) == list(stories.KINDS_OF_THE_STORY[number:])


async def test_a_watch_of_one_reservation_passes_over_many_others_in_pages(
    history: History, reservation_id: str
) -> None:
    """Neither a place that is made up, nor a reservation among thousands of entries, holds a reader."""
    others = str(uuid.uuid4())
    story = stories.booked_and_cancelled("alice", reservation_id)
    filler = [
        stories.envelope(
            StringValue(),
            aggregate_id=f"a-{number}",
            customer_id="alice",
            reservation_id=others,
            event_id=f"e-{number:04}",
        )
        for number in range(2 * WATCH_BATCH + 20)
    ]
    await history.hear(*story[:4], *filler, *story[4:])
    mine, everywhere = list(stories.KINDS_OF_THE_STORY), len(story) + len(filler)
    before_all = Place(datetime(1970, 1, 1, tzinfo=UTC), "\x01")
    last = await history.store.read(persistence.last_position)
    for cursor, in_order_of_reading in (
        (None, True),
        (Past(last, before_all), True),
        (Past(0, before_all), False),
        (Live(0), False),
    ):
        feed = await history.timeline.watch("alice", reservation_id, cursor)
        seen = await drained(feed)
        assert (seen if in_order_of_reading else sorted(seen)) == (
            mine if in_order_of_reading else sorted(mine)
        )
        feed = await history.timeline.watch("alice", "", cursor)
        found = await everything(feed)
        assert len({entry.origin.event_id for entry, _ in found}) == len(found) == everywhere
        assert await drained(await history.timeline.watch("alice", "", found[149][1])) == [
            entry.kind.value for entry, _ in found[150:]
        ]
    assert await drained(await history.timeline.watch("alice", "", Live(2**63 - 1))) == []


READS: dict[str, tuple[Callable[[Transaction], object], str, str]] = {
    "all": (
        lambda tx: persistence.in_order(tx, "alice", "", after=Place(stories.START, "e"), limit=5),
        "timeline_by_customer",
        "(occur_time,event_id)>",
    ),
    "of a reservation": (
        lambda tx: persistence.in_order(tx, "alice", "r-1", after=Place(stories.START, "e"), limit=5),
        "timeline_by_reservation",
        "(occur_time,event_id)>",
    ),
    "arrivals": (
        lambda tx: persistence.arrived(tx, "alice", after=7, limit=5),
        "timeline_by_arrival",
        "position>",
    ),
}


@pytest.mark.parametrize("read", READS)
async def test_a_page_is_read_by_an_index_from_its_place_on(store: Store, read: str) -> None:
    query, index, place = READS[read]
    (plan,) = await plans(store, query)
    assert enters(plan, "timeline_entries", index, place), plan


async def test_what_a_subscriber_forgot_is_taken_again_and_changes_nothing(
    history: History, reservation_id: str
) -> None:
    """By its inbox, or because the inbox no longer has what is old."""
    story = stories.booked_and_cancelled("alice", reservation_id)
    await history.hear(*story)
    live = await history.timeline.digest()
    feed = await history.timeline.watch("alice", "", None)
    await drained(feed)
    await history.timeline.forget(handlers.QUEUE)
    assert await history.hear(*reversed(story)) == [True] * len(story)
    assert await history.timeline.digest() == live
    assert await drained(feed) == []


async def test_every_event_is_archived_as_it_came(history: History, reservation_id: str) -> None:
    """Fields of a later version too."""
    story = stories.booked_and_cancelled("alice", reservation_id)
    tomorrow = story[0] + b"\xfa\x3f\x03new"  # field 1023, of three bytes
    envelope = envelope_pb2.Envelope.FromString(tomorrow)
    envelope.event_id = str(uuid.uuid4())
    told = [*story, envelope.SerializeToString()]
    assert b"\xfa\x3f\x03new" in told[-1]
    await history.hear(*told, *told)
    kept = await history.store.read(lambda tx: persistence.archived(tx, after="", limit=100))
    assert {one.envelope for one in kept} == set(told)
    assert len(kept) == len(told)
