"""The operator's commands over a real broker: the dead are listed and sent back, what is lost told again."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy import Column, MetaData, Table, Text, create_engine, func, select

from deposit_svc import persistence as deposit
from dinemesh.kit.bus import Bus
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import Received, Subscription, inbox_tables
from dinemesh.kit.outbox import Outbox, OutgoingEvent, backlog, outbox_table
from dinemesh.kit.relay import Relay
from dinemesh.kit.retention import Retention, expiring_outbox
from dinemesh.kit.store import Store, Transaction
from dinemesh.kit.workers import cancel
from local_mesh.broker import RunningBroker
from operations import __main__ as commands
from operations import events
from operations.broker import QUEUES, connected
from tests.operations.test_audit import seat_sold_to_nobody
from tests.operations.world import SERVICES, World
from tests.support.ports import free_ports

QUEUE = "deposit.instructions"
NOON = "2027-05-01T12:00:00Z"
WAIT_SECONDS = 30

tables = MetaData()
inbox = inbox_tables(tables)
heard = Table("heard", tables, Column("event_id", Text, primary_key=True))


class Listener:
    """A subscriber that refuses everything while it is sick."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self.sick = False
        self.store = store
        subscription = Subscription(QUEUE, ["deposit.v1.*"], {StringValue: self._hear}, newest_only=False)
        self.consumer = Consumer(store, bus, inbox, subscription)

    async def count(self) -> int:
        query = select(func.count()).select_from(heard)
        return await self.store.read(lambda tx: int(tx.execute(query).scalar_one()))

    def _hear(self, tx: Transaction, event: Received[StringValue]) -> None:
        if self.sick:
            raise RuntimeError("not now")
        tx.execute(heard.insert().values(event_id=event.event_id))


@asynccontextmanager
async def listening(amqp_url: str, database_url: str) -> AsyncIterator[Listener]:
    engine = create_engine(database_url)
    tables.create_all(engine)
    engine.dispose()
    store = Store.open(database_url)
    try:
        async with connected(amqp_url) as bus:
            listener = Listener(store, bus)
            async with running(listener.consumer.run()):
                await asyncio.wait_for(listener.consumer.caught_up.wait(), WAIT_SECONDS)
                yield listener
    finally:
        await store.close()


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await cancel(task)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Polls an async condition until it is true."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():  # noqa: ASYNC110 (another process is polled)
            await asyncio.sleep(0.02)


def saying(word: str) -> OutgoingEvent:
    return OutgoingEvent(StringValue(value=word), "deposit.v1.said", word, 1)


