"""The timeline: events go in, customers read their own, and all of it can be made anew from the events."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinemesh.kit import crash
from dinemesh.kit.store import Store, Transaction
from history_svc import domain, persistence
from history_svc.domain import Archived, Cursor, Entry, Live, Past, Place

# A watch that reads a long past hands it over in pieces of this size.
WATCH_BATCH = 100
# Of events from which entries are made anew, in one transaction.
REMAKE_BATCH = 500


@dataclass(frozen=True)
class Page:
    """Entries in the order of reading; `next_place` is where the next page starts, None on the last one."""

    entries: list[Entry]
    next_place: Place | None


class Timeline:
    """`on_arrival` is told the customer of each new entry, after the commit, in the event loop."""

    def __init__(self, store: Store, on_arrival: Callable[[str], None]) -> None:
        self._store = store
        self._on_arrival = on_arrival

    def record(self, tx: Transaction, entries: Sequence[Entry], events: Sequence[Archived]) -> None:
        """Add what events tell, and keep the events as they came. Inside the transaction of the inbox; what
        is told twice is there once."""
        persistence.append(tx, entries)
        persistence.archive(tx, events)
        if __debug__:
            crash.point("timeline.appended")
        for customer_id in {entry.origin.customer_id for entry in entries} - {""}:
            tx.after_commit(functools.partial(self._on_arrival, customer_id))

    async def entries(self, customer_id: str, reservation_id: str, after: Place | None, limit: int) -> Page:
        """A page of the customer's timeline. Raises NOT_FOUND for a reservation that is not theirs."""

        def query(tx: Transaction) -> Page:
            _must_know(tx, customer_id, reservation_id)
            found = [
                entry
                for _, entry in persistence.in_order(
                    tx, customer_id, reservation_id, after=after, limit=limit + 1
                )
            ]
            return Page(found[:limit], _place(found[limit - 1]) if len(found) > limit else None)

        return await self._store.read(query)

    async def watch(self, customer_id: str, reservation_id: str, cursor: Cursor | None) -> Feed:
        """A watch from the cursor or the beginning. Raises NOT_FOUND for a reservation that is not theirs."""

        def query(tx: Transaction) -> Cursor:
            _must_know(tx, customer_id, reservation_id)
            return cursor or Past(persistence.last_position(tx))

        return Feed(self._store, customer_id, reservation_id, await self._store.read(query))

    async def forget(self, subscriber: str) -> None:
        """Forget that `subscriber` ever read the log: its next start reads it again, for what is missing."""
        await self._store.write(lambda tx: persistence.forget(tx, subscriber))

    async def remake(self, read: Callable[[Archived], Entry | None]) -> Remade:
        """Make the entry of each archived event anew. An entry whose event was not archived stays as it is,
        and so does one whose event `read` cannot read (None). Cut off halfway, it can be begun again."""
        events = changed = unreadable = 0
        after = ""
        while page := await self._store.read(
            functools.partial(persistence.archived, after=after, limit=REMAKE_BATCH)
        ):
            entries = [entry for event in page if (entry := read(event)) is not None]
            changed += await self._store.write(functools.partial(persistence.correct, entries=entries))
            events += len(page)
            unreadable += len(page) - len(entries)
            after = page[-1].event_id
        return Remade(events, changed, unreadable, await self._store.read(persistence.without_event))

    async def digest(self) -> Digest:
        """How many entries there are, and a checksum of all that they say: equal for equal timelines."""
        return await self._store.read(_digest)


class Feed:
    """What one watch has not seen yet."""

    def __init__(self, store: Store, customer_id: str, reservation_id: str, cursor: Cursor) -> None:
        self._store = store
        self._customer_id = customer_id
        self._reservation_id = reservation_id
        self._cursor = cursor

    async def poll(self) -> list[tuple[Entry, Cursor]] | None:
        """The next page of entries, each with where the watch stands after it; empty when there are none yet,
        None when this page held none and there is another one.

        First what there was when it began, by occur_time and event_id; then what arrived since, by arrival.
        """
        # What does not belong here is left out of the page that was read, not by the statement: one that
        # passes over thousands of entries before it has filled its page would hold a reader for as long.
        found, self._cursor, more = await self._store.read(self._next)
        return found or (None if more else [])

    def _next(self, tx: Transaction) -> tuple[list[tuple[Entry, Cursor]], Cursor, bool]:
        """What is new in a page, where the watch stands after it, and whether there is another page."""
        cursor = self._cursor
        if isinstance(cursor, Past):
            whose = self._customer_id, self._reservation_id
            past = persistence.in_order(tx, *whose, after=cursor.after, limit=WATCH_BATCH)
            places: list[tuple[int, Entry, Cursor]] = [
                (position, entry, Past(cursor.head, _place(entry))) for position, entry in past
            ]
            old = [(entry, place) for position, entry, place in places if position <= cursor.head]
            # After the last page of the past comes the first of what arrived since.
            return old, places[-1][2] if len(past) == WATCH_BATCH else Live(cursor.head), True
        new = persistence.arrived(tx, self._customer_id, after=cursor.position, limit=WATCH_BATCH)
        mine: list[tuple[Entry, Cursor]] = [
            (entry, Live(position))
            for position, entry in new
            if self._reservation_id in ("", entry.origin.reservation_id)
        ]
        return mine, Live(new[-1][0]) if new else cursor, len(new) == WATCH_BATCH


@dataclass(frozen=True)
class Remade:
    """What became of the archived events: how many there are, how many entries were missing or different, how
    many events could not be read; and how many entries are of events that were not archived."""

    events: int
    changed: int
    unreadable: int
    without_event: int


@dataclass(frozen=True)
class Digest:
    """Two timelines are the same when their digests are. The order of arrival does not count."""

    entries: int
    checksum: str


def _digest(tx: Transaction) -> Digest:
    checksum = hashlib.sha256()
    count = 0
    for row in persistence.contents(tx):
        checksum.update(repr(row).encode())
        count += 1
    return Digest(count, checksum.hexdigest())


def _must_know(tx: Transaction, customer_id: str, reservation_id: str) -> None:
    if reservation_id and not persistence.knows(tx, customer_id, reservation_id):
        raise domain.reservation_not_found()


def _place(entry: Entry) -> Place:
    return Place(entry.origin.occur_time, entry.origin.event_id)
