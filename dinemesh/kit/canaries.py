"""Whether the broker still has what was declared: its bindings cannot be asked for, so canaries are sent.

A publisher sends marked messages on its own routing keys at an interval. They carry nothing and take the way
of its events, so whoever is bound gets them. A subscriber keeps in its database up to when it has seen them
without a gap. After a gap it looks into the log: where the log holds canaries that did not come, the binding
was gone, with whatever was published meanwhile. It is declared again, and the log read from before the gap.
A start of a subscriber declares its bindings too, and reads what a gap too short to be seen would hide.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import uuid_utils
from aio_pika.abc import AbstractIncomingMessage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from sqlalchemy import BigInteger, Column, ColumnElement, MetaData, Table, Text, delete, select, update

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import telemetry
from dinemesh.kit.bus import LOG_QUEUE, MARK, Bus, Refused
from dinemesh.kit.outbox import Outbox, mark_unsent
from dinemesh.kit.store import Instant, Store, Transaction

log = logging.getLogger(__name__)

# How often a subscriber looks for a gap.
LOOK_SECONDS = 3.0
# A canary may come this much later than it was announced for, and as much again for each 2 s of interval.
LATE_SECONDS = 1.0
# Publishers' clocks and the broker's may differ this much: the log is read from so long before a gap.
MARGIN_SECONDS = 15.0
_MARGIN = timedelta(seconds=MARGIN_SECONDS)
# What was in the log at the end of a look is on its way in the queue, too; then it has come.
ON_THE_WAY_SECONDS = 1.0
# By then a loss is found and mended; operators are told so.
HEALED_SECONDS = 30
# Before it has heard how often one comes, a subscriber takes this for the interval. A look that finds nothing
# costs little, and a binding may be lost before the first canary.
FIRST_SECONDS = 10.0

WORD = "canary"
"""The last word of a publisher's own key for canaries, `<service>.v1.canary`."""
TYPE = "dinemesh.event.v1.Canary"
"""In an envelope, for subscribers that do not look at marks: an event of a type that they do not know."""


def canaries_table(metadata: MetaData) -> Table:
    """The table `canaries`: a row for each binding of a subscriber, and one for the log's."""
    return Table(
        "canaries",
        metadata,
        Column("subscriber", Text, primary_key=True),
        Column("binding", Text, primary_key=True),
        # By the machines' clocks, as all times here: up to here canaries came without a gap; after one, from
        # then to then. A database's clock may jump, and a publisher's canary knows nothing of it.
        Column("through_time", Instant, nullable=False),
        Column("resume_time", Instant),
        Column("latest_time", Instant),
        Column("receive_time", Instant, nullable=False),
        # Up to here the log holds no canary of the gap that did not come.
        Column("look_time", Instant),
        Column("interval_ms", BigInteger, nullable=False),
        # A start declared the binding, and the log is not yet read from here on.
        Column("unread_time", Instant),
    )


def _now() -> datetime:
    return datetime.now(UTC)


def routing_keys(contract: FileDescriptor) -> list[str]:
    """The routing keys of all events of a contract."""
    keys = (
        message.GetOptions().Extensions[envelope_pb2.routing_key]
        for message in contract.message_types_by_name.values()
    )
    return sorted({key for key in keys if key})


def matches(binding: str, key: str) -> bool:
    """Whether a topic exchange routes `key` to what is bound by `binding`."""
    return _matches(binding.split("."), key.split("."))


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


@dataclass(frozen=True)
class Canary:
    """One that arrived or stands in the log. `interval` is the time to the next one with its key."""

    key: str
    time: datetime
    interval: timedelta

    def proves(self, binding: str) -> bool:
        """Whether `binding` takes it, and lives by canaries of its kind: a pattern that takes a publisher's
        own key sees that one often; others see the keys of single events, each in its turn."""
        own = f"{self.key.partition('.')[0]}.v1.{WORD}"
        return matches(binding, self.key) and (self.key == own or not matches(binding, own))


