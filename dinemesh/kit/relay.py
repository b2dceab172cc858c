"""The relay publishes what the outbox holds.

Rows come to it from memory, right after the commit that inserted them, claimed for it by their insertion. It
marks many of them as sent at a time, later. The table is only read for what no process has in hand: rows of
one that died, rows of a time without a broker, and rows that the broker refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select, update

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import call, crash, telemetry
from dinemesh.kit.batches import DecodeError, body_of
from dinemesh.kit.bus import Bus, BusUnavailable, Refused
from dinemesh.kit.outbox import LEASE_SECONDS, Outbox, Row, backlog
from dinemesh.kit.store import Store, StoreUnavailable, Transaction
from dinemesh.kit.workers import cancel, to_its_end

log = logging.getLogger(__name__)

# Rows in one go. 100 confirms in flight were measured at 6.5 times the throughput of one by one.
BATCH = 400
# The sweep finds what a crash or another pod left behind.
SWEEP_SECONDS = 1.0
# What was sent is marked this much later, with all that was sent meanwhile. A process that dies before sends
# it again.
MARK_SECONDS = 0.25
# ... or as soon as it is this many.
MARK_ROWS = 500
# More are left to the sweep. Some seconds' worth at full load.
MOST_IN_HAND = 5_000
# What the broker refuses waits by itself, twice as long each time: a full queue may be somebody else's.
REFUSED_PAUSE_SECONDS = 1.0
REFUSED_PAUSE_MAX_SECONDS = 60.0
# Of refusals one line is logged in this time, with their number.
REFUSALS_LINE_SECONDS = 10.0


class Relay:
    """Publishes what the outbox holds, and marks it as sent. Several pods may do so at once.

    A row that the broker refuses has reached every queue but the one that is full. It is tried again by
    itself: of such rows one a sweep, and twice as many each time that all of them were taken.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        bus: Bus,
        *,
        sweep_seconds: float = SWEEP_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        batch: int = BATCH,
        events_in_message: int = BATCH,
    ) -> None:
        self._store = store
        self._table = outbox.table
        self._bus = bus
        self._sweep_seconds = sweep_seconds
        self._lease = timedelta(seconds=lease_seconds)
        self._batch = batch
        self._events_in_message = events_in_message
        self._refused_batch = 1
        self._untold = 0
        self._next_line = float("-inf")
        self._in_hand: deque[tuple[float, Row]] = deque()
        """With the time, by the monotonic clock, at which the claim may be another's."""
        self._sent: list[str] = []
        self._added = asyncio.Event()
        self._next_sweep = float("-inf")
        outbox.hand_over_to(self)

    def take(self, rows: Sequence[Row]) -> None:
        """Rows that have just been committed, claimed for this relay. In the event loop's thread."""
        until = time.monotonic() + self._lease.total_seconds() / 2
        self._in_hand.extend((until, row) for row in rows)
        self._added.set()

    @property
    def lease(self) -> timedelta | None:
        """For how long a row that is inserted now is claimed for this relay; None if it is not to be."""
        if len(self._in_hand) >= MOST_IN_HAND or not self._bus.can_publish:
            return None
        return self._lease

    async def run(self) -> None:
        """Until cancelled. Neither a broker nor a database that is away ends it."""
        # By themselves: a confirm that does not come must hold up nobody else.
        others = [
            asyncio.create_task(self._keep_trying_refused(), name="refused events"),
            asyncio.create_task(self._keep_marking(), name="marking what was sent"),
        ]
        try:
            inherited = True
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_sweep):
                        await self._added.wait()
                self._added.clear()
                with _going_on():
                    if inherited:
                        await self._store.write(self._drop_claims_of_the_dead)
                        inherited = False
                    while await to_its_end(self._publish_in_hand()):
                        await self._sweep_in_time()
                    await self._sweep_in_time()
        finally:
            for task in others:
                await cancel(task)
            await self._let_go()

    async def _publish_in_hand(self) -> bool:
        """Publish some of what came from memory; False if there is none that can be."""
        if not self._bus.can_publish:
            return False
        rows: list[Row] = []
        now = time.monotonic()
        while self._in_hand and len(rows) < self._batch:
            until, row = self._in_hand.popleft()
            if until > now:  # the sweep finds the others
                rows.append(row)
        if rows:
            await self._send(rows)
        return bool(rows)

    async def _sweep_in_time(self) -> None:
        """Publish what is in nobody's hand, once in a while."""
        now = asyncio.get_running_loop().time()
        if now < self._next_sweep:
            return
        self._next_sweep = now + self._sweep_seconds
        if self._bus.can_publish and await self._store.read(self._is_any_left):
            await self._mark()
            while await to_its_end(self._turn(self._claim_fresh)) == self._batch:
                pass

    async def _keep_trying_refused(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            with _going_on():
                while await to_its_end(self._try_refused()):
                    pass

    async def _keep_marking(self) -> None:
        while True:
            await asyncio.sleep(MARK_SECONDS)
            with _going_on():
                await to_its_end(self._mark())

    async def _mark(self) -> None:
        """Mark what was sent. What cannot be marked now stays to be."""
        while self._sent:
            sent, self._sent = self._sent[:MARK_ROWS], self._sent[MARK_ROWS:]
            if __debug__:
                crash.point("outbox.mark_sent.before")
            try:
                await self._store.write(partial(self._mark_sent, sent=sent))
            except BaseException:
                self._sent += sent
                raise
            if __debug__:
                crash.point("outbox.mark_sent.after")

    def _mark_sent(self, tx: Transaction, sent: Sequence[str]) -> None:
        columns = self._table.c
        tx.execute(update(self._table).where(columns.event_id.in_(sent)).values(sent_time=tx.now))
        if __debug__:
            crash.did("marks")

    async def _let_go(self) -> None:
        """At the end: mark what was sent, and leave to others what was not."""
        left = [row for _, row in self._in_hand]
        self._in_hand.clear()
        with _going_on():
            await self._mark()
            if left:
                await self._store.write(lambda tx: self._settle(tx, left, is_away=True))

    async def _turn(self, claim: Callable[[Transaction], list[Row]]) -> int:
        """Publish one batch out of the table; returns how many were confirmed."""
        if not self._bus.can_publish:
            return 0
        rows = await self._store.write(claim)
        if __debug__:
            crash.point("outbox.claimed", "some" if rows else "nothing")
        return await self._send(rows) if rows else 0

    async def _try_refused(self) -> bool:
        """Publish a few of those whose pause is over; True if more may follow at once."""
        limit = self._refused_batch
        if not self._bus.can_publish or not await self._store.read(self._is_any_due):
            self._refused_batch = 1
            return False
        sent = await self._turn(lambda tx: self._claim_refused(tx, limit))
        self._refused_batch = min(2 * limit, self._batch) if sent == limit else 1
        return sent == limit

    async def _send(self, rows: Sequence[Row]) -> int:
        """Publish rows that are claimed for us; how many were confirmed. The others are put back."""
        parcels = list(self._parcels(rows))
        outcomes = await asyncio.gather(*(self._publish(parcel) for parcel in parcels))
        unsent: dict[Row, BusUnavailable] = {}
        confirmed = 0
        for parcel, error in zip(parcels, outcomes, strict=True):
            if error is None:
                self._sent += [row.event_id for row in parcel]
                confirmed += len(parcel)
            else:
                unsent |= dict.fromkeys(parcel, error)
        if unsent:
            # A broker that went away says nothing about these rows: they are not made to wait for it.
            is_away = not self._bus.can_publish
            self._tell(unsent, is_away=is_away)
            await self._store.write(lambda tx: self._settle(tx, list(unsent), is_away=is_away))
        if len(self._sent) >= MARK_ROWS:
            await self._mark()
        return confirmed

    def _parcels(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """What goes in one message: rows of one routing key. What was refused goes by itself."""
        by_key: dict[str, list[Row]] = {}
        for row in rows:
            if row.tries:
                yield [row]
            else:
                by_key.setdefault(row.routing_key, []).append(row)
        for alike in by_key.values():
            for first in range(0, len(alike), self._events_in_message):
                yield alike[first : first + self._events_in_message]

    async def _publish(self, parcel: Sequence[Row]) -> BusUnavailable | None:
        key = parcel[0].routing_key
        try:
            body = body_of([row.envelope for row in parcel])
        except DecodeError as error:
            return Refused(f"an event of the outbox cannot be read: {error}")
        if __debug__:
            crash.point("outbox.publish.before", key)
        try:
            await self._bus.publish(body, key, event_id=parcel[0].event_id)
        except BusUnavailable as error:
            # In doubt at worst: it is published again, and the subscribers' inboxes absorb it.
            return error
        if __debug__:
            crash.point("outbox.publish.confirmed", key)
        return None

    def _tell(self, unsent: Mapping[Row, BusUnavailable], *, is_away: bool) -> None:
        if is_away:
            log.warning("%d events are in doubt: the broker went away; they are sent again", len(unsent))
            return
        self._untold += len(unsent)
        if not unsent or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + REFUSALS_LINE_SECONDS
        count, self._untold = self._untold, 0
        row, error = next(iter(unsent.items()))
        envelope = envelope_pb2.Envelope.FromString(row.envelope)
        with call.working_on(call.Call(envelope.correlation_id, envelope.causation_id)):
            log.warning(
                "%d events were not confirmed, such as %s (%d times now): %s; each waits by itself",
                count,
                row.event_id,
                row.tries + 1,
                error,
            )

    def _drop_claims_of_the_dead(self, tx: Transaction) -> None:
        """On SQLite a service is one process: a claim found at the start is of one that was killed, and its
        events need not wait for the lease. Elsewhere it may be another pod's."""
        if tx.dialect == "sqlite":
            columns = self._table.c
            claimed = columns.sent_time.is_(None) & columns.claim_until.is_not(None) & (columns.tries == 0)
            tx.execute(update(self._table).where(claimed).values(claim_until=None))

    def _fresh(self, tx: Transaction) -> Select[Any]:
        columns = self._table.c
        free = or_(columns.claim_until.is_(None), self._is_over(tx))
        return select(columns.position).where(columns.sent_time.is_(None), columns.tries == 0, free)

    def _due(self, tx: Transaction) -> Select[Any]:
        columns = self._table.c
        return select(columns.position).where(
            columns.sent_time.is_(None), columns.tries > 0, self._is_over(tx)
        )

    def _is_any_left(self, tx: Transaction) -> bool:
        return tx.execute(self._fresh(tx).limit(1)).first() is not None

    def _is_any_due(self, tx: Transaction) -> bool:
        return tx.execute(self._due(tx).limit(1)).first() is not None

    def _claim_fresh(self, tx: Transaction) -> list[Row]:
        return self._claim(tx, self._fresh(tx).order_by(self._table.c.position).limit(self._batch))

    def _claim_refused(self, tx: Transaction, limit: int) -> list[Row]:
        return self._claim(tx, self._due(tx).order_by(self._table.c.claim_until).limit(limit))

    def _is_over(self, tx: Transaction) -> ColumnElement[bool]:
        """Whether a lease or pause is over; also one longer than any is: the clock was ahead then."""
        until = self._table.c.claim_until
        longest = max(self._lease, timedelta(seconds=REFUSED_PAUSE_MAX_SECONDS))
        return or_(until < tx.now, until > tx.now + longest)

    def _claim(self, tx: Transaction, rows: Select[Any]) -> list[Row]:
        columns = self._table.c
        if tx.dialect == "postgresql":
            rows = rows.with_for_update(skip_locked=True)
        claim = (
            update(self._table)
            .where(columns.position.in_(rows.scalar_subquery()))
            .values(claim_until=tx.now + self._lease)
            .returning(
                columns.position, columns.event_id, columns.routing_key, columns.envelope, columns.tries
            )
        )
        found = sorted(tx.execute(claim), key=lambda row: row.position)
        if __debug__:
            crash.did(f"claims {'some' if found else 'nothing'}")
        return [Row(row.event_id, row.routing_key, row.envelope, row.tries) for row in found]

    def _settle(self, tx: Transaction, unsent: Sequence[Row], *, is_away: bool) -> None:
        """Put back what was not confirmed: at once if the broker went away, after a pause if it refused."""
        columns = self._table.c
        if is_away:
            events = [row.event_id for row in unsent]
            tx.execute(update(self._table).where(columns.event_id.in_(events)).values(claim_until=tx.now))
        else:
            for tries in {row.tries for row in unsent}:
                events = [row.event_id for row in unsent if row.tries == tries]
                refused = update(self._table).where(columns.event_id.in_(events))
                tx.execute(refused.values(tries=tries + 1, claim_until=tx.now + pause(tries)))
        if __debug__:
            crash.did("puts back")

    async def measure(self) -> None:
        """Bring the metrics up to date; by a clock, since a relay under load or without a broker has none."""
        telemetry.BROKER_BLOCKS.set(self._bus.blocked)
        try:
            count, age = await self._store.read(lambda tx: backlog(tx, self._table))
        except StoreUnavailable:
            return
        telemetry.OUTBOX_UNSENT.set(max(0, count - len(self._sent)))
        telemetry.OUTBOX_AGE.set(age.total_seconds())


def pause(tries: int) -> timedelta:
    """How long a row waits that was refused `tries` times before."""
    return timedelta(seconds=min(REFUSED_PAUSE_SECONDS * 2 ** min(tries, 30), REFUSED_PAUSE_MAX_SECONDS))


@contextmanager
def _going_on() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable:
        log.warning("the outbox cannot be read: the database is away")
    except Exception:
        telemetry.WORKER_FAILURES.labels("relay").inc()
        log.exception("the relay failed; the sweep tries again")
