"""What becomes of events when the broker loses a binding or an exchange, when a queue is full, and when the
broker takes nothing."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import REGISTRY
from sqlalchemy import func, select

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import dead_letters
from dinemesh.kit.bus import EXCHANGE, LOG_QUEUE, Bus
from dinemesh.kit.canaries import Canaries, Canary, begin, matches, routing_keys
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import Subscription
from dinemesh.kit.outbox import Outbox, backlog, mark_unsent
from dinemesh.kit.relay import Relay, pause
from dinemesh.kit.store import Store, Transaction
from dinemesh.kit.workers import Periodic
from dinemesh.reservation.v1 import events_pb2
from local_mesh.broker import RunningBroker
from tests.kit.words import (
    QUEUE,
    count,
    hears,
    on_said,
    outbox_rows,
    running,
    say,
    tables,
    texts,
    unsent,
    until,
    words,
)
from tests.support.broker import block_publishers, delete_exchange, is_bound, unbind
from tests.support.logs import logged

EVERY_SECONDS = 0.3
"""A canary."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are found in two seconds instead of half a minute."""
    monkeypatch.setattr("dinemesh.kit.consumer.LOOK_SECONDS", 0.2)
    for name, value in (("LATE", 0.7), ("FIRST", 1.0), ("ON_THE_WAY", 0.3)):
        monkeypatch.setattr(f"dinemesh.kit.canaries.{name}_SECONDS", value)


def lost(what: str) -> float:
    return REGISTRY.get_sample_value("dinemesh_topology_losses_total", {"what": what}) or 0


def outcomes(queue: str, outcome: str) -> float:
    labels = {"queue": queue, "outcome": outcome}
    return REGISTRY.get_sample_value("dinemesh_inbox_events_total", labels) or 0


class Publisher:
    """A service that says words, with its relay and its canaries."""

    def __init__(self, store: Store, outbox: Outbox, url: str) -> None:
        self.bus = Bus(url, "words")
        # One event a message: how full a queue is counts in messages.
        self.relay = Relay(store, outbox, self.bus, sweep_seconds=0.1, events_in_message=1)
        keys = ["words.v1.said", "words.v1.whispered"]
        canaries = Canaries(store, self.bus, outbox, tables.canaries, keys, seconds=EVERY_SECONDS)
        self.canaries = Periodic("canaries", canaries.seconds, canaries.turn)
        self._store = store

    def seen(self, subscriber: str) -> Callable[[], object]:
        """Whether a canary has come through since this was asked."""
        query = select(func.min(tables.canaries.c.through_time)).where(
            tables.canaries.c.subscriber == subscriber
        )
        asked = datetime.now(UTC)

        async def check() -> bool:
            through: datetime | None = await self._store.read(lambda tx: tx.execute(query).scalar_one())
            return through is not None and through > asked

        return check

    @asynccontextmanager
    async def works(self, *consumers: Consumer) -> AsyncIterator[None]:
        async with running(self.bus, self.relay, self.canaries, *consumers):
            for consumer in consumers:
                await asyncio.wait_for(consumer.caught_up.wait(), 30)
                await until(self.seen(consumer.subscription.queue))
            await until(self.seen(LOG_QUEUE))
            yield


@pytest.fixture
def url(broker: RunningBroker) -> str:
    return broker.fresh_url()


@pytest.fixture
def publisher(sqlite_store: Store, outbox: Outbox, url: str) -> Publisher:
    return Publisher(sqlite_store, outbox, url)


# Whose binding one of these takes, and which canaries prove it.


@pytest.mark.parametrize(
    ("binding", "key", "takes"),
    [
        ("words.v1.*", "words.v1.said", True),
        ("words.v1.*", "words.v1.log.mark", False),
        ("#", "words.v1.log.mark", True),
        ("*.*.*", "words.v1.log.mark", False),
        ("words.#", "words", True),
        ("words.#.said", "words.v1.said", True),
        ("words.v1.said", "words.v1.whispered", False),
        ("*.v1", "words.v1.said", False),
    ],
)
def test_what_a_binding_takes(binding: str, key: str, takes: bool) -> None:
    assert matches(binding, key) is takes