def canary_of(message: AbstractIncomingMessage) -> Canary | None:
    """The canary in a message, or None."""
    if message.headers.get(MARK) != WORD:
        return None
    try:
        time = envelope_pb2.Envelope.FromString(message.body).occur_time.ToDatetime(UTC)
        interval = timedelta(seconds=float(str(message.headers.get("x-again"))))
    except (DecodeError, ValueError, OverflowError):
        return None
    return Canary(message.routing_key or "", time, interval)


class Canaries:
    """A publisher's part: sends canaries, and sees by them that the log is bound.

    `turn` belongs into a Periodic worker of `seconds`.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        outbox: Outbox,
        table: Table,
        keys: Sequence[str],
        *,
        seconds: float,
    ) -> None:
        self._store = store
        self._bus = bus
        self._outbox = outbox
        self._table = table
        self._keys = keys
        self.seconds = seconds
        self._next = 0

    async def turn(self) -> None:
        """Raises BusUnavailable if the broker goes away meanwhile."""
        if not self._bus.can_publish:
            return
        began = await self._store.read(lambda tx: tx.now)
        was_made, self._bus.made_exchange = self._bus.made_exchange, False
        if was_made and await self._was_bound():
            telemetry.TOPOLOGY_LOSSES.labels("exchange").inc()
            log.error(
                "the exchange was gone and is declared again; subscribers find out within %g s that they are"
                " not bound, and read the log. Nothing is left to do",
                HEALED_SECONDS,
            )
        own = f"{self._outbox.source}.v1.{WORD}"
        canary_id, body = self._canary(own)
        if not await self._bus.reaches_log(lambda: self._send(canary_id, body, own, self.seconds), canary_id):
            await self._bus.bind_log()
            again = await self._store.write(self._send_again)
            if again is not None:
                telemetry.TOPOLOGY_LOSSES.labels(LOG_QUEUE).inc()
                log.error(
                    "the log %s was not bound and is bound again; %d events are published again for it."
                    " Nothing is left to do",
                    LOG_QUEUE,
                    again,
                )
        await self._store.write(lambda tx: begin(tx, self._table, LOG_QUEUE, ["#"], since=began))
        if self._keys:
            key = self._keys[self._next % len(self._keys)]
            self._next += 1
            canary_id, body = self._canary(key)
            with suppress(Refused):
                await self._send(canary_id, body, key, self.seconds * len(self._keys))

    async def _was_bound(self) -> bool:
        return await self._store.read(lambda tx: _through_of_log(tx, self._table)) is not None

    async def _send(self, canary_id: str, body: bytes, key: str, again: float) -> None:
        await self._bus.publish_canary(body, key, canary_id=canary_id, again=again)

    def _canary(self, key: str) -> tuple[str, bytes]:
        canary_id = str(uuid_utils.uuid7())
        envelope = envelope_pb2.Envelope(
            event_id=canary_id, type=TYPE, source=self._outbox.source, aggregate_id=key
        )
        envelope.occur_time.GetCurrentTime()
        return canary_id, envelope.SerializeToString()

    def _send_again(self, tx: Transaction) -> int | None:
        """How many events are published again; None if no log was ever seen to be bound."""
        through = _through_of_log(tx, self._table)
        if through is None:
            return None
        return mark_unsent(tx, self._outbox.table, since=through - _MARGIN)


def _through_of_log(tx: Transaction, table: Table) -> datetime | None:
    query = select(table.c.through_time).where(table.c.subscriber == LOG_QUEUE)
    found: datetime | None = tx.execute(query).scalar_one_or_none()
    return found


def begin(
    tx: Transaction, table: Table, subscriber: str, bindings: Sequence[str], *, since: datetime | None = None
) -> None:
    """Note that `bindings` are in place, and that nothing from before is missing."""
    now = _now()
    through = since or now
    for binding in bindings:
        row = {
            "through_time": through,
            "resume_time": None,
            "latest_time": None,
            "receive_time": now,
            "look_time": None,
            "interval_ms": int(FIRST_SECONDS * 1000),
            "unread_time": None,
        }
        insert = tx.insert(table).values(subscriber=subscriber, binding=binding, **row)
        tx.execute(
            insert.on_conflict_do_update(index_elements=[table.c.subscriber, table.c.binding], set_=row)
        )


def forget(tx: Transaction, table: Table, subscriber: str) -> None:
    """Forget what was seen of the bindings of a subscriber: they are declared anew."""
    tx.execute(delete(table).where(table.c.subscriber == subscriber))


@dataclass(frozen=True)
class _Seen:
    """A row of the table."""

    through_time: datetime
    resume_time: datetime | None
    latest_time: datetime | None
    receive_time: datetime
    look_time: datetime | None
    interval_ms: int
    unread_time: datetime | None

    @property
    def allowed(self) -> timedelta:
        """Between two canaries."""
        return timedelta(milliseconds=self.interval_ms) * 1.5 + timedelta(seconds=LATE_SECONDS)

    @property
    def bounds(self) -> tuple[datetime, datetime | None]:
        """Of the gap; without an end while nothing has come after it."""
        return self.through_time, self.resume_time

    def has_gap(self, now: datetime) -> bool:
        return self.resume_time is not None or abs(now - self.receive_time) > self.allowed


class Bindings:
    """A subscriber's part: whether its bindings are there.

    `read_again` takes the log from a moment on and says how many of its events were new. `is_busy` says
    whether something that was delivered is not yet taken.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        table: Table,
        queue: str,
        bindings: Sequence[str],
        read_again: Callable[[datetime], Awaitable[int]],
        is_busy: Callable[[], bool],
    ) -> None:
        self._store = store
        self._bus = bus
        self._table = table
        self._queue = queue
        self._bindings = bindings
        self._read_again = read_again
        self._is_busy = is_busy

    async def unknown(self) -> list[str]:
        """Those that were never declared."""
        table = self._table
        query = select(table.c.binding).where(table.c.subscriber == self._queue)
        known = await self._store.read(lambda tx: set(tx.execute(query).scalars()))
        return [binding for binding in self._bindings if binding not in known]

    async def begin(self, bindings: Sequence[str]) -> None:
        """Note that `bindings` were declared, and that nothing from before is missing."""
        if bindings:
            await self._store.write(lambda tx: begin(tx, self._table, self._queue, bindings))

    async def see(self, canary: Canary) -> None:
        """One has arrived."""
        proven = [binding for binding in self._bindings if canary.proves(binding)]
        if proven:
            await self._store.write(lambda tx: self._record(tx, canary, proven))

    def _record(self, tx: Transaction, canary: Canary, proven: Sequence[str]) -> None:
        for binding in proven:
            seen = self._read(tx, binding)
            if seen is None:
                begin(tx, self._table, self._queue, [binding], since=canary.time)
                continue
            values: dict[str, object] = {
                "receive_time": _now(),
                "interval_ms": canary.interval // timedelta(milliseconds=1),
            }
            if canary.time > seen.through_time:
                before = seen.latest_time or seen.through_time
                if canary.time - before > seen.allowed:
                    values |= {"resume_time": canary.time, "latest_time": canary.time}
                elif seen.resume_time is None:
                    values |= {"through_time": canary.time, "look_time": None}
                elif canary.time > before:
                    values |= {"latest_time": canary.time}
            tx.execute(update(self._table).where(*self._is(binding)).values(values))

    async def look(self) -> None:
        """Find what was lost, and mend it. Raises what the broker and the database raise."""
        for binding in self._bindings:
            now = _now()
            seen = await self._store.read(partial(self._read, binding=binding))
            if seen is None or not self._bus.can_publish:
                continue
            if seen.through_time > now + _MARGIN:
                await self._start_over(binding, now - seen.allowed)
            elif seen.has_gap(now):
                await self._look(binding, seen, now)

    async def _start_over(self, binding: str, since: datetime) -> None:
        """What was noted is of a clock that was ahead: no canary of now is later than that."""
        await self._bind(binding)
        await self._read_again(since - _MARGIN)
        await self._store.write(lambda tx: begin(tx, self._table, self._queue, [binding]))

    async def _bind(self, binding: str) -> None:
        async with self._bus.channel(1) as channel:
            await self._bus.bind(channel, self._queue, [binding])

    async def _look(self, binding: str, seen: _Seen, now: datetime) -> None:
        if await self._bus.waiting(self._queue) or self._is_busy():
            return  # the canaries may stand among what waits
        is_missing = await self._is_missing(binding, seen)
        if is_missing:
            await asyncio.sleep(ON_THE_WAY_SECONDS)
        still = await self._store.read(partial(self._read, binding=binding))
        if still is None or still.bounds != seen.bounds or self._is_busy():
            return  # they come; what is missing then is seen at the next look
        if is_missing:
            await self._bind(binding)
            now = _now()
            telemetry.TOPOLOGY_LOSSES.labels(self._queue).inc()
            fresh = await self._read_again(seen.through_time - _MARGIN)
            log.error(
                "the binding %s of %s was gone since %s and is declared again; %d events were taken from the"
                " log. Nothing is left to do",
                binding,
                self._queue,
                f"{seen.through_time:%Y-%m-%d %H:%M:%S} UTC",
                fresh,
            )
        await self._store.write(lambda tx: self._go_on(tx, binding, now, is_mended=is_missing))

    def _go_on(self, tx: Transaction, binding: str, now: datetime, *, is_mended: bool) -> None:
        """Up to `now`, when the look began or the binding was declared, nothing is missing any more."""
        seen = self._read(tx, binding)
        if seen is None:
            return
        if seen.latest_time is not None or is_mended:
            through = max(seen.through_time, seen.latest_time or now)
            values = {"through_time": through, "resume_time": None, "latest_time": None, "look_time": None}
        else:
            values = {"look_time": now}
        tx.execute(update(self._table).where(*self._is(binding)).values(values | {"receive_time": _now()}))

    async def _is_missing(self, binding: str, seen: _Seen) -> bool:
        """Whether the log holds canaries of the gap."""
        mark = str(uuid_utils.uuid7())
        await self._bus.mark_log(mark)
        end = seen.resume_time
        found = False
        since = (seen.look_time or seen.through_time) - _MARGIN
        async for message in self._bus.read_log_messages(mark, since):
            canary = canary_of(message)
            if canary is not None and canary.proves(binding) and canary.time > seen.through_time:
                found = found or end is None or canary.time < end
        return found

    async def note_hidden(self) -> datetime | None:
        """Before bindings are declared that may have been gone: from when on the log has to be read. If the
        next canary came in time, nobody would see that there was a gap. It stands in the database until
        `hidden_is_read`, since whoever declares may be gone before the log is read."""

        def note(tx: Transaction) -> datetime | None:
            now = _now()
            hidden: list[datetime] = []
            for binding in self._bindings:
                seen = self._read(tx, binding)
                if seen is None:
                    continue
                if seen.unread_time is not None:
                    hidden.append(seen.unread_time)
                elif now - seen.through_time <= seen.allowed:
                    values = {"unread_time": seen.through_time}
                    tx.execute(update(self._table).where(*self._is(binding)).values(values))
                    hidden.append(seen.through_time)
            return min(hidden) - _MARGIN if hidden else None

        return await self._store.write(note)

    async def hidden_is_read(self) -> None:
        """The log was read from where `note_hidden` said."""
        table = self._table
        unread = update(table).where(table.c.subscriber == self._queue, table.c.unread_time.is_not(None))
        await self._store.write(lambda tx: tx.execute(unread.values(unread_time=None)) and None)

    async def begin_of_gap(self) -> datetime | None:
        """From when on a subscriber that lost its place has to read the log; None: from the beginning."""
        table = self._table
        query = select(table.c.through_time).where(table.c.subscriber == self._queue)
        times = await self._store.read(lambda tx: list(tx.execute(query).scalars()))
        return min(times) - _MARGIN if len(times) == len(self._bindings) else None

    def _read(self, tx: Transaction, binding: str) -> _Seen | None:
        columns = self._table.c
        query = select(
            columns.through_time,
            columns.resume_time,
            columns.latest_time,
            columns.receive_time,
            columns.look_time,
            columns.interval_ms,
            columns.unread_time,
        )
        row = tx.execute(query.where(*self._is(binding))).one_or_none()
        return None if row is None else _Seen(**row._mapping)

    def _is(self, binding: str) -> tuple[ColumnElement[bool], ...]:
        return self._table.c.subscriber == self._queue, self._table.c.binding == binding


__all__ = ["Bindings", "Canaries", "Canary", "canaries_table", "canary_of", "routing_keys"]
