"""The one place that knows AMQP: connections that come back, the topology, publishing, the log.

Topology, declared by every service and idempotent: the topic exchange `dinemesh.events`, the stream queue
`dinemesh.log` bound to everything, and per subscriber a quorum queue with a dead-letter queue of its own.

Names begin with the service that they belong to (`deposit.instructions`): a user of the broker may touch and
say what begins with its own name, and no more (local_mesh/broker_users.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from aiormq.exceptions import ChannelAccessRefused
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.batches import DecodeError, bodies_in, events_in
from dinemesh.kit.workers import heed_cancellation, together

log = logging.getLogger(__name__)

EXCHANGE = "dinemesh.events"
LOG_QUEUE = "dinemesh.log"
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
# A user that may not do what it tries will not be allowed to a moment later: time to read the line about it.
REFUSED_PAUSE_SECONDS = 5.0
# Messages of the log in flight to a reader that catches up.
LOG_PREFETCH = 500
# A mark that was published and does not come out of the log within this time never went in.
LOG_MARK_SECONDS = 5.0
# How often a connection is asked whether the broker blocks it.
BLOCKED_CHECK_SECONDS = 1.0
# A broker that blocks a connection does not answer its goodbye either, and one that hangs answers nothing.
CLOSE_TIMEOUT_SECONDS = 5.0
# A queue gives nothing to its consumer yet: a node that has lost the others, or a log without a leader.
CONSUME_TIMEOUT_SECONDS = 15.0
# The header by which messages that are no events are told apart: `end` of a log, or a `canary`.
MARK = "x-mark"
# The header of a dead letter that its subscriber put aside itself: why, in the broker's words.
REASON = "x-reason"
# The header that the broker gives a message of a stream: its number, from 0 at the stream's first message.
OFFSET = "x-stream-offset"


def is_own(message: AbstractIncomingMessage) -> bool:
    """Whether a message tells of what its routing key stands for. What cannot be read is judged elsewhere.

    The broker holds a user to its own routing keys, but not what stands inside, and not the other ways to
    another's subscribers: further keys (CC), a queue whose dead letters go to `dinemesh.events`, an exchange
    bound to it. What comes straight into a queue is an operator's: nobody else may do that.
    """
    if not message.exchange:
        return True
    if message.exchange != EXCHANGE or "x-death" in message.headers:
        return False
    try:
        events = events_in(message.body)
    except DecodeError:
        return True
    publisher = (message.routing_key or "").partition(".")[0]
    return all(_says(publisher, event) for event in events)


def _says(publisher: str, event: envelope_pb2.Envelope) -> bool:
    package, _, rest = event.type.partition(".")
    types_of = rest.partition(".")[0] if package == "dinemesh" else publisher
    return event.source in ("", publisher) and types_of == publisher


class BusUnavailable(Exception):
    """The broker is away, or did not confirm: the publish is in doubt."""


class Refused(BusUnavailable):
    """The broker is there and refused a message, or no queue took it. Other queues may have taken it."""


# What a lost connection, a refused call or a hanging broker look like from here.
BROKER_ERRORS = (AMQPError, OSError, TimeoutError, asyncio.InvalidStateError, RuntimeError)


def dead_letter_queue(queue: str) -> str:
    """The queue that holds the dead letters of `queue`."""
    return f"{queue}.dead"


def dead_exchange(queue: str) -> str:
    """Where the dead letters of `queue` go first. Each service has its own: whoever may write into one that
    all share could put into another's dead letters what an operator then gives to it."""
    return f"{queue.partition('.')[0]}.dead"


def nodes(url: str) -> list[str]:
    """The URLs of a setting that names one node of the broker, or several with commas between."""
    return re.split(r",(?=amqps?://)", url)


