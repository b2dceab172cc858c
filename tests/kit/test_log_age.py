"""The log of events forgets what is old, and says so to whoever comes too late for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import REGISTRY

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.bus import BROKER_ERRORS, LOG_QUEUE, Bus, BusUnavailable
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.store import Store
from local_mesh import broker_users
from local_mesh.broker import RunningBroker
from tests.kit.words import opened, running, tables, texts, words
from tests.support.broker import forget_policies, learn_policies
from tests.support.logs import logged

SECONDS = 60
# Fills some segments.
EVENTS, EVENT_BYTES, SEGMENT_BYTES = 60, 4_000, 50_000


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy that ships, with a second in the place of the days and small files."""
    shipped = broker_users.log_limits(30)
    assert shipped["max-age"] == "30D" and set(shipped) == {"max-age", "stream-max-segment-size-bytes"}
    limits = shipped | {"max-age": "1s", "stream-max-segment-size-bytes": SEGMENT_BYTES}
    monkeypatch.setattr(broker_users, "log_limits", lambda days: limits)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Bus]:
    bus = Bus(url, "words")
    async with running(bus):
        assert await bus.wait_connected(SECONDS)
        yield bus


def event(number: int, at: datetime) -> bytes:
    message = StringValue(value=f"{number} ".ljust(EVENT_BYTES, "."))
    envelope = envelope_pb2.Envelope(
        event_id=str(uuid.uuid4()),
        type="google.protobuf.StringValue",
        source="words",
        aggregate_id=f"word-{number}",
        aggregate_version=number,
        payload=message.SerializeToString(),
    )
    envelope.occur_time.FromDatetime(at)
    return envelope.SerializeToString()


async def publish(bus: Bus, first: int) -> int:
    """Events numbered from `first` on, a second apart from each other; the number after them."""
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for number in range(first, first + EVENTS):
        body = event(number, noon + timedelta(seconds=number))
        await bus.publish(body, "words.v1.said", event_id=str(number))
    return first + EVENTS


async def logged_numbers(bus: Bus) -> list[int]:
    """Of the events in the log."""
    mark = str(uuid.uuid4())
    await bus.mark_log(mark)
    envelopes = [envelope_pb2.Envelope.FromString(body) async for body in bus.read_log(mark)]
    return [one.aggregate_version for one in envelopes]


async def until_forgotten(bus: Bus, first: int) -> int:
    """Publishes until the log has forgotten the event 0; the number after the last one."""
    async with asyncio.timeout(SECONDS):
        while await begins_at_zero(bus):
            first = await publish(bus, first)
            await asyncio.sleep(0.2)
    return first


async def begins_at_zero(bus: Bus) -> bool:
    while True:
        try:
            return (await logged_numbers(bus))[0] == 0
        except (*BROKER_ERRORS, BusUnavailable):
            # RabbitMQ 3.10 ends the connection of who reads a file of the log while it is deleted.
            assert await bus.wait_connected(SECONDS)


@pytest.fixture
async def late(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    """The database of a subscriber that nobody has seen yet."""
    async with opened(fresh_database("")) as store:
        yield store


def told(queue: str) -> float | None:
    return REGISTRY.get_sample_value("dinemesh_log_begin_timestamp_seconds", {"queue": queue})


async def join(store: Store, bus: Bus, queue: str) -> list[str]:
    """A subscriber joins; the warnings about the log."""
    consumer = Consumer(store, bus, tables, words(queue=queue))
    with logged() as seen:
        async with running(consumer):
            await asyncio.wait_for(consumer.caught_up.wait(), SECONDS)
    return [
        line["message"] for line in seen.lines(f"the log {LOG_QUEUE} begins") if line["level"] == "WARNING"
    ]


async def test_who_joins_after_the_log_has_forgotten_something_is_told_from_when_on_it_can_read(
    late: Store, broker: RunningBroker, forgetful: None
) -> None:
    async with connected(broker.fresh_url()) as bus:
        queue = f"words.{uuid.uuid4().hex}"
        await publish(bus, 0)
        next_one = await until_forgotten(bus, EVENTS)
        (warning,) = await join(late, bus, queue)
        taken = [int(text.split()[0]) for text in await late.read(texts)]
    assert taken == list(range(taken[0], next_one)), "it has taken all that there is"
    assert taken[0] > 0
    begin = datetime(2026, 11, 1, 12, tzinfo=UTC) + timedelta(seconds=taken[0])
    assert begin.isoformat() in warning and queue in warning
    assert told(queue) == begin.timestamp()


async def test_who_reads_the_whole_log_is_told_nothing(late: Store, broker: RunningBroker) -> None:
    async with connected(broker.fresh_url()) as bus:
        queue = f"words.{uuid.uuid4().hex}"
        await publish(bus, 0)
        assert await join(late, bus, queue) == []
        assert len(await late.read(texts)) == EVENTS
    assert told(queue) is None


async def test_the_log_has_the_limits_that_ship(broker: RunningBroker) -> None:
    url = broker.fresh_url()
    async with connected(url):
        pass
    vhost = url.rpartition("/")[2]
    log = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{LOG_QUEUE}">>))'
    for key, value in broker_users.log_limits(30).items():
        said = broker.evaluate(f'{log}, rabbit_data_coercion:to_list(rabbit_policy:get(<<"{key}">>, Q))')
        assert said.strip('"') == str(value)


def test_an_operator_is_told_how_to_limit_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert broker_users.main(["log-policy", "7"]) == 0
    command = capsys.readouterr().out
    assert command.startswith("rabbitmqctl set_policy ") and '"max-age": "7D"' in command
    for wrong in ("0", "soon", "1.5"):
        assert broker_users.main(["log-policy", wrong]) == 2
        assert "is no number of days: a whole one, 1 or more" in capsys.readouterr().err


async def test_a_log_of_the_version_before_goes_on_and_gets_its_limit_by_the_policy(
    own_broker: RunningBroker, forgetful: None
) -> None:
    url = own_broker.fresh_url()
    forget_policies(own_broker, url)
    # As it was declared when there was no policy.
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.declare_queue(LOG_QUEUE, durable=True, arguments={"x-queue-type": "stream"})
    await connection.close()
    async with connected(url) as bus:
        await bus.bind_log()
        first = await publish(bus, 0)
        await asyncio.sleep(1.1)  # older than the policy will allow
        first = await publish(bus, first)
        assert await logged_numbers(bus) == list(range(first)), "without a limit it keeps everything"
        learn_policies(own_broker, url)
        assert await logged_numbers(bus) == list(range(first))
    # RabbitMQ makes files of another size only after its next start, and by 3.13 not at all for such a log.
    own_broker.stop_broker_only()
    own_broker.start()
    async with connected(url) as bus:
        await bus.bind_log()
        first = await publish(bus, first)
        first = await until_forgotten(bus, first)
        left = await logged_numbers(bus)
    assert left == list(range(left[0], first))
    assert left[0] > 0