@pytest.mark.parametrize(
    ("binding", "own", "of_an_event"),
    [
        ("words.v1.*", True, False),
        ("words.v1.said", False, True),
        ("*.v1.said", False, True),
        ("#", True, False),
    ],
)
def test_a_binding_lives_by_one_kind_of_canary(binding: str, own: bool, of_an_event: bool) -> None:
    now, interval = datetime.now(UTC), timedelta(seconds=10)
    assert Canary("words.v1.canary", now, interval).proves(binding) is own
    assert Canary("words.v1.said", now, interval).proves(binding) is of_an_event


def test_the_keys_of_a_contract_are_those_of_its_events() -> None:
    keys = routing_keys(events_pb2.DESCRIPTOR)
    assert len(keys) > 5 and all(key.startswith("reservation.v1.") for key in keys)


# Lost while all runs.


@pytest.mark.parametrize("binding", ["words.v1.*", "words.v1.said", "#"])
async def test_a_lost_binding_is_declared_again_and_what_was_published_meanwhile_is_taken(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, publisher: Publisher, url: str, binding: str
) -> None:
    subscription = Subscription(QUEUE, [binding], {StringValue: on_said}, newest_only=False)
    before = lost(QUEUE)
    with logged() as log:
        async with publisher.works(Consumer(sqlite_store, publisher.bus, tables, subscription)):
            await say(sqlite_store, outbox, "a")
            await until(hears(sqlite_store, "a"))
            unbind(broker, url, QUEUE)
            await say(sqlite_store, outbox, "lost?", first=2)
            await until(unsent(sqlite_store))
            assert await sqlite_store.read(texts) == ["a"], "void: it was bound"
            await until(hears(sqlite_store, "a", "lost?"))
            await until(lambda: lost(QUEUE) == before + 1)
            await until(lambda: log.lines(f"the binding {binding} of {QUEUE} was gone"))
            await say(sqlite_store, outbox, "after", first=3)
            await until(hears(sqlite_store, "a", "lost?", "after"))
            await until(publisher.seen(QUEUE))
    assert lost(QUEUE) == before + 1, "one loss is counted once"


