"""Each user of the broker says and touches what is its own: a real broker with the users of the mesh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from google.protobuf.wrappers_pb2 import StringValue

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import dead_letters
from dinemesh.kit.bus import EXCHANGE, LOG_QUEUE, Bus, dead_exchange, dead_letter_queue, is_own
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import Subscription
from dinemesh.kit.outbox import Outbox, OutgoingEvent
from dinemesh.kit.relay import Relay
from dinemesh.kit.store import Store
from local_mesh.broker import RunningBroker, as_user
from local_mesh.broker_users import OPERATOR
from local_mesh.settings import BEHIND_THE_EDGE
from tests.kit.words import encode, hears, on_said, outbox_rows, running, say, tables, until

OWN = "deposit.words"
"""Of the subscriber whom others would like to tell what is not so."""


@pytest.fixture
async def vhost(broker: RunningBroker) -> str:
    """The URL of a virtual host in which the topology stands, and `OWN`."""
    url = broker.fresh_url()
    bus = Bus(as_user(url, "deposit"), "deposit")
    async with running(bus):
        assert await bus.wait_connected(15)
        async with bus.channel(1) as channel:
            await bus.declare_subscriber(channel, OWN, ["reservation.v1.*"])
    return url


@asynccontextmanager
async def channel_of(url: str, user: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(as_user(url, user)) as connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def publish(channel: AbstractChannel, exchange: str, key: str, message: aio_pika.Message) -> None:
    found = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    await found.publish(message, key, timeout=10)


Attempt = Callable[[AbstractChannel], Awaitable[object]]


def refused(user: str) -> dict[str, Attempt]:
    """What no user may do but the one it belongs to."""
    word = aio_pika.Message(b"word")
    found: dict[str, Attempt] = {
        f"say what {other} says": lambda channel, other=other: publish(  # type: ignore[misc]
            channel, EXCHANGE, f"{other}.v1.cancelled", word
        )
        for other in BEHIND_THE_EDGE
        if other != user
    }
    found |= {
        "put into the log": lambda channel: publish(channel, "", LOG_QUEUE, word),
        "put into a queue": lambda channel: publish(channel, "", OWN, word),
        "put among the dead letters": lambda channel: publish(
            channel, dead_exchange(OWN), dead_letter_queue(OWN), word
        ),
        "read a queue": lambda channel: _get(channel, OWN),
        "delete a queue": lambda channel: channel.queue_delete(OWN),
        "bind a queue": lambda channel: _bind(channel, OWN),
        "declare a queue": lambda channel: channel.declare_queue("deposit.more"),
    }
    return found


async def _get(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).get(fail=False)


async def _bind(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).bind(EXCHANGE, "history.v1.*")


@pytest.mark.parametrize("user", ["reservation", "restaurant", "history"])
async def test_the_broker_refuses_what_is_not_ones_own(vhost: str, user: str) -> None:
    for what, attempt in refused(user).items():
        async with channel_of(vhost, user) as channel:
            with pytest.raises(ChannelAccessRefused):
                await attempt(channel)
                pytest.fail(f"{user} may {what}")


@pytest.mark.parametrize("user", BEHIND_THE_EDGE)
async def test_a_service_may_say_what_is_its_own_and_nobody_says_it_for_an_operator(
    vhost: str, user: str
) -> None:
    async with channel_of(vhost, user) as channel:
        await publish(channel, EXCHANGE, f"{user}.v1.happened", aio_pika.Message(b"word"))
        with pytest.raises(ChannelAccessRefused):
            await publish(channel, EXCHANGE, f"{user}s.v1.happened", aio_pika.Message(b"word"))
    async with channel_of(vhost, OPERATOR) as channel:
        with pytest.raises(ChannelAccessRefused):
            await publish(channel, EXCHANGE, f"{user}.v1.happened", aio_pika.Message(b"word"))
    async with channel_of(vhost, OPERATOR) as channel:
        with pytest.raises(ChannelAccessRefused):
            await _get(channel, OWN)


async def test_an_operator_lists_and_redrives(vhost: str) -> None:
    bus = Bus(as_user(vhost, "deposit"), "deposit")
    operators = Bus(as_user(vhost, OPERATOR), "operations")
    async with running(bus, operators):
        assert await bus.wait_connected(15) and await operators.wait_connected(15)
        await bus.publish_dead(b"word", OWN, event_id="e", reason="rejected")
        (letter,) = await dead_letters.list_dead(operators, OWN)
        assert letter.event_id == "e"
        assert await dead_letters.redrive(operators, OWN) == 1
        async with bus.channel(1) as channel:
            message = await (await channel.get_queue(OWN, ensure=False)).get(timeout=10)
            assert message is not None and message.body == b"word" and is_own(message)


def said_by_reservation(event: tuple[str, int]) -> OutgoingEvent:
    return replace(encode(event), routing_key="reservation.v1.said")


def forged(source: str) -> bytes:
    """What reservation would say."""
    return envelope_pb2.Envelope(
        event_id=f"forged by {source}",
        type="google.protobuf.StringValue",
        source="reservation",
        aggregate_id="word-1",
        aggregate_version=9,
        payload=StringValue(value="forged").SerializeToString(),
    ).SerializeToString()


async def by_a_further_key(channel: AbstractChannel) -> None:
    message = aio_pika.Message(forged("cc"), headers={"CC": ["reservation.v1.said"]})
    await publish(channel, EXCHANGE, "restaurant.v1.said", message)


async def by_dead_letters(channel: AbstractChannel) -> None:
    arguments: dict[str, Any] = {
        "x-dead-letter-exchange": EXCHANGE,
        "x-dead-letter-routing-key": "reservation.v1.said",
    }
    queue = await channel.declare_queue("restaurant.bin", arguments={**arguments, "x-message-ttl": 1})
    await queue.bind(EXCHANGE, "restaurant.v1.bin")
    await publish(channel, EXCHANGE, "restaurant.v1.bin", aio_pika.Message(forged("dead letters")))


async def by_an_exchange_of_ones_own(channel: AbstractChannel) -> None:
    own = await channel.declare_exchange("restaurant.own", aio_pika.ExchangeType.TOPIC)
    await (await channel.get_exchange(EXCHANGE, ensure=False)).bind(own, "#")
    await publish(channel, "restaurant.own", "reservation.v1.said", aio_pika.Message(forged("exchange")))


@pytest.mark.parametrize(
    "way", [by_a_further_key, by_dead_letters, by_an_exchange_of_ones_own], ids=lambda way: way.__name__
)
async def test_what_gets_past_the_broker_is_a_dead_letter_live_and_no_event_in_the_log(
    sqlite_store: Store, vhost: str, way: Attempt
) -> None:
    """A user that may declare a queue or an exchange can have the broker itself pass its message on."""
    subscription = Subscription(OWN, ["reservation.v1.*"], {StringValue: on_said})
    theirs = Bus(as_user(vhost, "reservation"), "reservation")
    ours = Bus(as_user(vhost, "deposit"), "deposit")
    consumer = Consumer(sqlite_store, ours, tables, subscription)
    outbox = Outbox(outbox_rows, said_by_reservation, "reservation")
    async with running(theirs, ours, consumer, Relay(sqlite_store, outbox, theirs, sweep_seconds=0.05)):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        async with channel_of(vhost, "restaurant") as channel:
            await way(channel)

            async def dead() -> bool:
                return await dead_letters.count_dead(ours, OWN) == 1

            await until(dead)
        await say(sqlite_store, outbox, "honest")
        await until(hears(sqlite_store, "honest"))
        await ours.mark_log("end")
        logged = [envelope_pb2.Envelope.FromString(body).event_id async for body in ours.read_log("end")]
        assert len(logged) == 1 and not logged[0].startswith("forged")


async def test_a_user_that_may_not_is_told_once_and_does_not_hammer_the_broker(
    sqlite_store: Store, vhost: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.bus.REFUSED_PAUSE_SECONDS", 0.5)
    outbox = Outbox(outbox_rows, said_by_reservation, "reservation")
    wrong = Bus(as_user(vhost, "deposit"), "reservation")
    with caplog.at_level(logging.ERROR):
        async with running(wrong, Relay(sqlite_store, outbox, wrong, sweep_seconds=0.01)):
            assert await wrong.wait_connected(15)
            await say(sqlite_store, outbox, *(f"w{n}" for n in range(50)))

            def told() -> list[str]:
                return [one.message for one in caplog.records if "DINEMESH_AMQP_URL" in one.message]

            await until(lambda: len(told()) >= 2)
            first, second = [one for one in caplog.records if "DINEMESH_AMQP_URL" in one.message][:2]
            assert "ACCESS_REFUSED" in told()[0] and "reservation.v1.said" in told()[0]
            assert second.created - first.created >= 0.5


async def test_a_queue_of_an_earlier_version_is_used_as_it_is(broker: RunningBroker) -> None:
    url = broker.fresh_url()
    bus = Bus(url, "deposit")
    async with running(bus):
        assert await bus.wait_connected(15)
        async with bus.channel(1) as channel:
            old: dict[str, Any] = {"x-queue-type": "quorum", "x-dead-letter-exchange": "dinemesh.dead"}
            await channel.declare_queue(OWN, durable=True, arguments=old)
            await bus.declare_subscriber(channel, OWN, ["reservation.v1.*"])
            await bus.publish(b"word", "reservation.v1.said", event_id="e")
            message = await (await channel.get_queue(OWN, ensure=False)).get(timeout=10)
            assert message is not None and message.body == b"word"