class _Link:
    """A connection that comes back. What needs it is told by `on_open`, and waits by `wait`.

    `url` may name several nodes: they are tried in turn, so that the one just lost comes last, and each
    connection begins somewhere else.
    """

    def __init__(self, url: str, name: str, on_open: Callable[[AbstractConnection], Awaitable[None]]) -> None:
        known = nodes(url)
        self._turns = itertools.cycle(random.sample(known, len(known)))
        self._name = name
        self._on_open = on_open
        self._connection: AbstractConnection | None = None
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._was_refused = False
        self.blocked = False

    def refused(self, error: ChannelAccessRefused) -> None:
        """The broker's user may not do what was tried: said once, and tried again only after a pause."""
        if not self._was_refused:
            log.error("the broker refuses (%s): the user in DINEMESH_AMQP_URL may not: %s", self._name, error)
        self._was_refused = True

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                try:
                    await self._connect()
                except ChannelAccessRefused as error:
                    self.refused(error)
                    await asyncio.sleep(REFUSED_PAUSE_SECONDS)
                    continue
                except BROKER_ERRORS as error:
                    log.warning("the broker cannot be reached (%s), still trying: %s", self._name, error)
                    continue
                assert self._connection is not None
                self._up.set()
                await self._watch(self._connection)
                self._up.clear()
                await _close(self._connection)
                log.warning("the connection to the broker is lost (%s)", self._name)
                if self._was_refused:
                    self._was_refused = False
                    await asyncio.sleep(REFUSED_PAUSE_SECONDS)
        finally:
            self._up.clear()
            if self._connection is not None:
                await _close(self._connection)

    async def _watch(self, connection: AbstractConnection) -> None:
        """Until the connection is lost; notices whether the broker blocks it (a memory or disk alarm)."""
        try:
            while not self._lost.is_set():
                blocked = await _is_blocked(connection)
                if blocked != self.blocked:
                    self.blocked = blocked
                    if blocked:
                        log.error("the broker blocks %s: it is short of memory or disk", self._name)
                    else:
                        log.warning("the broker blocks %s no longer", self._name)
                with suppress(TimeoutError):
                    async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
                        await self._lost.wait()
        finally:
            self.blocked = False

    async def _connect(self) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.1, max=RECONNECT_MAX_SECONDS),
            stop=stop_after_attempt(RECONNECT_ATTEMPTS),
            before_sleep=before_sleep_log(log, logging.DEBUG),
            reraise=True,
        ):
            heed_cancellation()
            with attempt:
                connection = await aio_pika.connect(
                    next(self._turns),
                    timeout=CONNECT_TIMEOUT_SECONDS,
                    heartbeat=HEARTBEAT_SECONDS,
                    client_properties={"connection_name": self._name},
                )
                # `Connection.closed()` answers only for a close of our own, not for a lost connection.
                self._lost = asyncio.Event()
                connection.close_callbacks.add(self.loses())
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                        await self._on_open(connection)
                    heed_cancellation()
                except BaseException:
                    await _close(connection)
                    raise
                self._connection = connection

    def loses(self) -> Callable[..., None]:
        """A callback by which the connection that is being opened, or was last, counts as lost at once."""
        lost = self._lost

        def lose(*_: object) -> None:
            lost.set()
            if lost is self._lost:
                self._up.clear()

        return lose

    async def connection(self) -> AbstractConnection:
        """The open connection; waits for it."""
        await self._up.wait()
        assert self._connection is not None
        return self._connection


Deliveries = asyncio.Queue[AbstractIncomingMessage | None]


