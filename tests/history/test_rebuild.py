"""The view made anew from the events is the live view; and a subscriber joins without anybody's help."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, select

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import Received, Subscription, inbox_tables
from dinemesh.kit.store import Store, Transaction
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from history_svc import handlers, main, persistence
from history_svc.usecases import Digest, Remade, Timeline
from local_mesh.broker import RunningBroker
from tests.history import stories
from tests.history.conftest import ARRIVE_SECONDS, connected, make_history
from tests.support.mesh import ROOT
from tests.support.ports import free_ports


@pytest.fixture
async def store(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    store = Store.open(fresh_database("history_svc"))
    yield store
    await store.close()


@asynccontextmanager
async def consuming(store: Store, amqp_url: str) -> AsyncIterator[Timeline]:
    """The part of the live service that fills the view."""
    timeline = Timeline(store, lambda _customer_id: None)
    async with connected(amqp_url) as bus:
        consumer = Consumer(store, bus, persistence.inbox, handlers.subscription(timeline))
        running = asyncio.create_task(consumer.run())
        try:
            await asyncio.wait_for(consumer.caught_up.wait(), ARRIVE_SECONDS)
            yield timeline
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def publish(amqp_url: str, *bodies: bytes) -> None:
    async with connected(amqp_url) as bus:
        for number, body in enumerate(bodies):
            await bus.publish(body, key(body), event_id=str(number))


def key(body: bytes) -> str:
    """What its publisher says it under."""
    return f"{envelope_pb2.Envelope.FromString(body).source}.v1.thing"


async def holds(timeline: Timeline, entries: int) -> Digest:
    """The digest of the view, once it has so many entries."""
    async with asyncio.timeout(ARRIVE_SECONDS):
        while True:
            digest = await timeline.digest()
            if digest.entries >= entries:
                return digest
            await asyncio.sleep(0.02)


def many_stories(count: int) -> list[bytes]:
    told = [stories.booked_and_cancelled(f"customer-{n % 3}", str(uuid.uuid4())) for n in range(count)]
    tomorrow = stories.envelope(
        StringValue(value="?"), aggregate_id="m", customer_id="customer-1", kind="dinemesh.menu.v1.DishAdded"
    )
    return [*(body for story in told for body in story), tomorrow]


async def test_a_rebuilt_view_is_the_live_view(store: Store, broker: RunningBroker) -> None:
    amqp_url = broker.fresh_url()
    events = many_stories(20)
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *events[::2], *events, *events[1::2])
        live = await holds(timeline, len(events))
    done = await main.rebuild_view(store, amqp_url)
    assert done.before == done.after == live
    assert live.entries == len(events)
    assert done.remade == Remade(len(events), 0, 0, 0)


async def test_a_damaged_view_is_repaired_from_its_own_archive_by_another_broker(
    store: Store, broker: RunningBroker
) -> None:
    """Its log has nothing of it, as one has not that forgets what is old."""
    amqp_url = broker.fresh_url()
    events = many_stories(3)
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *events)
        live = await holds(timeline, len(events))
    entries = persistence.timeline_entries
    lost = entries.delete().where(entries.c.position <= 5)
    changed = entries.update().where(entries.c.position == 7).values(summary="?", amount_minor=7)
    assert await store.write(lambda tx: (tx.changed(lost), tx.changed(changed))) == (5, 1)
    done = await main.rebuild_view(store, broker.fresh_url())
    assert done.log_was_read
    assert done.before.entries == len(events) - 5
    assert done.after == live
    assert done.remade == Remade(len(events), 6, 0, 0)


async def test_what_history_has_no_event_of_is_made_whole_from_the_log_or_stays(
    store: Store, broker: RunningBroker
) -> None:
    """As in a database of the version that archived nothing."""
    amqp_url = broker.fresh_url()
    events = many_stories(2)
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *events)
        live = await holds(timeline, len(events))
    archive = persistence.archived_events
    assert await store.write(lambda tx: tx.changed(archive.delete())) == len(events)
    without_log = await main.rebuild_view(store, broker.fresh_url())
    assert without_log.after == live
    assert without_log.remade == Remade(0, 0, 0, len(events))
    with_log = await main.rebuild_view(store, amqp_url)
    assert with_log.after == live
    assert with_log.remade == Remade(len(events), 0, 0, 0)


async def test_an_archived_event_that_cannot_be_read_is_told_and_its_entry_stays(
    store: Store, broker: RunningBroker
) -> None:
    amqp_url = broker.fresh_url()
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *many_stories(1))
        live = await holds(timeline, 9)
    archive = persistence.archived_events
    first = select(archive.c.event_id).order_by(archive.c.event_id).limit(1).scalar_subquery()
    damage = archive.update().where(archive.c.event_id == first).values(envelope=b"\xff")
    assert await store.write(lambda tx: tx.changed(damage)) == 1
    done = await main.rebuild_view(store, broker.fresh_url())
    assert (done.after, done.remade) == (live, Remade(9, 0, 1, 0))


async def test_what_waits_in_the_queue_during_a_rebuild_is_there_once(
    store: Store, broker: RunningBroker
) -> None:
    amqp_url = broker.fresh_url()
    events = many_stories(4)
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *events[:10])
        await holds(timeline, 10)
    await publish(amqp_url, *events[10:])  # history is stopped: they wait in its queue, and stand in the log
    done = await main.rebuild_view(store, amqp_url)
    assert done.after.entries == len(events)
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, many_stories(1)[0])
        assert (await holds(timeline, len(events) + 1)).entries == len(events) + 1


async def test_without_a_broker_the_archive_alone_is_read(
    store: Store, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "CONNECT_SECONDS", 0.5)
    amqp_url = broker.fresh_url()
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, *many_stories(1))
        live = await holds(timeline, 9)
    damage = persistence.timeline_entries.delete()
    assert await store.write(lambda tx: tx.changed(damage)) == 9
    (nowhere,) = free_ports(1)
    done = await main.rebuild_view(store, f"amqp://guest:subscriber@127.0.0.1:{nowhere}/")
    assert not done.log_was_read
    assert done.after == live
    assert "was not reached: what the log has besides was not read" in str(done)
    # It takes what comes later as before.
    async with consuming(store, amqp_url) as timeline:
        await publish(amqp_url, many_stories(1)[0])
        await holds(timeline, 10)


async def test_the_command_rebuilds_while_the_service_is_stopped_and_refuses_while_it_runs(
    broker: RunningBroker, tmp_path: Path
) -> None:
    live = make_history(tmp_path, broker.fresh_url())

    async def rebuild() -> subprocess.CompletedProcess[str]:
        variables = {f"DINEMESH_{name}": value for name, value in live.part.environment.items()}
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "history_svc.main", "rebuild"],
            env=variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    live.part.start()
    try:
        events = stories.booked_and_cancelled("alice", str(uuid.uuid4()))
        await live.tell(*events)
        shown = await live.shows("alice", len(events))
        refused = await rebuild()
        assert refused.returncode != 0 and "in use by another process" in refused.stderr
        live.part.stop()
        done = await rebuild()
        assert done.returncode == 0, done.stderr
        assert done.stdout == (
            "history: 8 events read from history's own archive and the log; 8 entries; the same as before\n"
        )
        live.part.start()
        assert await live.shows("alice", len(events)) == shown
    finally:
        for channel in live.channels:
            await channel.close()
        live.part.stop()


# A subscriber: a subscriber of its own, in a few lines. No file of any other service knows it.

subscriber = MetaData()
subscriber_inbox = inbox_tables(subscriber)
visits = Table(
    "visits",
    subscriber,
    Column("customer_id", Text, primary_key=True),
    Column("restaurant_id", Text, primary_key=True),
    Column("times", Integer, nullable=False),
)


def on_booking_completed(tx: Transaction, event: Received[restaurant_events.BookingCompleted]) -> None:
    insert = tx.insert(visits).values(
        customer_id=event.customer_id, restaurant_id=event.message.booking.restaurant_id, times=1
    )
    tx.execute(
        insert.on_conflict_do_update(index_elements=visits.primary_key, set_={"times": visits.c.times + 1})
    )


MARKETING = Subscription(
    "marketing.visits",
    ["restaurant.v1.booking_completed"],
    {restaurant_events.BookingCompleted: on_booking_completed},
)


def completed_visit(customer_id: str) -> bytes:
    reservation_id = str(uuid.uuid4())
    event = restaurant_events.BookingCompleted(booking=stories.booking(reservation_id, customer_id))
    return stories.envelope(
        event, aggregate_id=reservation_id, customer_id=customer_id, reservation_id=reservation_id
    )


async def test_a_guest_joins_later_reads_all_that_was_and_then_whatever_comes(
    fresh_database: Callable[[str], str], broker: RunningBroker
) -> None:
    amqp_url = broker.fresh_url()
    history_store = Store.open(fresh_database("history_svc"))
    guest_url = fresh_database("")
    engine = create_engine(guest_url)
    subscriber.create_all(engine)
    engine.dispose()
    guest_store = Store.open(guest_url)

    async def times(customer_id: str) -> int:
        query = select(visits.c.times).where(visits.c.customer_id == customer_id)
        return await guest_store.read(lambda tx: tx.execute(query).scalar_one_or_none()) or 0

    async def visited(customer_id: str, expected: int) -> None:
        async with asyncio.timeout(ARRIVE_SECONDS):
            while await times(customer_id) < expected:  # noqa: ASYNC110 (another process would be polled too)
                await asyncio.sleep(0.02)
        assert await times(customer_id) == expected

    try:
        async with consuming(history_store, amqp_url) as timeline, connected(amqp_url) as bus:
            early = [completed_visit("alice") for _ in range(3)]
            for body in early:
                await bus.publish(body, "restaurant.v1.booking_completed", event_id="e")
            for body in many_stories(1):
                await bus.publish(body, key(body), event_id="e")
            await holds(timeline, 12)
            joining = Consumer(guest_store, bus, subscriber_inbox, MARKETING)
            running = asyncio.create_task(joining.run())
            try:
                await asyncio.wait_for(joining.caught_up.wait(), ARRIVE_SECONDS)
                assert await times("alice") == 3
                for body in (completed_visit("alice"), early[0]):
                    await bus.publish(body, "restaurant.v1.booking_completed", event_id="e")
                await visited("alice", 4)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    finally:
        await guest_store.close()
        await history_store.close()
