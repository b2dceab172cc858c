"""Consuming the events of a subscription: a batch of messages, one transaction, one acknowledgement.

What cannot be read, or fails again and again, becomes a dead letter, alone; the rest goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import uuid_utils
from aio_pika.abc import AbstractIncomingMessage

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash, dead_letters, telemetry
from dinemesh.kit.batches import DecodeError, events_in
from dinemesh.kit.bus import (
    BROKER_ERRORS,
    DELIVERY_LIMIT,
    LOG_QUEUE,
    MARK,
    Bus,
    BusUnavailable,
    Deliveries,
    is_own,
)
from dinemesh.kit.canaries import LOOK_SECONDS, Bindings, canary_of, matches
from dinemesh.kit.inbox import Inbox, InboxTables, Received, Subscription, Undecodable, call_of
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable
from dinemesh.kit.workers import cancel, heed_cancellation

log = logging.getLogger(__name__)

T = TypeVar("T")

# One commit and one acknowledgement for up to this many (measured: 4 times the throughput of singles).
PREFETCH = 200
# Events of one transaction. More would keep a booking waiting behind them.
EVENTS_AT_ONCE = 200
# Under load a moment of patience makes fuller batches, which cost less each (measured: up to 25 %).
LINGER_SECONDS = 0.01
LINGER_FROM = 3
# A database that is away is asked again this often; meanwhile nothing is taken and nothing given back.
PAUSE_SECONDS = 0.5
# A failing message goes round at most once in this time, so that it cannot occupy the service.
REQUEUE_PAUSE_SECONDS = 0.2
RECONNECT_PAUSE_SECONDS = 0.2
# No log is kept for less: what is as young is in it.
LOG_AT_LEAST = timedelta(days=1)
# A subscriber's queue that is this full has lost messages by the time that its length is known.
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class _Part:
    """An event in a message. What cannot be read has no `event`, but a reason why."""

    id: str
    correlation_id: str
    body: Callable[[], bytes]
    event: Received[Any] | None = None
    why: str = ""


class Consumer:
    """Keeps a subscription: declares its queue, reads the log first if the queue is new, then consumes."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        tables: InboxTables,
        subscription: Subscription,
        *,
        prefetch: int = PREFETCH,
    ) -> None:
        self._bus = bus
        self._inbox = Inbox(store, tables, subscription)
        self._prefetch = prefetch
        self.subscription = subscription
        self.caught_up = asyncio.Event()
        self._in_hand = 0
        self._arrived: Deliveries = asyncio.Queue()
        self._bindings = Bindings(
            store,
            bus,
            tables.canaries,
            subscription.queue,
            subscription.bindings,
            self._read_log,
            lambda: self._in_hand > 0 or not self._arrived.empty(),
        )

    async def run(self) -> None:
        """Until cancelled. A lost connection, a deleted queue or a database that is away end nothing."""
        while True:
            try:
                await self._consume()
            except (*BROKER_ERRORS, BusUnavailable, StoreUnavailable, CommitInDoubt) as error:
                log.warning(
                    "subscription %s starts again: %s", self.subscription.queue, error or type(error).__name__
                )
            except Exception:
                telemetry.WORKER_FAILURES.labels(self.subscription.queue).inc()
                log.exception("subscription %s failed and starts again", self.subscription.queue)
            heed_cancellation()
            await asyncio.sleep(RECONNECT_PAUSE_SECONDS)

    async def _consume(self) -> None:
        queue = self.subscription.queue
        is_there = await self._bus.has_queue(queue)
        if not is_there and await self._inbox.caught_up():
            # Recorded before the queue is made: a crash in between must not hide that the log is unread.
            await self._inbox.set_caught_up(False)
        async with self._bus.channel(self._prefetch) as channel:
            is_new = not is_there or not await self._inbox.caught_up()
            bindings = self.subscription.bindings
            hidden_since = None if is_new else await self._bindings.note_hidden()
            await self._bus.declare_subscriber(
                channel, queue, bindings, max_length=self.subscription.max_length
            )
            await self._bindings.begin(bindings if is_new else await self._bindings.unknown())
            if is_new:
                await self._read_log(None)
                if __debug__:
                    crash.point("inbox.log.read")
                await self._inbox.set_caught_up(True)
                if __debug__:
                    crash.point("inbox.log.recorded")
            await self._mind_the_place()
            self.caught_up.set()
            self._arrived = await self._bus.deliveries(channel, queue)
            looking = asyncio.create_task(self._keep_looking(hidden_since), name=f"bindings of {queue}")
            try:
                await self._take_all(self._arrived)
            finally:
                await cancel(looking)

    async def _take_all(self, arrived: Deliveries) -> None:
        last = 0
        while True:
            if last >= LINGER_FROM:
                await asyncio.sleep(LINGER_SECONDS)
            batch = await _next_batch(arrived, self._prefetch)
            if batch is None:
                raise BusUnavailable("the queue or its channel is gone")
            last = self._in_hand = len(batch)
            await self._take(batch)
            self._in_hand = 0

    async def _keep_looking(self, hidden_since: datetime | None) -> None:
        """Whether the bindings are there and, of a subscriber, whether its queue overflows."""
        while True:
            heed_cancellation()
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if hidden_since is not None:
                    await self._read_log(hidden_since)
                    await self._bindings.hidden_is_read()
                    hidden_since = None
                await self._bus.declare_dead_letters(self.subscription.queue)
                await self._mind_the_place()
                await self._bindings.look()
            except (*BROKER_ERRORS, BusUnavailable, StoreUnavailable, CommitInDoubt) as error:
                # If it lasts, those who consume and publish say so.
                log.debug("the bindings of %s were not looked at: %r", self.subscription.queue, error)
            except Exception:
                telemetry.WORKER_FAILURES.labels(f"bindings of {self.subscription.queue}").inc()
                log.exception("the bindings of %s were not looked at", self.subscription.queue)

    async def _mind_the_place(self) -> None:
        """A subscriber whose queue is as good as full has lost messages, or is about to: it reads the log."""
        limit, queue = self.subscription.max_length, self.subscription.queue
        if limit is None or await self._bus.waiting(queue) < limit * NEARLY_FULL:
            return
        telemetry.PLACES_LOST.labels(queue).inc()
        log.error("the queue %s was full (%d messages) and lost some; it reads the log", queue, limit)
        await self._read_log(await self._bindings.begin_of_gap())

    async def _read_log(self, since: datetime | None) -> int:
        """Take the events of the log, all or `since` then; how many were new."""
        queue = self.subscription.queue
        mark = str(uuid_utils.uuid7())
        await self._bus.mark_log(mark)
        log.info("subscription %s reads the log", queue)
        await self._tell_what_is_gone(mark, since)
        batch: list[_Part] = []
        count = fresh = 0
        async for message in self._bus.read_log_messages(mark, since):
            if MARK in message.headers or not is_own(message):
                continue
            # A log that is read again holds more than the subscription wants; one that is read first too, and
            # there it always took what it has a handler for.
            if since is not None and not self._wants(message.routing_key or ""):
                continue
            for part in self._parts(message):
                count += 1
                if part.event is None:
                    log.warning(
                        "the log holds bytes that are no event; they are a dead letter of those who saw them"
                        " live"
                    )
                elif self._inbox.handler(part.event) is not None:
                    batch.append(part)
            if len(batch) >= EVENTS_AT_ONCE:
                fresh += await self._take_logged(batch)
                batch.clear()
        fresh += await self._take_logged(batch)
        log.info("subscription %s has read %d events of the log, %d new", queue, count, fresh)
        return fresh

    async def _tell_what_is_gone(self, mark: str, since: datetime | None) -> None:
        """What the log no longer has cannot be read: whoever joins then is told."""
        if since is not None and datetime.now(UTC) - since < LOG_AT_LEAST:
            return
        begin = await self._bus.log_begin(mark)
        if begin is None or (since is not None and begin <= since):
            return
        telemetry.LOG_BEGIN.labels(self.subscription.queue).set(begin.timestamp())
        log.warning(
            "the log %s begins at %s: events from before are gone, and subscription %s cannot read those that"
            " it has not taken",
            LOG_QUEUE,
            begin.isoformat(timespec="seconds"),
            self.subscription.queue,
        )

    def _wants(self, key: str) -> bool:
        return any(matches(binding, key) for binding in self.subscription.bindings)

    async def _take_logged(self, parts: Sequence[_Part]) -> int:
        """How many were new. The log cannot be given back to: what fails there becomes a dead letter and
        blocks nothing."""
        try:
            events = [part.event for part in parts if part.event is not None]
            return sum(await self._inbox.take_all(events)) if events else 0
        except (StoreUnavailable, CommitInDoubt):
            raise
        except Exception:
            log.info("one of %d events of the log fails: each is taken by itself", len(parts))
            return sum(await asyncio.gather(*map(self._take_one_logged, parts)))

    async def _take_one_logged(self, part: _Part) -> bool:
        assert part.event is not None
        try:
            return await self._inbox.take(part.event)
        except (StoreUnavailable, CommitInDoubt):
            raise
        except Exception:
            self._count(_FAILED)
            with call.working_on(call_of(part.event)):
                log.exception("an event of the log failed and becomes a dead letter")
            await self._put_aside(part, _FAILED)
        return False

    async def _put_aside(self, part: _Part, outcome: str) -> None:
        reason = "rejected" if outcome == _UNREADABLE else "delivery_limit"
        queue = self.subscription.queue
        await self._bus.publish_dead(part.body(), queue, event_id=part.id, reason=reason)

    async def _take(self, batch: Sequence[AbstractIncomingMessage]) -> None:
        """Commit the effects of a batch, then acknowledge it, at once where all went well."""
        marks = [message for message in batch if MARK in message.headers]
        letters = {message: self._parts(message) for message in batch if MARK not in message.headers}
        parts = [part for of_one in letters.values() for part in of_one]
        await asyncio.gather(*map(self._take_mark, marks))
        taken = await self._take_parts(parts)
        if _DONE.issuperset(taken):
            if __debug__:
                crash.point("inbox.ack.before")
            await batch[-1].ack(multiple=True)
            if __debug__:
                crash.point("inbox.ack.after")
            return
        for message in marks:
            await message.ack()
        outcomes = iter(taken)
        pause = False
        for message, of_one in letters.items():
            missed = [(part, outcome) for part in of_one if (outcome := next(outcomes)) not in _DONE]
            if not missed or await self._lay_aside(message, of_one, missed):
                await message.ack()
            elif len(of_one) == 1 and missed[0][1] == _UNREADABLE:
                await message.reject(requeue=False)
            else:
                await message.nack(requeue=True)
                pause = True
        if pause:
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)

    def _parts(self, message: AbstractIncomingMessage) -> list[_Part]:
        """The events of a message, at least one."""
        try:
            envelopes = events_in(message.body)
        except DecodeError as error:
            return [_Part(message.message_id or "unreadable", "", lambda: message.body, why=str(error))]
        if not is_own(message):
            why = f"{message.routing_key} of {message.exchange} may not say it"
            return [self._part(message, envelope, why) for envelope in envelopes]
        return [self._part(message, envelope) for envelope in envelopes]

    def _part(
        self, message: AbstractIncomingMessage, envelope: envelope_pb2.Envelope, why: str = ""
    ) -> _Part:
        event: Received[Any] | None = None
        try:
            event = None if why else self._inbox.received(envelope)
        except Undecodable as error:
            why = str(error)
        event_id = envelope.event_id or message.message_id or "unreadable"
        return _Part(event_id, envelope.correlation_id, envelope.SerializeToString, event, why)

    async def _lay_aside(
        self, message: AbstractIncomingMessage, parts: Sequence[_Part], missed: Sequence[tuple[_Part, str]]
    ) -> bool:
        """Put what cannot be taken among the dead letters; False if that is not ours to do, or not yet.

        With a message of one event the broker does it, for the mesh's own. Of several, those that were taken
        must not go with the others; and from a subscriber's queue messages also fall out, which are no dead
        letters.
        """
        is_outside, is_single = self.subscription.max_length is not None, len(parts) == 1
        if is_single and not is_outside:
            return False
        # The broker itself puts away what was delivered more often than the limit.
        limit = DELIVERY_LIMIT if is_outside else DELIVERY_LIMIT - 1
        deliveries_before = int(str(message.headers.get("x-delivery-count", 0)))
        if deliveries_before < limit and any(outcome == _FAILED for _, outcome in missed):
            return False
        for part, outcome in missed:
            await self._put_aside(part, outcome)
        return True

    async def _take_parts(self, parts: Sequence[_Part]) -> list[str]:
        """What became of each."""
        for part in parts:
            if part.event is None:
                with call.working_on(call.Call(part.correlation_id)):
                    # Its id last: it may be of any length, and a long line is cut.
                    log.error("an event cannot be read and becomes a dead letter: %s: %s", part.why, part.id)
        events = [part.event for part in parts if part.event is not None]
        taken: list[str] = []
        for first in range(0, len(events), EVENTS_AT_ONCE):
            taken += await self._take_events(events[first : first + EVENTS_AT_ONCE])
        outcomes = iter(taken)
        return [next(outcomes) if part.event is not None else self._count(_UNREADABLE) for part in parts]

    async def _take_events(self, events: Sequence[Received[Any]]) -> list[str]:
        """In one transaction; if that fails, each in one of its own."""
        if len(events) > 1:
            try:
                taken = await _patiently(lambda: self._inbox.take_all(events))
            except Exception:
                log.info("one of %d events fails: each is taken by itself", len(events))
            else:
                return [self._count(_TAKEN if first else _TAKEN_BEFORE) for first in taken]
        return await asyncio.gather(*map(self._take_event, events))

    async def _take_event(self, event: Received[Any]) -> str:
        try:
            first = await _patiently(lambda: self._inbox.take(event))
        except Undecodable as error:
            with call.working_on(call_of(event)):
                log.error("event %s becomes a dead letter: %s", event.event_id, error)
            return self._count(_UNREADABLE)
        except Exception:
            with call.working_on(call_of(event)):
                log.exception("event %s (%s) failed and goes round", event.event_id, event.type)
            return self._count(_FAILED)
        return self._count(_TAKEN if first else _TAKEN_BEFORE)

    async def _take_mark(self, message: AbstractIncomingMessage) -> None:
        """No event: it has told by coming whatever it has to tell."""
        canary = canary_of(message)
        if canary is not None:
            await _patiently(lambda: self._bindings.see(canary))

    def _count(self, outcome: str) -> str:
        telemetry.INBOX_EVENTS.labels(self.subscription.queue, outcome).inc()
        return outcome

    async def measure(self) -> None:
        """Count the dead letters for the metrics."""
        if self._bus.can_publish:
            with suppress(*BROKER_ERRORS):
                queue = self.subscription.queue
                telemetry.DEAD_LETTERS.labels(queue).set(await dead_letters.count_dead(self._bus, queue))


_TAKEN, _TAKEN_BEFORE, _UNREADABLE, _FAILED = "taken", "taken before", "unreadable", "failed"
_DONE = frozenset({_TAKEN, _TAKEN_BEFORE})


async def _patiently(take: Callable[[], Awaitable[T]]) -> T:
    """Stops consuming and keeps the messages while the database is away: giving them back would use up their
    deliveries."""
    while True:
        try:
            return await take()
        except (StoreUnavailable, CommitInDoubt):
            await asyncio.sleep(PAUSE_SECONDS)


async def _next_batch(arrived: Deliveries, limit: int) -> list[AbstractIncomingMessage] | None:
    """What has arrived, at least one; None when no more will come."""
    batch: list[AbstractIncomingMessage] = []
    message = await arrived.get()
    while message is not None:
        batch.append(message)
        if len(batch) == limit or arrived.empty():
            return batch
        message = arrived.get_nowait()
    return None


__all__ = ["Consumer"]