class Bus:
    """A process's way to the broker. `run` keeps two connections: a broker that blocks publishers (disk or
    memory alarm) must not block acknowledgements."""

    def __init__(self, url: str, name: str) -> None:
        self._publishing = _Link(url, f"{name}.publish", self._open_publisher)
        self._consuming = _Link(url, f"{name}.consume", self._open_consumer)
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._default: aio_pika.abc.AbstractExchange | None = None
        self._channel: AbstractChannel | None = None
        # Four words: of the mesh's bindings only `#` takes it. The first word is what a broker's topic
        # permissions hold a service to.
        self._mark_key = f"{name.partition('.')[0]}.v1.log.mark"
        self._declaring = asyncio.Lock()
        self.made_exchange = False
        """The exchange was missing and had to be made; whoever looks after the topology resets it."""

    async def run(self) -> None:
        """Until cancelled: both connections, coming back whenever they are lost."""
        await together(self._publishing.run(), self._consuming.run())

    @property
    def can_publish(self) -> bool:
        """True while the publishing connection is open and the broker takes what it sends."""
        return self._publishing.up and not self._publishing.blocked

    @property
    def blocked(self) -> bool:
        """True while the broker takes no messages from anybody: a memory or disk alarm."""
        return self._publishing.blocked

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
        """Publish one message, of one event or several, and wait for the confirm.

        Raises BusUnavailable: then it is in doubt; Refused if the broker itself said no.
        """
        await self._send(self._exchange, body, routing_key, event_id, {})

    async def publish_canary(self, body: bytes, routing_key: str, *, canary_id: str, again: float) -> None:
        """Publish what only shows that a binding is there; the next one on this key comes in `again` s."""
        await self._send(self._exchange, body, routing_key, canary_id, {MARK: "canary", "x-again": again})

    async def publish_to_queue(self, body: bytes, queue: str, *, event_id: str) -> None:
        """Publish straight into one queue, past the exchange, and wait for the confirm. For operators: a
        service's own user of the broker may not."""
        await self._send(self._default, body, queue, event_id, {})

    async def publish_dead(self, body: bytes, queue: str, *, event_id: str, reason: str) -> None:
        """Put a message among the dead letters of a queue of this service, and wait for the confirm."""
        channel = self._channel
        exchange = await channel.get_exchange(dead_exchange(queue), ensure=False) if channel else None
        headers = {REASON: reason}
        await self._send(exchange, body, dead_letter_queue(queue), event_id, headers, since=datetime.now(UTC))

    async def _send(
        self,
        exchange: aio_pika.abc.AbstractExchange | None,
        body: bytes,
        routing_key: str,
        event_id: str,
        headers: dict[str, Any],
        since: datetime | None = None,
    ) -> None:
        if exchange is None or not self._publishing.up:
            raise BusUnavailable("the broker is away")
        if self._publishing.blocked:
            raise BusUnavailable("the broker blocks publishers")
        message = aio_pika.Message(
            body,
            message_id=event_id,
            content_type="application/x-protobuf",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=headers,
            timestamp=since,
        )
        try:
            # The library returns normally for a message that no queue took, unless it is mandatory and
            # the channel raises returns.
            await exchange.publish(message, routing_key, mandatory=True, timeout=CONFIRM_TIMEOUT_SECONDS)
        except ChannelAccessRefused as error:
            self._publishing.refused(error)
            raise BusUnavailable(f"refused: {error}") from error
        except DeliveryError as error:
            raise Refused(f"not confirmed: {error or type(error).__name__}") from error
        except BROKER_ERRORS as error:
            raise BusUnavailable(f"not confirmed: {error or type(error).__name__}") from error

    @asynccontextmanager
    async def channel(self, prefetch: int) -> AsyncIterator[AbstractChannel]:
        """A channel for one consumer, waiting for the broker. `prefetch` messages may be unacknowledged."""
        connection = await self._consuming.connection()
        channel = await connection.channel()
        try:
            await channel.set_qos(prefetch_count=prefetch)
            heed_cancellation()
            yield channel
        finally:
            if not channel.is_closed:
                await _close(channel)

    async def deliveries(
        self, channel: AbstractChannel, queue: str, arguments: dict[str, Any] | None = None
    ) -> Deliveries:
        """Consume `queue`: what arrives, and None when no more will come. Raises TimeoutError if the broker
        does not let it begin."""
        arrived: Deliveries = asyncio.Queue()

        def ended(*_: object) -> None:
            arrived.put_nowait(None)

        channel.close_callbacks.add(ended)
        # A deleted queue cancels its consumer and leaves the channel open.
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(ended)
        found = await channel.get_queue(queue, ensure=False)
        # Broken off, the library would stop to read this channel while messages are on their way to it, and
        # with it the whole connection. So it is waited for, and if in vain, the connection is given up.
        beginning = asyncio.ensure_future(found.consume(arrived.put, arguments=arguments))
        try:
            async with asyncio.timeout(CONSUME_TIMEOUT_SECONDS):
                await asyncio.shield(beginning)
        except (TimeoutError, asyncio.CancelledError):
            await asyncio.wait((beginning,), timeout=CLOSE_TIMEOUT_SECONDS)
            if not beginning.done():
                self._consuming.loses()()
                beginning.cancel()
            raise
        heed_cancellation()
        return arrived

    async def has_queue(self, queue: str) -> bool:
        """Whether `queue` exists."""
        connection = await self._consuming.connection()
        return await _exists(connection, lambda channel: channel.declare_queue(queue, passive=True))

    async def waiting(self, queue: str) -> int:
        """How many messages of `queue` wait to be delivered. Raises ChannelNotFoundEntity."""
        async with self.channel(1) as channel:
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0

    async def declare_subscriber(
        self, channel: AbstractChannel, queue: str, bindings: Sequence[str], *, max_length: int | None = None
    ) -> None:
        """A quorum queue with its dead letters, bound to the routing keys `bindings`.

        With a `max_length` (a subscriber's) the oldest messages fall out of a full queue, and no publisher is
        held up. What falls out is no dead letter, so such a queue has no exchange for them: its consumer
        lays them aside itself.
        """
        dead = dead_letter_queue(queue)
        await self.declare_dead_letters(queue)
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if max_length is None:
            arguments |= {
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": dead_exchange(queue),
                "x-dead-letter-routing-key": dead,
                # At least once, which the broker silently gives up without reject-publish.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        else:
            arguments |= {"x-max-length": max_length, "x-overflow": "drop-head"}
        try:
            async with self.channel(0) as own:  # a refusal closes its channel
                await own.declare_queue(queue, durable=True, arguments=arguments)
        except ChannelPreconditionFailed as error:
            log.warning("queue %s is used as an earlier version declared it: %s", queue, error)
        await self.bind(channel, queue, bindings)

    async def declare_dead_letters(self, queue: str) -> None:
        """The queue for the dead letters of `queue`, with the way there. Nobody hears of it if that is lost:
        a quorum queue keeps what it cannot pass on."""
        async with self.channel(1) as channel:
            dead = dead_letter_queue(queue)
            exchange = await channel.declare_exchange(
                dead_exchange(queue), aio_pika.ExchangeType.DIRECT, durable=True
            )
            declared = await channel.declare_queue(dead, durable=True, arguments={"x-queue-type": "quorum"})
            await declared.bind(exchange, routing_key=dead)

    async def bind(self, channel: AbstractChannel, queue: str, bindings: Sequence[str]) -> None:
        """Bind a queue that exists to the routing keys `bindings`."""
        declared = await channel.get_queue(queue, ensure=False)
        for key in bindings:
            await declared.bind(EXCHANGE, routing_key=key)

    async def read_log(self, until: str) -> AsyncGenerator[bytes, None]:
        """Every event in the log, each as the bytes of its envelope, oldest first, up to the message `until`
        (an id put there by `mark_log`). What cannot be read comes as it is."""
        async for message in self.read_log_messages(until):
            if message.headers.get(MARK) is None and is_own(message):
                for body in bodies_in(message.body):
                    yield body

    async def read_log_messages(
        self, until: str, since: datetime | None = None
    ) -> AsyncGenerator[AbstractIncomingMessage, None]:
        """Events and marks in the log up to the message `until`, from `since` on by the broker's clock, to
        the second. Raises BusUnavailable, also if the mark does not come."""
        async with self.channel(LOG_PREFETCH) as channel:
            arrived = await self.deliveries(channel, LOG_QUEUE, {OFFSET: since or "first"})
            while (message := await _next_of_the_log(arrived)) is not None:
                if message.message_id == until:
                    return
                yield message
                await message.ack()
            raise BusUnavailable("the log was cut off")

    async def log_begin(self, until: str) -> datetime | None:
        """From when on the log can be read, by the first event in it that has a time; None while it has every
        message that ever came. `until` as `read_log_messages`."""
        async with aclosing(self.read_log_messages(until)) as messages:
            async for message in messages:
                if message.headers.get(OFFSET) == 0:
                    return None
                if (found := _time_in(message)) is not None:
                    return found
        return datetime.now(UTC)

    async def mark_log(self, mark_id: str) -> None:
        """Put a mark at the end of the log: whoever has read up to it has read all that came before."""
        with suppress(Refused):  # by a queue of somebody else's: the log has it, or its reader finds out
            await self._send(self._exchange, b"", self._mark_key, mark_id, {MARK: "end"})

    async def reaches_log(self, publish: Callable[[], Awaitable[None]], mark_id: str) -> bool:
        """Whether what `publish` publishes under the id `mark_id` comes out of the log. That it is confirmed
        would prove nothing: any queue that is bound to everything has taken it.

        Raises BusUnavailable if the broker is away or blocks.
        """
        try:
            async with self.channel(LOG_PREFETCH) as channel:
                arrived = await self.deliveries(channel, LOG_QUEUE, {OFFSET: "next"})
                with suppress(Refused):
                    await publish()
                async with asyncio.timeout(LOG_MARK_SECONDS):
                    while (message := await arrived.get()) is not None:
                        await message.ack()
                        if message.message_id == mark_id:
                            return True
        except (ChannelNotFoundEntity, TimeoutError):
            pass
        if not self.can_publish or not self._consuming.up:
            raise BusUnavailable("the broker is away")
        return False

    async def bind_log(self) -> None:
        """Declare exchange, log, and the binding between them again."""
        async with self.channel(1) as channel:
            await _declare_topology(channel)

    async def _open_publisher(self, connection: AbstractConnection) -> None:
        await self._declare_what_is_missing(connection)
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        self._default = channel.default_exchange
        self._channel = channel
        # A publisher whose channel is closed by the broker starts again with a new connection.
        channel.close_callbacks.add(self._publishing.loses())

    async def _open_consumer(self, connection: AbstractConnection) -> None:
        await self._declare_what_is_missing(connection)

    async def _declare_what_is_missing(self, connection: AbstractConnection) -> None:
        """A binding that was lost is not made again unseen: whoever looks after it would not learn that the
        log lacks events."""
        async with self._declaring:  # what one connection has just made, the other did not miss
            has_exchange = await _exists(connection, lambda channel: channel.get_exchange(EXCHANGE))
            has_log = await _exists(
                connection, lambda channel: channel.declare_queue(LOG_QUEUE, passive=True)
            )
            if not (has_exchange and has_log):
                self.made_exchange = self.made_exchange or not has_exchange
                async with await connection.channel() as channel:
                    await _declare_topology(channel)


async def _declare_topology(channel: AbstractChannel) -> None:
    exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
    # The log from which subscribers join. How long it goes back is for a policy of the broker to say
    # (local_mesh/broker_users.py): as an argument it could not be changed, and versions that declare it
    # differently would shut each other out.
    stream = await channel.declare_queue(LOG_QUEUE, durable=True, arguments={"x-queue-type": "stream"})
    await stream.bind(exchange, routing_key="#")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, BROKER_ERRORS) and not isinstance(error, ChannelAccessRefused)


