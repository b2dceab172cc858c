"""Outbox, bus and inbox over a real broker: what is committed arrives, takes effect once, is never lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from sqlalchemy import func, select, update

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, dead_letters
from dinemesh.kit.batches import body_of, events_in
from dinemesh.kit.bus import LOG_QUEUE, Bus, BusUnavailable
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import (
    HIGHEST_VERSION,
    MOST_VERSIONS_AHEAD,
    Inbox,
    Received,
    Subscription,
    Undecodable,
    forget,
)
from dinemesh.kit.outbox import LEASE_SECONDS, Outbox, OutgoingEvent, mark_unsent
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.relay import Relay
from dinemesh.kit.store import Store, Transaction
from local_mesh.broker import RunningBroker
from tests.kit.words import (
    QUEUE,
    count,
    encode,
    heard,
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
from tests.support.logs import logged

# Without a broker.


async def bodies(store: Store) -> list[bytes]:
    query = select(outbox_rows.c.envelope).order_by(outbox_rows.c.position)
    return await store.read(lambda tx: list(tx.execute(query).scalars()))


async def test_an_event_and_its_change_are_one_transaction(store: Store, outbox: Outbox) -> None:
    def refused(tx: Transaction) -> None:
        outbox.add(tx, ("a", 1))
        raise Refusal("NO", "no")

    with pytest.raises(Refusal):
        await store.write(refused)
    assert await store.read(count(outbox_rows)) == 0


async def test_an_envelope_says_who_what_and_why(store: Store, outbox: Outbox) -> None:
    with call.working_on(call.Call("corr-1", causation_id="cause-1", traceparent="00-ab-cd-01")):
        (event_id,) = await say(store, outbox, "hello")
    event = Inbox(store, tables, words()).decode((await bodies(store))[0])
    assert event.event_id == event_id
    assert (event.type, event.source) == ("google.protobuf.StringValue", "words")
    assert (event.aggregate_id, event.aggregate_version) == ("word-1", 1)
    assert (event.customer_id, event.reservation_id) == ("alice", "r-1")
    assert (event.correlation_id, event.causation_id, event.traceparent) == (
        "corr-1",
        "cause-1",
        "00-ab-cd-01",
    )
    assert event.message == StringValue(value="hello")


async def test_a_duplicate_has_no_second_effect(store: Store, outbox: Outbox) -> None:
    await say(store, outbox, "a")
    inbox = Inbox(store, tables, words())
    event = inbox.decode((await bodies(store))[0])
    assert await inbox.take(event) is True
    assert await inbox.take(event) is False
    assert await store.read(texts) == ["a"]


async def test_an_older_version_has_no_effect_where_only_the_newest_counts(
    store: Store, outbox: Outbox
) -> None:
    await say(store, outbox, "one", "two", "three")
    inbox = Inbox(store, tables, words(newest_only=True))
    one, two, three = (inbox.decode(body) for body in await bodies(store))
    for event in (two, one, three):
        assert await inbox.take(event) is True  # it is recorded all the same
    assert await store.read(texts) == ["two", "three"]


async def test_events_that_do_not_replace_one_another_all_have_their_effect(
    store: Store, outbox: Outbox
) -> None:
    await say(store, outbox, "one", "two", "three")
    subscription = replace(words(newest_only=True), each_once=frozenset({StringValue}))
    inbox = Inbox(store, tables, subscription)
    one, two, three = (inbox.decode(body) for body in await bodies(store))
    for event in (two, one, three, one):
        await inbox.take(event)
    assert await store.read(texts) == ["one", "two", "three"]
    assert await store.read(count(tables.versions)) == 0, "nothing is kept that nobody compares"


async def test_a_version_that_cannot_be_mutes_no_later_one(store: Store, outbox: Outbox) -> None:
    await say(store, outbox, "one", "two")
    await say(store, outbox, "far", first=MOST_VERSIONS_AHEAD + 2)
    await say(store, outbox, "farther", first=HIGHEST_VERSION + 1)
    inbox = Inbox(store, tables, words(newest_only=True))
    first, second, far, farther = await bodies(store)
    await inbox.take(inbox.decode(first))
    with pytest.raises(Undecodable):
        await inbox.take(inbox.decode(far))
    with pytest.raises(Undecodable):
        inbox.decode(farther)
    await inbox.take(inbox.decode(second))
    assert await store.read(texts) == ["one", "two"]
    await inbox.take(inbox.decode(far))  # by now it is not that far


async def test_an_effect_and_its_record_are_one_transaction(store: Store, outbox: Outbox) -> None:
    await say(store, outbox, "poison")
    inbox = Inbox(store, tables, words())
    with pytest.raises(KeyError):
        await inbox.take(inbox.decode((await bodies(store))[0]))
    assert await store.read(count(tables.inbox)) == 0


async def test_what_a_handler_says_names_what_it_heard(store: Store) -> None:
    outbox = Outbox(outbox_rows, encode, "words")
    (first,) = await say(store, outbox, "a")

    def answer(tx: Transaction, event: Received[StringValue]) -> None:
        outbox.add(tx, ("answer", 2))

    inbox = Inbox(store, tables, Subscription(QUEUE, ["#"], {StringValue: answer}))
    await inbox.take(inbox.decode((await bodies(store))[0]))
    assert inbox.decode((await bodies(store))[1]).causation_id == first


NO_DAY = envelope_pb2.Envelope(
    event_id="e", type="t", aggregate_id="a", occur_time=Timestamp(seconds=2**60)
).SerializeToString()


@pytest.mark.parametrize("junk", [b"\xff\xff", b"", b"\x0a\x01x", NO_DAY])
async def test_junk_is_undecodable(sqlite_store: Store, junk: bytes) -> None:
    with pytest.raises(Undecodable):
        Inbox(sqlite_store, tables, words()).decode(junk)


# Over the real broker.


async def test_what_is_committed_arrives(store: Store, outbox: Outbox, broker: RunningBroker) -> None:
    bus = Bus(broker.fresh_url(), "test")
    consumer = Consumer(store, bus, tables, words())
    async with running(bus, Relay(store, outbox, bus), consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        await say(store, outbox, *(f"w{n}" for n in range(250)))
        await until(hears(store, *(f"w{n}" for n in range(250))))
        await until(unsent(store))


async def test_two_relays_send_each_event_and_the_inbox_absorbs_the_rest(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    consumer = Consumer(sqlite_store, bus, tables, words())
    relays = [Relay(sqlite_store, outbox, bus, sweep_seconds=0.05) for _ in range(2)]
    async with running(bus, consumer, *relays):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        for n in range(20):
            await say(sqlite_store, outbox, f"w{n}", first=n + 1)
        await until(hears(sqlite_store, *(f"w{n}" for n in range(20))))


async def test_events_written_without_a_broker_are_sent_when_it_is_there(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    await say(sqlite_store, outbox, "early")
    bus = Bus(broker.fresh_url(), "test")
    relay, consumer = (
        Relay(sqlite_store, outbox, bus, sweep_seconds=0.05),
        Consumer(sqlite_store, bus, tables, words()),
    )
    async with running(relay, consumer), running(bus):
        await until(hears(sqlite_store, "early"))


async def test_a_message_that_cannot_be_read_is_a_dead_letter_blocks_nothing_and_can_be_redriven(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    consumer = Consumer(sqlite_store, bus, tables, words())
    async with running(bus, Relay(sqlite_store, outbox, bus), consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        await bus.publish(b"\xff\xffjunk", "words.v1.said", event_id="junk-1")
        await say(sqlite_store, outbox, "after")
        await until(hears(sqlite_store, "after"))

        async def dead() -> int:
            return len(await dead_letters.list_dead(bus, QUEUE))

        await until(dead)
        (letter,) = await dead_letters.list_dead(bus, QUEUE)
        assert (letter.queue, letter.event_id, letter.type, letter.reason) == (
            QUEUE,
            "junk-1",
            "",
            "rejected",
        )
        assert letter.since is not None
        assert await dead_letters.redrive(bus, QUEUE) == 1
        await until(dead)  # it cannot be read the second time either, and is still not lost


async def test_a_message_that_always_fails_becomes_a_dead_letter_and_takes_effect_after_the_cause_is_gone(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.consumer.REQUEUE_PAUSE_SECONDS", 0.01)
    bus = Bus(broker.fresh_url(), "test")
    sick = True

    def handle(tx: Transaction, event: Received[StringValue]) -> None:
        if sick and event.message.value == "hard":
            raise KeyError("not yet")
        on_said(tx, event)

    subscription = Subscription(QUEUE, ["words.v1.*"], {StringValue: handle}, newest_only=False)
    consumer = Consumer(sqlite_store, bus, tables, subscription)
    # A message of one event: of several, the subscriber itself puts away what fails.
    relay = Relay(sqlite_store, outbox, bus, events_in_message=1)
    async with running(bus, relay, consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        await say(sqlite_store, outbox, "hard", "easy")
        await until(hears(sqlite_store, "easy"))
        await until(lambda: dead_letters.count_dead(bus, QUEUE))
        (letter,) = await dead_letters.list_dead(bus, QUEUE)
        assert letter.reason == "delivery_limit"
        sick = False
        assert await dead_letters.redrive(bus, QUEUE) == 1
        await until(hears(sqlite_store, "hard", "easy"))
        assert await dead_letters.count_dead(bus, QUEUE) == 0


async def test_of_a_message_with_several_events_only_those_that_cannot_be_taken_are_dead_letters(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.consumer.REQUEUE_PAUSE_SECONDS", 0.01)
    bus = Bus(broker.fresh_url(), "test")
    consumer = Consumer(sqlite_store, bus, tables, words())
    _, poison, _ = await say(sqlite_store, outbox, "first", "poison", "last")
    first, failing, last = await bodies(sqlite_store)
    unreadable = envelope_pb2.Envelope(event_id="no type").SerializeToString()
    async with running(bus, consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        message = body_of([first, failing, unreadable, last])
        await bus.publish(message, "words.v1.said", event_id="several")

        async def put_aside() -> bool:
            found = await dead_letters.list_dead(bus, QUEUE)
            return {one.event_id: one.reason for one in found} == {
                poison: "delivery_limit",
                "no type": "rejected",
            }

        await until(put_aside)
        await until(hears(sqlite_store, "first", "last"))
        assert await bus.waiting(QUEUE) == 0


async def test_what_waits_together_goes_in_one_message_and_a_single_event_as_it_is(
    sqlite_store: Store, outbox: Outbox
) -> None:
    sent: list[bytes] = []

    class Noted(Bus):
        can_publish = True

        async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
            sent.append(body)

    bus = Noted("amqp://nowhere", "test")
    async with running(Relay(sqlite_store, outbox, bus, sweep_seconds=0.05, events_in_message=3)):
        await say(sqlite_store, Outbox(outbox_rows, encode, "words"), "a", "b", "c", "d")
        await until(unsent(sqlite_store))
    assert [len(events_in(body)) for body in sent] == [3, 1]
    assert envelope_pb2.Envelope.FromString(sent[1]).event_id


async def test_every_line_about_an_event_has_the_correlation_id_that_it_carries(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.consumer.REQUEUE_PAUSE_SECONDS", 0.01)
    bus = Bus(broker.fresh_url(), "test")
    consumer = Consumer(sqlite_store, bus, tables, words())
    subscriber = Consumer(sqlite_store, bus, tables, words(queue="subscriber.words"))
    with logged() as log:
        async with running(bus, Relay(sqlite_store, outbox, bus), consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
            with call.working_on(call.Call("order-7")):
                (event_id,) = await say(sqlite_store, outbox, "poison")
            await until(lambda: dead_letters.count_dead(bus, QUEUE))
            async with running(subscriber):
                await asyncio.wait_for(subscriber.caught_up.wait(), 30)
    lines = [line for line in log.lines() if event_id in line["message"] or line.get("causation_id")]
    assert {line["message"].partition(" ")[0] for line in lines} == {"event", "an"}, "void: one is missing"
    for line in lines:
        assert (line["correlation_id"], line["causation_id"]) == ("order-7", event_id), line


async def test_an_event_that_is_not_confirmed_is_logged_with_its_correlation_id(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    class Doubtful(Bus):
        async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
            raise BusUnavailable("no confirm")

    bus = Doubtful(broker.fresh_url(), "test")
    with logged() as log:
        async with running(bus, Relay(sqlite_store, outbox, bus)):
            with call.working_on(call.Call("order-7")):
                (event_id,) = await say(sqlite_store, outbox, "a")
            await until(lambda: log.lines("1 events were not confirmed"))
    (line,) = log.lines("1 events were not confirmed")
    assert event_id in line["message"]
    assert line["correlation_id"] == "order-7"


async def test_a_guest_reads_all_that_was_said_before_it_came(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus, Relay(sqlite_store, outbox, bus)):
        await say(sqlite_store, outbox, "before", "poison", "between")
        await until(unsent(sqlite_store))
        subscriber = Consumer(sqlite_store, bus, tables, words(queue="subscriber.words"))
        async with running(subscriber):
            await asyncio.wait_for(subscriber.caught_up.wait(), 30)
            assert await sqlite_store.read(texts) == ["before", "between"]
            # What fails in the log blocks nothing and is not lost.
            assert await dead_letters.count_dead(bus, "subscriber.words") == 1
            await say(sqlite_store, outbox, "after", first=9)
            await until(hears(sqlite_store, "before", "between", "after"))


async def test_a_deleted_queue_heals_and_misses_nothing(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    relay, consumer = (
        Relay(sqlite_store, outbox, bus, sweep_seconds=0.05),
        Consumer(sqlite_store, bus, tables, words()),
    )
    async with running(bus, relay):
        async with running(consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), 30)
            await say(sqlite_store, outbox, "a")
            await until(hears(sqlite_store, "a"))
            async with bus.channel(1) as channel:
                await channel.queue_delete(QUEUE)
            await say(sqlite_store, outbox, "lost?", first=2)
            await until(hears(sqlite_store, "a", "lost?"))
        # The same while nobody listens.
        async with bus.channel(1) as channel:
            await channel.queue_delete(QUEUE)
        await say(sqlite_store, outbox, "again?", first=3)
        await until(unsent(sqlite_store))
        async with running(Consumer(sqlite_store, bus, tables, words())):
            await until(hears(sqlite_store, "a", "lost?", "again?"))


async def test_a_log_that_is_deleted_while_it_is_read_is_noticed(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus, Relay(sqlite_store, outbox, bus)):
        await say(sqlite_store, outbox, "a")
        await until(unsent(sqlite_store))
        reading = bus.read_log(until="a mark that nobody made")
        async with asyncio.timeout(30):
            assert await anext(reading)
            async with bus.channel(1) as channel:
                await channel.queue_delete(LOG_QUEUE)
            with pytest.raises(BusUnavailable):
                await anext(reading)
        await reading.aclose()


async def test_forgetting_makes_the_next_start_read_the_log_again(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus, Relay(sqlite_store, outbox, bus)):
        async with running(Consumer(sqlite_store, bus, tables, words())):
            await say(sqlite_store, outbox, "a", "b")
            await until(hears(sqlite_store, "a", "b"))

        def drop(tx: Transaction) -> None:
            tx.execute(heard.delete())
            forget(tx, tables, QUEUE)

        await sqlite_store.write(drop)
        async with running(Consumer(sqlite_store, bus, tables, words())):
            await until(hears(sqlite_store, "a", "b"))


async def test_a_relay_that_is_stopped_in_the_middle_leaves_no_event_waiting_for_its_lease(
    store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    class SlowBus(Bus):
        async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
            await asyncio.sleep(0.3)
            await super().publish(body, routing_key, event_id=event_id)

    claimed = select(func.count()).select_from(outbox_rows)
    claimed = claimed.where(outbox_rows.c.sent_time.is_(None), outbox_rows.c.claim_until.is_not(None))

    async def in_the_middle() -> bool:
        waiting: int = await store.read(lambda tx: tx.execute(claimed).scalar_one())
        return waiting == 3

    bus = SlowBus(broker.fresh_url(), "test")
    async with running(bus):
        async with running(Relay(store, outbox, bus, sweep_seconds=0.05)):
            await say(store, outbox, "a", "b", "c")
            await until(in_the_middle)
        assert await store.read(lambda tx: tx.execute(claimed).scalar_one()) == 0
        await until(unsent(store))


async def test_what_a_killed_process_had_claimed_is_sent_by_the_next_one_at_once(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    await say(sqlite_store, outbox, "claimed")
    lease = datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS)
    await sqlite_store.write(lambda tx: tx.changed(update(outbox_rows).values(claim_until=lease)))
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus, Relay(sqlite_store, outbox, bus, sweep_seconds=0.05)):
        await until(unsent(sqlite_store), 10)


async def test_replay_fills_a_broker_that_lost_everything(
    sqlite_store: Store, outbox: Outbox, broker: RunningBroker
) -> None:
    old = Bus(broker.fresh_url(), "test")
    async with running(old, Relay(sqlite_store, outbox, old)):
        await say(sqlite_store, outbox, "a", "b")
        await until(unsent(sqlite_store))
    new = Bus(broker.fresh_url(), "test")  # an empty broker
    assert await sqlite_store.write(lambda tx: mark_unsent(tx, outbox_rows)) == 2
    async with running(new, Relay(sqlite_store, outbox, new), Consumer(sqlite_store, new, tables, words())):
        await until(hears(sqlite_store, "a", "b"))


async def test_a_type_without_a_handler_is_taken_without_effect_or_goes_to_whoever_wants_the_rest(
    sqlite_store: Store,
) -> None:
    outbox = Outbox(
        outbox_rows,
        lambda n: OutgoingEvent(Int64Value(value=n), "numbers.v1.counted", f"n-{n}", 1),
        "numbers",
    )
    await sqlite_store.write(lambda tx: outbox.add(tx, 7))
    (body,) = await bodies(sqlite_store)
    plain = Inbox(sqlite_store, tables, words())
    assert await plain.take(plain.decode(body)) is True
    rest: list[str] = []
    curious = Inbox(
        sqlite_store,
        tables,
        Subscription("other", ["#"], {}, other=lambda tx, event: rest.append(event.type)),
    )
    await curious.take(curious.decode(body))
    assert rest == ["google.protobuf.Int64Value"]