@pytest.mark.parametrize("away_seconds", [0.0, 3.0], ids=["shorter than a gap", "longer"])
async def test_a_binding_that_is_lost_while_its_subscriber_is_away_is_found_at_its_next_start(
    sqlite_store: Store,
    outbox: Outbox,
    broker: RunningBroker,
    publisher: Publisher,
    url: str,
    away_seconds: float,
) -> None:
    before = lost(QUEUE)
    async with publisher.works():
        consumer = Consumer(sqlite_store, publisher.bus, tables, words())
        async with running(consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
            await until(publisher.seen(QUEUE))
        unbind(broker, url, QUEUE)
        since = time.monotonic()
        await say(sqlite_store, outbox, "lost?")
        await until(unsent(sqlite_store))
        if not away_seconds:
            # As if the next canary came in time, so that no gap can be seen.
            soon = datetime.now(UTC) + timedelta(seconds=10)
            await sqlite_store.write(lambda tx: begin(tx, tables.canaries, QUEUE, ["words.v1.*"], since=soon))
            # One that is gone again before it has read the log leaves that to the next.
            gone = Consumer(sqlite_store, publisher.bus, tables, words())
            async with running(gone):
                await asyncio.wait_for(gone.caught_up.wait(), 30)
            assert await sqlite_store.read(unread), "the next one does not know what is unread"
        if away_seconds:
            await until(lambda: time.monotonic() > since + away_seconds)
        async with running(Consumer(sqlite_store, publisher.bus, tables, words())):
            await until(hears(sqlite_store, "lost?"))
            if away_seconds:
                await until(lambda: lost(QUEUE) == before + 1)
            await until(all_read(sqlite_store))


def unread(tx: Transaction) -> bool:
    """Whether the log is still to be read since a binding was declared."""
    table = tables.canaries
    query = select(table.c.unread_time).where(table.c.subscriber == QUEUE, table.c.unread_time.is_not(None))
    return tx.execute(query).first() is not None


def all_read(store: Store) -> Callable[[], object]:
    async def check() -> bool:
        return not await store.read(unread)

    return check


async def test_what_make_pending_names_helps_where_nothing_heals_by_itself(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, publisher: Publisher, url: str
) -> None:
    """The publisher is of a version without canaries: the subscriber is restarted, then all is replayed."""
    async with running(publisher.bus, publisher.relay):
        consumer = Consumer(sqlite_store, publisher.bus, tables, words())
        async with running(consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
            unbind(broker, url, QUEUE)
            await say(sqlite_store, outbox, "lost?")
            await until(unsent(sqlite_store))
        async with running(Consumer(sqlite_store, publisher.bus, tables, words())):
            await until(lambda: is_bound(broker, url, QUEUE))
            await sqlite_store.write(lambda tx: mark_unsent(tx, outbox_rows))
            await until(hears(sqlite_store, "lost?"))


async def test_a_publisher_that_was_away_is_no_loss(
    sqlite_store: Store, outbox: Outbox, publisher: Publisher
) -> None:
    before = lost(QUEUE)
    consumer = Consumer(sqlite_store, publisher.bus, tables, words())
    async with running(publisher.bus, consumer):
        async with running(publisher.relay, publisher.canaries):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
            await until(publisher.seen(QUEUE))
        looked = select(tables.canaries.c.look_time).where(tables.canaries.c.subscriber == QUEUE)

        async def has_looked() -> bool:
            return await sqlite_store.read(lambda tx: tx.execute(looked).scalar_one()) is not None

        await until(has_looked)
        async with running(publisher.relay, publisher.canaries):
            await say(sqlite_store, outbox, "back")
            await until(hears(sqlite_store, "back"))
            await until(publisher.seen(QUEUE))
    assert lost(QUEUE) == before


async def test_a_lost_exchange_is_declared_again_and_nothing_is_missed(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, publisher: Publisher, url: str
) -> None:
    before = lost("exchange"), lost(QUEUE)
    async with publisher.works(Consumer(sqlite_store, publisher.bus, tables, words())):
        await say(sqlite_store, outbox, "a")
        await until(hears(sqlite_store, "a"))
        delete_exchange(broker, url)
        await say(sqlite_store, outbox, "lost?", "lost too?", first=2)
        await until(unsent(sqlite_store))
        await until(hears(sqlite_store, "a", "lost?", "lost too?"))
        await until(lambda: (lost("exchange"), lost(QUEUE)) == (before[0] + 1, before[1] + 1))
        await say(sqlite_store, outbox, "after", first=4)
        await until(hears(sqlite_store, "a", "lost?", "lost too?", "after"))


async def test_the_log_is_bound_again_and_gets_what_it_lacks(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, publisher: Publisher, url: str
) -> None:
    """Although a queue of somebody else's takes everything, so that every publish is confirmed."""
    before = lost(LOG_QUEUE)
    async with publisher.works():
        async with publisher.bus.channel(1) as channel:
            other = await channel.declare_queue("other", arguments={"x-queue-type": "quorum"}, durable=True)
            await other.bind(EXCHANGE, routing_key="#")
        unbind(broker, url, LOG_QUEUE)
        (event_id,) = await say(sqlite_store, outbox, "lost?")
        await until(unsent(sqlite_store))
        await until(lambda: lost(LOG_QUEUE) == before + 1)

        async def is_logged() -> bool:
            mark = str(uuid.uuid4())
            await publisher.bus.mark_log(mark)
            bodies = [body async for body in publisher.bus.read_log(mark)]
            return event_id in [envelope_pb2.Envelope.FromString(body).event_id for body in bodies]

        await until(is_logged)


# Full.


async def test_a_full_queue_of_somebody_elses_holds_up_nobody(
    sqlite_store: Store, outbox: Outbox, publisher: Publisher
) -> None:
    said = [f"w{n:03}" for n in range(200)]
    again = outcomes(QUEUE, "taken before")
    with logged() as log:
        async with publisher.works(Consumer(sqlite_store, publisher.bus, tables, words())):
            async with publisher.bus.channel(1) as channel:
                full = await channel.declare_queue(
                    "full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
                )
                await full.bind(EXCHANGE, routing_key="#")
                began = asyncio.get_running_loop().time()
                for first in range(0, 200, 20):
                    await say(sqlite_store, outbox, *said[first : first + 20], first=first + 1)
                await until(hears(sqlite_store, *said))
                refused = select(func.count()).select_from(outbox_rows).where(outbox_rows.c.tries > 0)

                async def all_refused() -> bool:
                    found: int = await sqlite_store.read(lambda tx: tx.execute(refused).scalar_one())
                    return found >= 199

                await until(all_refused)
                await until(lambda: outcomes(QUEUE, "taken before") - again >= 5)
                seconds = asyncio.get_running_loop().time() - began
                # One in each sweep of 0.1 s, and those whose batch was under way.
                assert outcomes(QUEUE, "taken before") - again <= 5 + 10 * seconds
                assert len(log.lines("is not confirmed")) <= 250
                await channel.queue_delete("full")
            await until(unsent(sqlite_store))


def test_a_refused_event_waits_longer_each_time() -> None:
    pauses = [pause(tries).total_seconds() for tries in range(40)]
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses == sorted(pauses) and pauses[-1] == 60


async def test_a_guest_whose_queue_is_full_loses_its_place_and_reads_the_log(
    sqlite_store: Store, outbox: Outbox, publisher: Publisher
) -> None:
    said = [f"w{n:03}" for n in range(60)]
    subscriber = replace(words(queue="subscriber.words"), max_length=20)
    labels = {"queue": "subscriber.words"}
    async with publisher.works():
        consumer = Consumer(sqlite_store, publisher.bus, tables, subscriber)
        async with running(consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
        for first in range(0, 60, 20):
            await say(sqlite_store, outbox, *said[first : first + 20], first=first + 1)
            await until(unsent(sqlite_store))
        assert await publisher.bus.waiting("subscriber.words") <= 20
        before = REGISTRY.get_sample_value("dinemesh_places_lost_total", labels) or 0
        async with running(Consumer(sqlite_store, publisher.bus, tables, subscriber)):
            await until(hears(sqlite_store, *said))
        assert REGISTRY.get_sample_value("dinemesh_places_lost_total", labels) == before + 1
        assert await dead_letters.count_dead(publisher.bus, "subscriber.words") == 0


async def test_what_a_guest_cannot_take_is_a_dead_letter_too(
    sqlite_store: Store, outbox: Outbox, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.consumer.REQUEUE_PAUSE_SECONDS", 0.01)
    subscriber = replace(words(queue="subscriber.words"), max_length=1000)
    async with publisher.works(Consumer(sqlite_store, publisher.bus, tables, subscriber)):
        await publisher.bus.publish(b"\xff\xffjunk", "words.v1.said", event_id="junk-1")
        (poison, _) = await say(sqlite_store, outbox, "poison", "after")
        await until(hears(sqlite_store, "after"))

        async def dead() -> bool:
            found = await dead_letters.list_dead(publisher.bus, "subscriber.words")
            return {one.event_id for one in found} == {"junk-1", poison}

        await until(dead)


# Blocked.


async def test_a_broker_that_is_short_of_memory_is_noticed_and_all_is_sent_afterwards(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, publisher: Publisher
) -> None:
    async with publisher.works(Consumer(sqlite_store, publisher.bus, tables, words())):
        with block_publishers(broker):
            await until(lambda: publisher.bus.blocked)
            assert not publisher.bus.can_publish
            await publisher.relay.measure()
            assert REGISTRY.get_sample_value("dinemesh_broker_blocks") == 1
            await say(sqlite_store, outbox, "a", "b")
            assert (await sqlite_store.read(lambda tx: backlog(tx, outbox_rows)))[0] == 2
        await until(lambda: not publisher.bus.blocked)
        await until(hears(sqlite_store, "a", "b"))
        await publisher.relay.measure()
        assert REGISTRY.get_sample_value("dinemesh_broker_blocks") == 0
    assert await sqlite_store.read(count(tables.inbox)) == 2, "canaries and marks are no events"