def _time_in(message: AbstractIncomingMessage) -> datetime | None:
    """When its first event occurred; None for one that has no time, or that cannot be read."""
    try:
        event = events_in(message.body)[0]
        return event.occur_time.ToDatetime(UTC) if event.HasField("occur_time") else None
    except (DecodeError, ValueError):
        return None


async def _next_of_the_log(arrived: Deliveries) -> AbstractIncomingMessage | None:
    try:
        async with asyncio.timeout(LOG_MARK_SECONDS):
            return await arrived.get()
    except TimeoutError:
        raise BusUnavailable("the log ends without the mark that was put there") from None


async def _exists(
    connection: AbstractConnection, ask: Callable[[AbstractChannel], Awaitable[object]]
) -> bool:
    """Whether the broker has what `ask` asks for. A failed question closes its channel, so it has its own."""
    channel = await connection.channel()
    try:
        await ask(channel)
    except ChannelNotFoundEntity:
        return False
    finally:
        if not channel.is_closed:
            await _close(channel)
    return True


async def _is_blocked(connection: AbstractConnection) -> bool:
    transport = connection.transport
    if transport is None or connection.is_closed:
        return False
    try:
        async with asyncio.timeout(0):
            await transport.ready()
    except TimeoutError:
        return True
    return False


async def _close(what: AbstractConnection | AbstractChannel) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await what.close()


__all__ = [
    "BROKER_ERRORS",
    "Bus",
    "BusUnavailable",
    "ChannelClosed",
    "Refused",
    "dead_exchange",
    "dead_letter_queue",
    "is_own",
    "nodes",
]