@asynccontextmanager
async def relaying(database_url: str, amqp_url: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A service's store with its relay; yields a function that says so many words."""
    table = outbox_table(MetaData())
    outbox = Outbox(table, saying, "deposit")
    store = Store.open(database_url)

    async def say(count: int) -> None:
        def change(tx: Transaction) -> None:
            for _ in range(count):
                outbox.add(tx, str(uuid.uuid4()))

        await store.write(change)

    async def sent() -> bool:
        return (await store.read(lambda tx: backlog(tx, table)))[0] == 0

    try:
        async with connected(amqp_url) as bus, running(Relay(store, outbox, bus, sweep_seconds=0.1).run()):
            yield say
            await until(sent)
    finally:
        await store.close()


async def run(*arguments: str) -> int:
    """A command as it is called, in a thread: it brings an event loop of its own."""
    return await asyncio.to_thread(commands.main, arguments)


async def test_dead_letters_are_listed_sent_back_and_taken_once(
    broker: RunningBroker, sqlite_templates: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    amqp_url = broker.fresh_url()
    async with listening(amqp_url, sqlite_templates("")) as listener:
        listener.sick = True
        async with relaying(sqlite_templates("deposit_svc"), amqp_url) as say:
            await say(2)

        async def dead() -> bool:
            return len(await events.dead_letters(amqp_url, [QUEUE])) == 2

        await until(dead)
        assert await run("dead-letters", "--amqp", amqp_url) == 1
        listed = capsys.readouterr().out
        assert listed.splitlines()[0].split() == [
            "QUEUE",
            "TYPE",
            "EVENT",
            "CORRELATION",
            "REASON",
            "COUNT",
            "SINCE",
            "(UTC)",
        ]
        assert listed.count(QUEUE) == 2 and listed.count("google.protobuf.StringValue") == 2
        assert "delivery_limit" in listed and f"{datetime.now(UTC):%Y-%m-%d}" in listed

        listener.sick = False
        assert await run("redrive", "--amqp", amqp_url) == 2
        assert "say --all" in capsys.readouterr().err
        assert await listener.count() == 0, "what is not named is not meant"
        assert await run("redrive", "--amqp", amqp_url, "--all") == 0
        assert f"{QUEUE}: 2 sent back" in capsys.readouterr().out

        async def taken() -> bool:
            return await listener.count() == 2

        await until(taken)
        assert await run("dead-letters", "--amqp", amqp_url) == 0
        assert capsys.readouterr().out == "no dead letters\n"


@pytest.mark.parametrize("command", ["dead-letters", "redrive"])
async def test_a_queue_that_does_not_exist_is_refused_with_those_that_do(
    broker: RunningBroker,
    sqlite_templates: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    amqp_url = broker.fresh_url()
    async with listening(amqp_url, sqlite_templates("")), connected(amqp_url) as bus:
        await bus.publish(b"\xff\xff", "deposit.v1.said", event_id="junk")

        async def dead() -> bool:
            return len(await events.dead_letters(amqp_url, [QUEUE])) == 1

        await until(dead)
        assert await run(command, "--amqp", amqp_url, "--queue", QUEUE, "--queue", "deposit.instruction") == 2
        told = capsys.readouterr()
        assert "there is no queue deposit.instruction" in told.err and not told.out
        assert all(name in told.err for name in QUEUES)
        assert await dead(), "nothing was sent back, also of the queue that exists"
        # One of the mesh whose subscriber has not run yet is empty, and no mistake.
        assert await run("dead-letters", "--amqp", amqp_url, "--queue", "history.timeline") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("let-lapse", "--until", "soon"), "'soon' is not a time, such as 2027-05-01T18:00:00Z"),
        (("let-lapse", "--until", "2027-05-01"), "must end with Z or an offset"),
        (("audit", "--patience", "long"), "'long' is not a number of seconds, 0 or more"),
        (("audit", "--patience", "-1"), "'-1' is not a number of seconds, 0 or more"),
        (("pending", "--most", "-1"), "'-1' is not a whole number, 0 or more"),
        (("audit", "--retention-days", "0"), "'0' is not a number of days, 1 to 3650, such as 30"),
        (("redrive", "--queue", ""), "must not be empty"),
    ],
)
async def test_an_argument_that_cannot_be_read_is_named_with_what_can(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, option, value = arguments
    with pytest.raises(SystemExit, match="2"):
        await run(command, f"{option}={value}")
    assert told in capsys.readouterr().err


async def test_a_replay_of_nothing_and_a_database_that_is_no_address_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SERVICES:
        monkeypatch.delenv(f"DINEMESH_{name.upper()}_DATABASE_URL", raising=False)
    assert await run("replay") == 2
    assert "--reservation-db, --deposit-db, --restaurant-db" in capsys.readouterr().err
    for command in (
        ("replay", "--deposit-db=junk"),
        ("let-lapse", "--reservation-db=junk", f"--until={NOON}"),
    ):
        assert await run(*command) == 2
        assert "one looks like sqlite:////path/deposit.db" in capsys.readouterr().err


async def test_an_unreadable_message_is_listed_as_such(
    broker: RunningBroker, sqlite_templates: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    amqp_url = broker.fresh_url()
    async with listening(amqp_url, sqlite_templates("")):
        async with connected(amqp_url) as bus:
            await bus.publish(b"\xff\xff", "deposit.v1.said", event_id="junk")

        async def dead() -> bool:
            return bool(await events.dead_letters(amqp_url, [QUEUE]))

        await until(dead)
        assert await run("dead-letters", "--amqp", amqp_url, "--queue", QUEUE) == 1
        assert "unreadable, 2 bytes" in capsys.readouterr().out


async def test_a_replay_tells_a_new_broker_everything_and_an_old_one_nothing_new(
    broker: RunningBroker, sqlite_templates: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    service, subscriber = sqlite_templates("deposit_svc"), sqlite_templates("")
    old = broker.fresh_url()
    async with listening(old, subscriber) as listener:
        async with relaying(service, old) as say:
            await say(5)

        async def all_heard() -> bool:
            return await listener.count() == 5

        await until(all_heard)
        async with relaying(service, old) as say:
            assert await run("replay", "--deposit-db", service) == 0  # while the service runs
            await say(1)  # published after the five, so that they have come when it is heard
            assert capsys.readouterr().out == "deposit: 5 events are published again by its relay\n"

        async def one_more() -> bool:
            return await listener.count() > 5

        await until(one_more)
        assert await listener.count() == 6
    new = broker.fresh_url()  # the old one is lost, and the subscriber's database with it
    async with listening(new, sqlite_templates("")) as listener:
        async with relaying(service, new):
            assert await run("replay", "--deposit-db", service) == 0

        async def told_again() -> bool:
            return await listener.count() == 6

        await until(told_again)


async def test_a_replay_says_what_the_outbox_no_longer_has(
    fresh_database: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    service = fresh_database("deposit_svc")
    assert await run("replay", "--deposit-db", service) == 0
    assert capsys.readouterr().out == "deposit: 0 events are published again by its relay\n"
    store = Store.open(service, exclusive=False)
    try:
        outbox = Outbox(deposit.outbox, saying, "deposit")
        await store.write(lambda tx: [outbox.add(tx, word) for word in ("old", "young")])
        columns = deposit.outbox.c
        old = deposit.outbox.update().where(columns.position == 1)
        old = old.values(create_time=datetime.now(UTC) - timedelta(days=31))
        sent = deposit.outbox.update().values(sent_time=datetime.now(UTC))
        await store.write(lambda tx: (tx.execute(old), tx.execute(sent)))
        expiring = [expiring_outbox(deposit.outbox)]
        await Retention(store, deposit.retention, expiring, days=30).turn()
    finally:
        await store.close()
    assert await run("replay", "--deposit-db", service) == 0
    said = capsys.readouterr().out
    month_ago = f"{datetime.now(UTC) - timedelta(days=30):%Y-%m-%d}"
    assert said.startswith("deposit: 1 events are published again by its relay\n  but none from before ")
    assert month_ago in said and "make rebuild-history" in said
    # Of these everything is there.
    assert await run("replay", "--deposit-db", service, "--since", "86400") == 0
    assert "but none" not in capsys.readouterr().out


async def test_a_replay_of_a_database_of_the_version_before_says_nothing_of_it(
    sqlite_templates: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    service = sqlite_templates("deposit_svc")
    with sqlite3.connect(service.removeprefix("sqlite:///")) as database:
        database.execute("DROP TABLE retention")
    assert await run("replay", "--deposit-db", service) == 0
    assert capsys.readouterr().out == "deposit: 0 events are published again by its relay\n"


async def test_an_audit_ends_with_one_for_what_is_wrong_and_lists_dead_letters(
    world: World,
    broker: RunningBroker,
    sqlite_templates: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    amqp_url = broker.fresh_url()
    arguments = ["audit", "--provider", world.provider.address, "--amqp", amqp_url, "--patience", "0"]
    for name in SERVICES:
        arguments += [f"--{name}-db", world.urls[name]]
    assert await run(*arguments) == 0
    assert capsys.readouterr().out.endswith("audit: nothing wrong\n")

    seat_sold_to_nobody(world)
    async with listening(amqp_url, sqlite_templates("")), connected(amqp_url) as bus:
        await bus.publish(b"\xff\xff", "deposit.v1.said", event_id="junk")

        async def dead() -> bool:
            return bool(await events.dead_letters(amqp_url, [QUEUE]))

        await until(dead)
        assert await run(*arguments) == 1
    told = capsys.readouterr().out
    assert "WRONG  seats" in told and f"WRONG  dead letters  {QUEUE}" in told
    assert told.endswith("audit: 2 wrong\n")


async def test_what_cannot_be_done_is_said_and_ends_with_two(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.broker.CONNECT_SECONDS", 0.5)
    (nowhere,) = free_ports(1)
    amqp_url = f"amqp://guest:guest@127.0.0.1:{nowhere}/"
    for command in (("dead-letters",), ("redrive", "--all")):
        assert await run(*command, "--amqp", amqp_url) == 2
        assert "the broker was not reached" in capsys.readouterr().err
    assert await run("replay", "--deposit-db", "sqlite:////nowhere/deposit.db") == 2
    assert "there is no such file" in capsys.readouterr().err


async def test_addresses_come_from_the_environment_and_what_is_missing_is_named(
    world: World,
    broker: RunningBroker,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in SERVICES:
        monkeypatch.setenv(f"DINEMESH_{name.upper()}_DATABASE_URL", world.urls[name])
    monkeypatch.setenv("DINEMESH_SANDBOX_ADDRESS", world.provider.address)
    with pytest.raises(SystemExit, match="2"):
        await run("audit")
    assert "required: --amqp" in capsys.readouterr().err
    monkeypatch.setenv("DINEMESH_AMQP_URL", broker.fresh_url())
    assert await run("audit", "--patience", "0") == 0
    # Who gives an address means it.
    assert await run("audit", "--history-db", "sqlite:////nowhere/history.db") == 2
    assert "there is no such file" in capsys.readouterr().err
