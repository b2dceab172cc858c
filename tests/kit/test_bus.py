"""What becomes of an event on its way: claimed by one relay, sent when confirmed, kept while nobody can take
it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import aio_pika
import pytest
from sqlalchemy import func, select, update

from dinemesh.kit import dead_letters
from dinemesh.kit.batches import events_in
from dinemesh.kit.bus import DELIVERY_LIMIT, LOG_QUEUE, Bus, BusUnavailable
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.outbox import LEASE_SECONDS, Outbox, backlog
from dinemesh.kit.relay import Relay
from dinemesh.kit.store import Store, StoreUnavailable, Transaction
from local_mesh.broker import RunningBroker
from tests.kit.words import (
    QUEUE,
    encode,
    hears,
    outbox_rows,
    prepared,
    running,
    say,
    tables,
    unsent,
    until,
    words,
)
from tests.support.mesh import state_of
from tests.support.ports import free_ports

T = TypeVar("T")


class FakeBus(Bus):
    """A broker in memory that confirms once its gate is open."""

    def __init__(self) -> None:
        self.turns = 0
        self.published: list[tuple[str, datetime]] = []
        self.gate = asyncio.Event()

    @property
    def can_publish(self) -> bool:
        """A relay asks this at the beginning of each turn."""
        self.turns += 1
        return True

    async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
        now = datetime.now(UTC)
        self.published += [(event.event_id, now) for event in events_in(body)]
        await self.gate.wait()


async def test_two_relays_publish_each_event_once(store: Store, outbox: Outbox) -> None:
    one, two = FakeBus(), FakeBus()
    elsewhere = Outbox(outbox_rows, encode, "words")  # whose process has no relay, or one that died
    relays = [Relay(store, outbox, bus, sweep_seconds=0.02) for bus in (one, two)]
    async with running(*relays):
        await until(lambda: one.turns and two.turns)
        said = await say(store, elsewhere, "a", "b", "c")
        await until(lambda: one.published or two.published)
        seen = one.turns, two.turns
        first, other = (one, two) if one.published else (two, one)
        # The one that was faster waits for its confirms; the other looks again and again meanwhile.
        await until(lambda: other.published or other.turns >= seen[other is two] + 3)
        assert [event_id for event_id, _ in first.published] == said
        assert other.published == []
        first.gate.set()
        other.gate.set()
        await until(unsent(store))
    assert len(one.published + two.published) == 3


async def test_what_was_just_committed_is_published_from_memory_and_by_nobody_else(
    store: Store, outbox: Outbox
) -> None:
    mine, others = FakeBus(), FakeBus()
    other = Relay(store, Outbox(outbox_rows, encode, "words"), others, sweep_seconds=0.02)
    async with running(Relay(store, outbox, mine, sweep_seconds=3600), other):
        await until(lambda: mine.turns and others.turns)
        said = await say(store, outbox, "a", "b", "c")
        await until(lambda: mine.published)
        seen = others.turns
        await until(lambda: others.turns >= seen + 3)
        mine.gate.set()
        await until(unsent(store))
    assert [event_id for event_id, _ in mine.published] == said
    assert others.published == []


async def test_in_the_middle_of_a_burst_all_is_marked_and_what_others_left_is_found(
    store: Store, outbox: Outbox
) -> None:
    bus = FakeBus()
    bus.gate.set()
    elsewhere = Outbox(outbox_rows, encode, "words")
    ended = asyncio.Event()

    async def burst() -> None:
        while not ended.is_set():
            await say(store, outbox, *(["w"] * 300))

    async with running(Relay(store, outbox, bus, sweep_seconds=0.1)):
        await until(lambda: bus.turns)
        bursting = asyncio.create_task(burst())
        (left,) = await say(store, elsewhere, "left by others")
        await until(lambda: left in {event_id for event_id, _ in bus.published})
        await until(lambda: len(bus.published) > 2000)
        ended.set()
        await bursting
        await until(unsent(store), LEASE_SECONDS / 2)  # what was not marked would be published again after it
    published = [event_id for event_id, _ in bus.published]
    assert len(published) == len(set(published))


async def test_what_a_dead_relay_had_claimed_is_sent_after_its_lease(store: Store, outbox: Outbox) -> None:
    lease = timedelta(seconds=0.5)

    elsewhere = Outbox(outbox_rows, encode, "words")

    def claimed_elsewhere(tx: Transaction) -> datetime:
        elsewhere.add(tx, ("a", 1))
        tx.flush()
        tx.execute(update(outbox_rows).values(claim_until=tx.now + lease))
        return tx.now + lease

    bus = FakeBus()
    bus.gate.set()
    async with running(Relay(store, outbox, bus, sweep_seconds=0.02)):
        await until(lambda: bus.turns)
        end_of_lease = await store.write(claimed_elsewhere)
        await until(lambda: bus.published)
        await until(unsent(store))
    ((_, sent),) = bus.published
    assert sent >= end_of_lease, "void: it did not have to wait"


async def test_what_no_queue_takes_is_not_sent(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    outcomes: list[str] = []

    class Watched(Bus):
        async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
            try:
                await super().publish(body, routing_key, event_id=event_id)
            except BusUnavailable as error:
                outcomes.append(str(error))
                raise
            outcomes.append("confirmed")

    url = broker.fresh_url()
    bus = Watched(url, "test")
    async with running(bus, Relay(sqlite_store, outbox, bus, sweep_seconds=0.05)):
        assert await bus.wait_connected(10)  # each of its connections declares the log as it opens
        async with bus.channel(1) as channel:
            await channel.queue_delete(LOG_QUEUE)
        await say(sqlite_store, outbox, "a")
        await until(lambda: outcomes)
        assert "confirmed" not in outcomes
        assert (await sqlite_store.read(lambda tx: backlog(tx, outbox_rows)))[0] == 1
        async with running(Bus(url, "another service, which declares the log")):
            await until(unsent(sqlite_store))


async def test_what_a_broker_took_along_when_it_died_is_published_again(
    tmp_path: Path, own_broker: RunningBroker
) -> None:
    store = Store.open(prepared(f"sqlite:///{tmp_path}/words.db"))
    outbox = Outbox(outbox_rows, encode, "words")
    bus = Bus(own_broker.url, "test")
    claimed = select(func.count()).select_from(outbox_rows).where(outbox_rows.c.claim_until.is_not(None))
    handed_over = claimed.where(outbox_rows.c.position == 2)
    sent = handed_over.where(outbox_rows.c.sent_time.is_not(None))

    def counts(query: Any) -> Callable[[], object]:
        async def check() -> bool:
            return bool(await store.read(lambda tx: tx.execute(query).scalar_one()))

        return check

    consumer = Consumer(store, bus, tables, words())
    async with running(bus, Relay(store, outbox, bus, sweep_seconds=0.05), consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        # RabbitMQ 3.10 writes down within two seconds that a queue or stream exists.
        born = time.monotonic()
        await say(store, outbox, "before")
        await until(hears(store, "before"))
        await until(unsent(store))
        await until(lambda: time.monotonic() - born > 4)

        old = own_broker.pid
        os.kill(old, signal.SIGSTOP)
        await until(lambda: state_of(old) == "T")
        await say(store, outbox, "taken along?", first=2)
        await until(counts(handed_over))
        with suppress(TimeoutError):
            await until(counts(sent), 1)  # whoever does not wait for the confirm has marked it by now
        await asyncio.to_thread(own_broker.kill)
        await until(lambda: not bus.can_publish)
        own_broker.start()  # here: it dies with the thread that starts it
        assert own_broker.pid != old
        await until(hears(store, "before", "taken along?"))
        await until(unsent(store))
    await store.close()


class FickleStore:
    """A database that is away whenever `away` is set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.refused = 0

    async def write(
        self, change: Callable[[Transaction], T], *, shed: bool = False, on: Sequence[str] = ()
    ) -> T:
        if self.away:
            self.refused += 1
            raise StoreUnavailable("the database cannot be reached")
        return await self._store.write(change, shed=shed)

    async def read(self, query: Callable[[Transaction], T]) -> T:
        return await self._store.read(query)


