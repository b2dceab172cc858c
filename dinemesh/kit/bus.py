"""The one place that knows AMQP: connections that come back, the topology, publishing, the log.

Topology, declared by every service and idempotent: the topic exchange `dinemesh.events`, the stream queue
`dinemesh.log` bound to everything, and per subscriber a quorum queue with a dead-letter queue of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelClosed, ChannelNotFoundEntity
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

log = logging.getLogger(__name__)

EXCHANGE = "dinemesh.events"
LOG_QUEUE = "dinemesh.log"
DEAD_EXCHANGE = "dinemesh.dead"
# A delivery that failed this often is a dead letter; redeliveries after a consumer's death count too, so it
# is far above what a few restarts use up.
DELIVERY_LIMIT = 20
# Finds a broker that hangs: two missed beats end the connection.
HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5.0
# A confirm that takes longer leaves the event in doubt; it is published again.
CONFIRM_TIMEOUT_SECONDS = 10.0
# One round of reconnecting: 10 attempts, at most 2 s apart. Then a line in the log, and the next round.
RECONNECT_ATTEMPTS = 10
RECONNECT_MAX_SECONDS = 2.0
# Messages of the log in flight to a reader that catches up.
LOG_PREFETCH = 500


class BusUnavailable(Exception):
    """The broker is away, or did not confirm: the publish is in doubt."""


# What a lost connection, a refused call or a hanging broker look like from here.
BROKER_ERRORS = (AMQPError, OSError, TimeoutError, asyncio.InvalidStateError, RuntimeError)


def dead_letter_queue(queue: str) -> str:
    """The queue that holds the dead letters of `queue`."""
    return f"{queue}.dead"


class _Link:
    """A connection that comes back. What needs it is told by `on_open`, and waits by `wait`."""

    def __init__(self, url: str, name: str, on_open: Callable[[AbstractConnection], Awaitable[None]]) -> None:
        self._url = url
        self._name = name
        self._on_open = on_open
        self._connection: AbstractConnection | None = None
        self._up = asyncio.Event()
        self._lost = asyncio.Event()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                try:
                    await self._connect()
                except BROKER_ERRORS as error:
                    log.warning("the broker cannot be reached (%s), still trying: %s", self._name, error)
                    continue
                assert self._connection is not None
                self._up.set()
                await self._lost.wait()
                self._up.clear()
                await self._connection.close()
                log.warning("the connection to the broker is lost (%s)", self._name)
        finally:
            self._up.clear()
            if self._connection is not None:
                await self._connection.close()

    async def _connect(self) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BROKER_ERRORS),
            wait=wait_random_exponential(multiplier=0.1, max=RECONNECT_MAX_SECONDS),
            stop=stop_after_attempt(RECONNECT_ATTEMPTS),
            before_sleep=before_sleep_log(log, logging.DEBUG),
            reraise=True,
        ):
            with attempt:
                connection = await aio_pika.connect(
                    self._url,
                    timeout=CONNECT_TIMEOUT_SECONDS,
                    heartbeat=HEARTBEAT_SECONDS,
                    client_properties={"connection_name": self._name},
                )
                # `Connection.closed()` answers only for a close of our own, not for a lost connection.
                self._lost = asyncio.Event()
                connection.close_callbacks.add(_setter(self._lost))
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                        await self._on_open(connection)
                except BaseException:
                    await connection.close()
                    raise
                self._connection = connection

    async def connection(self) -> AbstractConnection:
        """The open connection; waits for it."""
        await self._up.wait()
        assert self._connection is not None
        return self._connection


class Bus:
    """A process's way to the broker. `run` keeps two connections: a broker that blocks publishers (disk or
    memory alarm) must not block acknowledgements."""

    def __init__(self, url: str, name: str) -> None:
        self._publishing = _Link(url, f"{name}.publish", self._open_publisher)
        self._consuming = _Link(url, f"{name}.consume", self._declare_topology)
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._default: aio_pika.abc.AbstractExchange | None = None

    async def run(self) -> None:
        """Until cancelled: both connections, coming back whenever they are lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publishing.run())
            group.create_task(self._consuming.run())

    @property
    def can_publish(self) -> bool:
        """True while the publishing connection is open."""
        return self._publishing.up

    async def wait_connected(self, seconds: float) -> bool:
        """True as soon as the broker is reached, False if it was not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._consuming.connection()
                await self._publishing.connection()
        except TimeoutError:
            return False
        return True

    async def publish(self, body: bytes, routing_key: str, *, event_id: str) -> None:
        """Publish one event and wait for the confirm. Raises BusUnavailable: then it is in doubt."""
        await self._send(self._exchange, body, routing_key, event_id, {})

    async def publish_to_queue(
        self, body: bytes, queue: str, *, event_id: str, headers: dict[str, Any] | None = None
    ) -> None:
        """Publish straight into one queue, past the exchange, and wait for the confirm."""
        await self._send(self._default, body, queue, event_id, headers or {})

    async def _send(
        self,
        exchange: aio_pika.abc.AbstractExchange | None,
        body: bytes,
        routing_key: str,
        event_id: str,
        headers: dict[str, Any],
    ) -> None:
        if exchange is None or not self._publishing.up:
            raise BusUnavailable("the broker is away")
        message = aio_pika.Message(
            body,
            message_id=event_id,
            content_type="application/x-protobuf",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=headers,
        )
        try:
            # The library returns normally for a message that no queue took, unless it is mandatory and
            # the channel raises returns.
            await exchange.publish(message, routing_key, mandatory=True, timeout=CONFIRM_TIMEOUT_SECONDS)
        except BROKER_ERRORS as error:
            raise BusUnavailable(f"not confirmed: {error or type(error).__name__}") from error

    @asynccontextmanager
    async def channel(self, prefetch: int) -> AsyncIterator[AbstractChannel]:
        """A channel for one consumer, waiting for the broker. `prefetch` messages may be unacknowledged."""
        connection = await self._consuming.connection()
        channel = await connection.channel()
        try:
            await channel.set_qos(prefetch_count=prefetch)
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def has_queue(self, queue: str) -> bool:
        """Whether `queue` exists. A failed question closes its channel, so it has one of its own."""
        connection = await self._consuming.connection()
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return False
        finally:
            if not channel.is_closed:
                await channel.close()
        return True

    async def declare_subscriber(self, channel: AbstractChannel, queue: str, bindings: Sequence[str]) -> None:
        """A quorum queue with its dead letters, bound to the routing keys `bindings`."""
        dead = dead_letter_queue(queue)
        dead_exchange = await channel.declare_exchange(
            DEAD_EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True
        )
        dead_queue = await channel.declare_queue(dead, durable=True, arguments={"x-queue-type": "quorum"})
        await dead_queue.bind(dead_exchange, routing_key=dead)
        declared = await channel.declare_queue(
            queue,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": DEAD_EXCHANGE,
                "x-dead-letter-routing-key": dead,
                # At least once, which the broker silently gives up without reject-publish.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
        for key in bindings:
            await declared.bind(EXCHANGE, routing_key=key)

    async def read_log(self, until: str) -> AsyncGenerator[bytes, None]:
        """Every event in the log, oldest first, up to the message `until` (an id put there by `mark_log`)."""
        async with self.channel(LOG_PREFETCH) as channel:
            arrived = await deliveries(channel, LOG_QUEUE, {"x-stream-offset": "first"})
            while (message := await arrived.get()) is not None:
                if message.message_id == until:
                    return
                if message.headers.get("x-mark") is None:
                    yield message.body
                await message.ack()
            raise BusUnavailable("the log was cut off")

    async def mark_log(self, mark_id: str) -> None:
        """Put a mark at the end of the log: whoever has read up to it has read all that came before."""
        await self.publish_to_queue(b"", LOG_QUEUE, event_id=mark_id, headers={"x-mark": "end"})

    async def _open_publisher(self, connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await _declare_topology(channel)
        self._exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        self._default = channel.default_exchange
        # A publisher whose channel is closed by the broker starts again with a new connection.
        channel.close_callbacks.add(lambda *_: _close_soon(connection))

    async def _declare_topology(self, connection: AbstractConnection) -> None:
        async with await connection.channel() as channel:
            await _declare_topology(channel)


Deliveries = asyncio.Queue[AbstractIncomingMessage | None]


async def deliveries(
    channel: AbstractChannel, queue: str, arguments: dict[str, Any] | None = None
) -> Deliveries:
    """Consume `queue`: what arrives, and None when no more will come."""
    arrived: Deliveries = asyncio.Queue()

    def ended(*_: object) -> None:
        arrived.put_nowait(None)

    channel.close_callbacks.add(ended)
    # A deleted queue cancels its consumer and leaves the channel open.
    (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(ended)
    await (await channel.get_queue(queue, ensure=False)).consume(arrived.put, arguments=arguments)
    return arrived


async def _declare_topology(channel: AbstractChannel) -> None:
    exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
    # A stream without a retention limit: the log from which guests join, and history is rebuilt.
    stream = await channel.declare_queue(LOG_QUEUE, durable=True, arguments={"x-queue-type": "stream"})
    await stream.bind(exchange, routing_key="#")


def _setter(event: asyncio.Event) -> Callable[..., None]:
    return lambda *_: event.set()


_closing: set[asyncio.Task[None]] = set()


def _close_soon(connection: AbstractConnection) -> None:
    if connection.is_closed:
        return
    task = asyncio.get_running_loop().create_task(connection.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


__all__ = ["BROKER_ERRORS", "Bus", "BusUnavailable", "ChannelClosed", "dead_letter_queue"]