async def test_while_its_database_is_away_a_consumer_keeps_its_messages(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.consumer.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("dinemesh.kit.consumer.REQUEUE_PAUSE_SECONDS", 0.01)
    bus = Bus(broker.fresh_url(), "test")
    fickle = FickleStore(sqlite_store)
    consumer = Consumer(cast(Store, fickle), bus, tables, words())

    async def asked_often() -> bool:
        return fickle.refused > 3 * DELIVERY_LIMIT or await dead_letters.count_dead(bus, QUEUE) > 0

    async with running(bus, Relay(sqlite_store, outbox, bus), consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        fickle.away = True
        await say(sqlite_store, outbox, "a", "b")
        await until(asked_often)
        assert await dead_letters.count_dead(bus, QUEUE) == 0
        fickle.away = False
        await until(hears(sqlite_store, "a", "b"))


async def test_a_node_that_is_away_or_hangs_is_passed_over(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.bus.CONNECT_TIMEOUT_SECONDS", 1.0)
    (nowhere,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # the kernel takes connections for it
        silent = hangs.getsockname()[1]
        away = [f"amqp://guest:guest@127.0.0.1:{port}/" for port in (nowhere, silent)]
        urls = [*away, broker.fresh_url()]
        for begin in range(3):
            bus = Bus(",".join(urls[begin:] + urls[:begin]), "test")
            async with running(bus):
                assert await bus.wait_connected(20)


async def test_a_consumer_that_is_cancelled_as_it_begins_holds_up_nobody_on_its_connection(
    broker: RunningBroker,
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus):
        assert await bus.wait_connected(15)
        async with bus.channel(1) as channel:
            await bus.declare_subscriber(channel, QUEUE, ["words.v1.*"])
        for n in range(50):
            await bus.publish(b"word", "words.v1.said", event_id=str(n))
        for steps in range(20):
            async with bus.channel(200) as channel:
                beginning = asyncio.create_task(bus.deliveries(channel, QUEUE))
                for _ in range(steps):
                    await asyncio.sleep(0)
                beginning.cancel()
                await asyncio.wait((beginning,))
            await asyncio.wait_for(bus.has_queue(QUEUE), 5)


async def test_a_bus_that_is_stopped_while_it_connects_ends(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library may answer at that moment, and the cancellation is lost in it."""
    connect, connecting = aio_pika.connect, asyncio.Event()

    async def not_broken_off(*args: Any, **options: Any) -> object:
        work = asyncio.ensure_future(connect(*args, **options))
        connecting.set()
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            return await work

    monkeypatch.setattr(aio_pika, "connect", not_broken_off)
    task = asyncio.create_task(Bus(broker.fresh_url(), "test").run())
    await connecting.wait()
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=10)
    assert done and task.cancelled()


async def test_a_consumer_that_waits_for_a_broker_that_hangs_can_be_stopped(
    own_broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.bus.CLOSE_TIMEOUT_SECONDS", 0.5)
    bus = Bus(own_broker.fresh_url(), "test")
    async with running(bus):
        assert await bus.wait_connected(15)
        try:
            async with bus.channel(1) as channel:
                await bus.declare_subscriber(channel, QUEUE, ["words.v1.*"])
                os.kill(own_broker.pid, signal.SIGSTOP)
                await until(lambda: state_of(own_broker.pid) == "T")
                beginning = asyncio.create_task(bus.deliveries(channel, QUEUE))
                await asyncio.wait((beginning,), timeout=0.2)
                assert not beginning.done(), "void: the broker does not hang"
                stopped = time.monotonic()
                beginning.cancel()
                await asyncio.wait((beginning,), timeout=5)
            assert beginning.cancelled()
            assert time.monotonic() - stopped < 5
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        assert await bus.wait_connected(15)
        await asyncio.wait_for(bus.has_queue(QUEUE), 5)
