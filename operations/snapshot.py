"""What an audit looks at: rows of four databases, the provider's record and the dead letters, at one moment.

Read from outside, by SQL of its own: a checker that shared the services' code would share their mistakes.
Read in parts, since there are as many rows as there ever were bookings: a part has all there is about some
reservations, deposits, slots or events, and a check looks at one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

import grpc

from dinemesh.kit import wire
from dinemesh.kit.dead_letters import DeadLetter
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from operations.broker import LISTENS, QUEUES, NoBroker, blocks, connected, dead_letters_of
from operations.rows import (
    ALIVE,
    HOLDING,
    Applied,
    Asked,
    Booking,
    Charge,
    Deposit,
    Entry,
    Failing,
    Forfeit,
    Held,
    Holding,
    Instruction,
    Line,
    Modification,
    Outgoing,
    ProviderRefund,
    Refund,
    Request,
    Reservation,
    Slot,
    Told,
    Version,
)
from operations.streams import Database, Keyed, Sorted, Unreadable, in_step, instant, maker, place

PROVIDER_SECONDS = 10.0
PAGE = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """Where to look. What is None is not looked at, and the checks that need it are skipped by name."""

    reservation_db: str | None = None
    deposit_db: str | None = None
    restaurant_db: str | None = None
    history_db: str | None = None
    provider: str | None = None
    amqp: str | None = None
    queues: Sequence[str] = QUEUES


class About(Enum):
    """What a part has all there is of."""

    RESERVATIONS = "reservations, their deposits and the restaurants' bookings"
    DEPOSITS = "deposits, their entries in the ledger and their charges at the provider"
    SLOTS = "slots"
    EVENTS = "events"
    REST = "what there is little of"


@dataclass(frozen=True)
class Elsewhere:
    """What rows of a part refer to, and belongs into another part: only where something is wrong."""

    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    lines: Mapping[str, Line] = field(default_factory=dict)
    orders: Sequence[Instruction] = ()
    deposits: Mapping[str, Deposit] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """What was read, or a part of it; `now` is the reader's clock when it began. Empty where there was no
    source."""

    now: datetime
    about: Set[About] = frozenset(About)
    """Of these it has everything, or everything about some; a whole snapshot is about all."""
    reservations: dict[str, Reservation] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    orders: Sequence[Instruction] = ()
    modifications: Sequence[Modification] = ()
    asked: dict[str, Asked] = field(default_factory=dict)
    requests: Sequence[Request] = ()
    slots: Sequence[Slot] = ()
    holdings: Sequence[Holding] = ()
    deposits: dict[str, Deposit] = field(default_factory=dict)
    refunds: Sequence[Refund] = ()
    forfeits: Sequence[Forfeit] = ()
    applied: Sequence[Applied] = ()
    """Only those that wait."""
    entries: Sequence[Entry] = ()
    bookings: dict[str, Booking] = field(default_factory=dict)
    outgoing: Sequence[Outgoing] = ()
    """A part may leave out those that were sent, taken by all who listen, and told."""
    event_count: int = 0
    """With those that are left out."""
    outboxes: Set[str] = frozenset()
    """The services whose outbox was read."""
    failing: Sequence[Failing] = ()
    held: Held | None = None
    told: Sequence[Told] = ()
    """Of the same events, and of those that are in no outbox."""
    entry_count: int = 0
    taken: Mapping[str, Set[str]] = field(default_factory=dict)
    """Event ids by subscriber, of those whose inbox was read."""
    versions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """The highest version taken, by subscriber and aggregate, where an inbox does not have an event."""
    charges: Sequence[Charge] = ()
    dead_letters: Sequence[DeadLetter] = ()
    broker_blocks: bool = False
    """It takes no messages: it is short of memory or disk."""
    elsewhere: Elsewhere = Elsewhere()

    def lines_of(self, reservation_id: str) -> Sequence[Line]:
        """The deposits of a reservation."""
        return self._lines_by_reservation.get(reservation_id, ())

    def reservation(self, reservation_id: str) -> Reservation | None:
        """Wherever it is."""
        here = self.reservations.get(reservation_id)
        return here or self.elsewhere.reservations.get(reservation_id)

    def line(self, deposit_id: str) -> Line | None:
        """Wherever it is."""
        return self.lines.get(deposit_id) or self.elsewhere.lines.get(deposit_id)

    def deposit(self, deposit_id: str) -> Deposit | None:
        """Wherever it is."""
        return self.deposits.get(deposit_id) or self.elsewhere.deposits.get(deposit_id)

    @cached_property
    def awaited(self) -> Set[str]:
        """The deposits that open modifications wait for."""
        return {one.deposit_id for one in self.modifications}

    @cached_property
    def _lines_by_reservation(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self.lines.values():
            found.setdefault(line.reservation_id, []).append(line)
        return found

    def is_younger(self, moment: datetime, age: timedelta) -> bool:
        """Compares with `now`; returns True at exactly `age`, and for a moment in the future."""
        return self.now - moment <= age


async def take(sources: Sources) -> Snapshot:
    """All parts in one, in memory: of a mesh that is small. Raises Unreadable."""
    async with opened(sources) as reader:
        return await asyncio.to_thread(_joined, reader)


@asynccontextmanager
async def opened(sources: Sources, missing: list[str] | None = None) -> AsyncIterator[Reader]:
    """All sources, each as it is at one moment. One that cannot be read raises Unreadable, or, if `missing`
    is given, is named there and left out.

    History is opened first: whatever its timeline holds then was in an outbox before.
    """
    reader = Reader(datetime.now(UTC))
    try:
        for name, url in (
            ("history", sources.history_db),
            ("reservation", sources.reservation_db),
            ("deposit", sources.deposit_db),
            ("restaurant", sources.restaurant_db),
        ):
            with _tolerating(missing):
                if url is not None:
                    reader.databases[name] = await asyncio.to_thread(_open, url, name)
        with _tolerating(missing):
            if sources.provider is not None:
                await reader.spool_charges(sources.provider)
        with _tolerating(missing):
            if sources.amqp is not None:
                await reader.ask_broker(sources.amqp, sources.queues)
        yield reader
    finally:
        reader.close()


@contextmanager
def _tolerating(missing: list[str] | None) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        if missing is None:
            raise
        missing.append(str(error))


async def refunds_of(deposit_db: str, deposit_id: str) -> list[Refund]:
    """The refunds of one deposit. Raises Unreadable."""

    def read(database: Database) -> list[Refund]:
        return database.all(Refund, "refunds WHERE deposit_id = :id", id=deposit_id)

    return await asyncio.to_thread(_ask, deposit_db, read)


async def refused_deposits(deposit_db: str, most: int) -> list[str]:
    """Of at most so many deposits whose refunds the provider refused, the ids. Raises Unreadable."""

    def read(database: Database) -> list[str]:
        query = "SELECT DISTINCT deposit_id FROM refunds WHERE state = 'FAILED' ORDER BY 1 LIMIT :most"
        return [row.deposit_id for row in database.rows(query, most=most)]

    return await asyncio.to_thread(_ask, deposit_db, read)


def _ask(url: str, read: Callable[[Database], list[T]]) -> list[T]:
    database = Database(url)
    try:
        return read(database)
    finally:
        database.close()


_TABLES = {
    "reservation": (
        "reservations deposits instructions modifications requests slots reconcile_clock reconcile_failures"
        " outbox inbox inbox_versions"
    ),
    "deposit": (
        "deposits refunds forfeits instructions ledger_entries reconcile_failures outbox inbox inbox_versions"
    ),
    "restaurant": "bookings outbox inbox inbox_versions",
    "history": "timeline_entries inbox inbox_versions",
}


def _open(url: str, service: str) -> Database:
    return Database(url, _TABLES[service].split())


class Reader:
    """Sources that are open. `parts` reads them, in one thread at a time."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.databases: dict[str, Database] = {}
        self._charges: Sorted | None = None
        self._dead_letters: Sequence[DeadLetter] = ()
        self._broker_blocks = False

    def close(self) -> None:
        """Closes the databases and deletes the spooled charges from disk."""
        for database in self.databases.values():
            database.close()
        if self._charges is not None:
            self._charges.close()

    async def spool_charges(self, address: str) -> None:
        """The provider's record comes in its own order. Raises Unreadable."""
        self._charges = Sorted()
        token = ""
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
                while True:
                    request = sandbox_pb2.ListChargesRequest(page_size=PAGE, page_token=token)
                    page = await stub.ListCharges(request, timeout=PROVIDER_SECONDS)
                    self._charges.add((one.key, one.SerializeToString()) for one in page.charges)
                    token = page.next_page_token
                    if not token:
                        return
        except grpc.aio.AioRpcError as error:
            raise Unreadable(f"the provider at {address}: {error.code().name}") from error

    async def ask_broker(self, amqp_url: str, queues: Sequence[str]) -> None:
        """Raises Unreadable."""
        try:
            async with connected(amqp_url) as bus:
                self._dead_letters = [
                    letter for queue in queues for letter in await dead_letters_of(bus, queue)
                ]
                self._broker_blocks = await blocks(bus)
        except NoBroker as error:
            raise Unreadable(str(error)) from error

    def parts(
        self, about: Set[About], *, waiting: bool = False, complete: bool = False
    ) -> Iterator[Snapshot]:
        """Everything about these things, part by part; with `waiting`, of reservations and deposits only what
        has not come to its end; with `complete`, also the events that are as they should be. Blocks. Raises
        Unreadable."""
        held = self._held()
        if About.DEPOSITS in about:
            yield from self._deposits()
        if About.RESERVATIONS in about:
            yield from self._waiting(held) if waiting else self._reservations(held)
        if About.SLOTS in about:
            yield from self._slots()
        if About.EVENTS in about:
            yield from self._events(complete=complete)
        if About.REST in about:
            yield self._rest(held)

    def _held(self) -> Held | None:
        database = self.databases.get("reservation")
        if database is None:
            return None
        return next(iter(database.all(Held, "reconcile_clock WHERE held_time IS NOT NULL")), None)

    def _reservations(self, held: Held | None) -> Iterator[Snapshot]:
        streams: dict[str, Iterator[Keyed[Any]]] = {}
        reservation, deposit = self.databases.get("reservation"), self.databases.get("deposit")
        if reservation is not None:
            key = "t.reservation_id"
            streams = {
                "reservations": reservation.ordered(Reservation, "reservations AS t", key),
                "lines": reservation.ordered(Line, "deposits AS t", key),
                "orders": reservation.ordered(Instruction, "instructions AS t", key),
                "modifications": reservation.ordered(
                    Modification, "modifications AS t", key, where="t.state = 'OPEN'"
                ),
                "asked": reservation.ordered(Asked, "modifications AS t", key),
                "requests": reservation.ordered(Request, "requests AS t", key),
            }
        if deposit is not None:
            streams |= {
                "deposits": deposit.ordered(Deposit, "deposits AS t", "t.reservation_id"),
                "refunds": deposit.ordered(Refund, _OF_DEPOSITS.format("refunds"), "d.reservation_id"),
                "forfeits": deposit.ordered(Forfeit, _OF_DEPOSITS.format("forfeits"), "d.reservation_id"),
            }
        if (restaurant := self.databases.get("restaurant")) is not None:
            streams["bookings"] = restaurant.ordered(Booking, "bookings AS t", "t.reservation_id")
        for part in in_step(streams):
            here = self._of_reservations(held, part)
            yield replace(here, elsewhere=self._elsewhere(here))

    def _waiting(self, held: Held | None) -> Iterator[Snapshot]:
        streams: dict[str, Iterator[Keyed[Any]]] = {}
        if (reservation := self.databases.get("reservation")) is not None:
            alive = ", ".join(f"'{state}'" for state in sorted(ALIVE))
            streams = {
                "reservations": reservation.ordered(
                    Reservation, "reservations AS t", "t.reservation_id", where=f"t.state IN ({alive})"
                ),
                "modifications": reservation.ordered(
                    Modification, "modifications AS t", "t.reservation_id", where="t.state = 'OPEN'"
                ),
            }
        if (deposit := self.databases.get("deposit")) is not None:
            unreturned = "t.deposit_id IN (SELECT deposit_id FROM refunds WHERE state <> 'SUCCEEDED')"
            streams |= {
                "deposits": deposit.ordered(
                    Deposit,
                    "deposits AS t",
                    "t.reservation_id",
                    where=f"t.state IN ('PENDING', 'VOIDING') OR {unreturned}",
                ),
                "refunds": deposit.ordered(
                    Refund,
                    _OF_DEPOSITS.format("refunds"),
                    "d.reservation_id",
                    where="t.state <> 'SUCCEEDED'",
                ),
            }
        for part in in_step(streams):
            yield self._of_reservations(held, part)

    def _of_reservations(self, held: Held | None, part: Mapping[str, list[Any]]) -> Snapshot:
        return Snapshot(
            self.now,
            {About.RESERVATIONS},
            reservations={one.reservation_id: one for one in part.get("reservations", ())},
            lines={one.deposit_id: one for one in part.get("lines", ())},
            orders=part.get("orders", ()),
            modifications=part.get("modifications", ()),
            asked={one.modification_id: one for one in part.get("asked", ())},
            requests=part.get("requests", ()),
            deposits={one.deposit_id: one for one in part.get("deposits", ())},
            refunds=part.get("refunds", ()),
            forfeits=part.get("forfeits", ()),
            bookings={one.reservation_id: one for one in part.get("bookings", ())},
            held=held,
        )

    def _elsewhere(self, here: Snapshot) -> Elsewhere:
        """A deposit that says of itself another reservation than reservation does, a return that was ordered
        for another one: they are looked up one by one."""
        reservation, deposit = self.databases.get("reservation"), self.databases.get("deposit")
        if reservation is None or deposit is None:
            return Elsewhere()
        ordered = {one.instruction_id for one in here.orders}
        returned = {one.refund_id for one in here.refunds} | {one.forfeit_id for one in here.forfeits}
        lines = reservation.of(Line, "deposits", "deposit_id", here.deposits.keys() - here.lines.keys())
        orders = reservation.of(Instruction, "instructions", "instruction_id", returned - ordered)
        owners = {one.reservation_id for one in lines} - here.reservations.keys()
        known = {one.instruction_id for one in orders} | ordered
        orders += [
            one
            for one in reservation.of(Instruction, "instructions", "reservation_id", owners)
            if one.instruction_id not in known
        ]
        owners |= {one.reservation_id for one in orders} - here.reservations.keys()
        counted = {one.deposit_id for one in here.lines.values() if one.captured}
        return Elsewhere(
            {
                one.reservation_id: one
                for one in reservation.of(Reservation, "reservations", "reservation_id", owners)
            },
            {one.deposit_id: one for one in lines},
            orders,
            {
                one.deposit_id: one
                for one in deposit.of(Deposit, "deposits", "deposit_id", counted - here.deposits.keys())
            },
        )

    def _deposits(self) -> Iterator[Snapshot]:
        database = self.databases.get("deposit")
        if database is None:
            return
        key = "t.deposit_id"
        streams: dict[str, Iterable[Keyed[Any]]] = {
            "deposits": database.ordered(Deposit, "deposits AS t", key),
            "refunds": database.ordered(Refund, "refunds AS t", key),
            "forfeits": database.ordered(Forfeit, "forfeits AS t", key),
            "entries": database.ordered(Entry, "ledger_entries AS t", key),
        }
        if self._charges is not None:
            streams["charges"] = self._charges
        for part in in_step(streams):
            yield Snapshot(
                self.now,
                {About.DEPOSITS},
                deposits={one.deposit_id: one for one in part["deposits"]},
                refunds=part["refunds"],
                forfeits=part["forfeits"],
                entries=part["entries"],
                charges=[_charge(one) for one in part.get("charges", ())],
            )

    def _slots(self) -> Iterator[Snapshot]:
        database = self.databases.get("reservation")
        if database is None:
            return
        holding = ", ".join(f"'{state}'" for state in sorted(HOLDING))
        order = "ORDER BY restaurant_id{C}, dine_time"
        slots = f"SELECT restaurant_id, dine_time, capacity, sold FROM slots {order}"
        # A modification holds what it needs besides the seats that its reservation has there already.
        holdings = f"""
            SELECT restaurant_id, dine_time, SUM(seats) AS seats FROM (
                SELECT restaurant_id, dine_time, party_size AS seats
                FROM reservations WHERE state IN ({holding})
                UNION ALL
                SELECT r.restaurant_id, m.dine_time, CASE
                    WHEN m.dine_time <> r.dine_time THEN m.party_size
                    WHEN m.party_size > r.party_size THEN m.party_size - r.party_size
                    ELSE 0 END
                FROM modifications AS m JOIN reservations AS r ON r.reservation_id = m.reservation_id
                WHERE m.state = 'OPEN'
            ) AS held GROUP BY restaurant_id, dine_time {order}"""
        streams = {
            "slots": (
                (
                    (row.restaurant_id, row.dine_time),
                    Slot(row.restaurant_id, instant(row.dine_time), row.capacity, row.sold),
                )
                for row in database.rows(slots)
            ),
            "holdings": (
                (
                    (row.restaurant_id, row.dine_time),
                    Holding(row.restaurant_id, instant(row.dine_time), int(row.seats)),
                )
                for row in database.rows(holdings)
            ),
        }
        for part in in_step(streams):
            yield Snapshot(self.now, {About.SLOTS}, slots=part["slots"], holdings=part["holdings"])

    def _events(self, *, complete: bool = False) -> Iterator[Snapshot]:
        """Nearly all events are as they should be: sent, taken and told. They are counted, and only the
        others are shown, if not `complete`."""
        sources = sorted(self.databases.keys() - {"history"})
        read = [queue for queue in LISTENS if queue.partition(".")[0] in self.databases]
        streams: dict[str, Iterator[Keyed[Any]]] = {
            name: self.databases[name].cells(
                Outgoing, "outbox AS t", "t.event_id", source=f"'{name}'", sent="t.sent_time IS NOT NULL"
            )
            for name in sources
        }
        for queue in read:
            rows = self.databases[queue.partition(".")[0]].rows(
                "SELECT event_id FROM inbox WHERE subscriber = :queue ORDER BY event_id{C}", queue=queue
            )
            streams[queue] = ((row[0], row[0]) for row in rows)
        if (history := self.databases.get("history")) is not None:
            streams["told"] = history.cells(Told, "timeline_entries AS t", "t.event_id")
        sent, event, outgoing, entry = (
            place(Outgoing, "sent"),
            place(Outgoing, "event_id"),
            maker(Outgoing),
            maker(Told),
        )
        for part in in_step(streams):
            ids = {name: {row[event] for row in part[name]} for name in sources}
            taken = {queue: set(part[queue]) for queue in read}
            told = {row[0]: row for row in part.get("told", ())}
            known = frozenset[str]().union(*ids.values())
            notable = {row[event] for name in sources for row in part[name] if not row[sent]}
            for queue, ids_taken in taken.items():
                for source in LISTENS[queue]:
                    notable |= ids.get(source, frozenset()) - ids_taken
            if history is not None:
                notable |= known ^ told.keys()
            if complete:
                notable = {*known, *told}
            shown = [outgoing(row) for name in sources for row in part[name] if row[event] in notable]
            yield Snapshot(
                self.now,
                {About.EVENTS},
                outgoing=shown,
                event_count=sum(len(part[name]) for name in sources),
                outboxes=frozenset(sources),
                told=[entry(row) for event_id, row in told.items() if event_id in notable],
                entry_count=len(told),
                taken=taken,
                versions=self._versions(shown, taken),
                dead_letters=self._dead_letters,
            )

    def _versions(
        self, outgoing: Sequence[Outgoing], taken: Mapping[str, Set[str]]
    ) -> Mapping[tuple[str, str], int]:
        """What subscribers have seen of those whose events are not in their inbox: few."""
        found: dict[tuple[str, str], int] = {}
        sent = {one.event_id: one for one in outgoing if one.sent}
        for queue, known in taken.items():
            missed = [sent[event_id] for event_id in sent.keys() - known]
            aggregates = {aggregate_of(one) for one in missed if one.source in LISTENS[queue]}
            database = self.databases[queue.partition(".")[0]]
            for one in database.of(Version, "inbox_versions", "aggregate", aggregates):
                if one.subscriber == queue:
                    found[queue, one.aggregate] = one.version
        return found

    def _rest(self, held: Held | None) -> Snapshot:
        deposit = self.databases.get("deposit")
        return Snapshot(
            self.now,
            {About.REST},
            applied=[] if deposit is None else deposit.all(Applied, "instructions WHERE state = 'WAITING'"),
            failing=[
                one
                for name in ("reservation", "deposit")
                if name in self.databases
                for one in self.databases[name].all(
                    Failing, f"(SELECT '{name}' AS service, f.* FROM reconcile_failures f) AS named"
                )
            ],
            held=held,
            dead_letters=self._dead_letters,
            broker_blocks=self._broker_blocks,
        )


_OF_DEPOSITS = "{} AS t JOIN deposits AS d ON d.deposit_id = t.deposit_id"


def aggregate_of(event: Outgoing) -> str:
    """As an inbox names the aggregate that an event speaks of."""
    return f"{event.source}/{event.aggregate_id}"


def _joined(reader: Reader) -> Snapshot:
    parts = {one: list(reader.parts({one}, complete=True)) for one in About}
    mine, theirs, events = parts[About.RESERVATIONS], parts[About.DEPOSITS], parts[About.EVENTS]
    (rest,) = parts[About.REST]
    taken: dict[str, set[str]] = {
        queue: set() for queue in LISTENS if queue.partition(".")[0] in reader.databases
    }
    versions: dict[tuple[str, str], int] = {}
    for one in events:
        versions |= one.versions
        for queue, ids in one.taken.items():
            taken[queue] |= ids
    whole = _Everything(mine)
    return replace(
        rest,
        about=frozenset(About),
        reservations=whole.named("reservations"),
        lines=whole.named("lines"),
        orders=whole.listed("orders"),
        modifications=whole.listed("modifications"),
        asked=whole.named("asked"),
        requests=whole.listed("requests"),
        slots=_Everything(parts[About.SLOTS]).listed("slots"),
        holdings=_Everything(parts[About.SLOTS]).listed("holdings"),
        deposits=whole.named("deposits"),
        refunds=whole.listed("refunds"),
        forfeits=whole.listed("forfeits"),
        entries=_Everything(theirs).listed("entries"),
        bookings=whole.named("bookings"),
        outgoing=_Everything(events).listed("outgoing"),
        event_count=sum(one.event_count for one in events),
        outboxes=reader.databases.keys() - {"history"},
        told=_Everything(events).listed("told"),
        entry_count=sum(one.entry_count for one in events),
        taken=taken,
        versions=versions,
        charges=_Everything(theirs).listed("charges"),
    )


class _Everything:
    """Of several parts."""

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = parts

    def named(self, what: str) -> dict[str, Any]:
        return {key: one for part in self._parts for key, one in getattr(part, what).items()}

    def listed(self, what: str) -> list[Any]:
        return [one for part in self._parts for one in getattr(part, what)]


def _charge(body: bytes) -> Charge:
    charge = sandbox_pb2.Charge.FromString(body)
    minor, currency = (0, "")
    if charge.HasField("amount"):
        minor, currency = wire.from_money(charge.amount, "amount")
    return Charge(
        charge.key,
        sandbox_pb2.ChargeState.Name(charge.state).removeprefix("CHARGE_STATE_"),
        minor,
        currency,
        tuple(_provider_refunds(charge.refunds)),
    )


def _provider_refunds(refunds: Iterable[sandbox_pb2.Refund]) -> Iterable[ProviderRefund]:
    for refund in refunds:
        minor, currency = wire.from_money(refund.amount, "amount")
        succeeded = refund.state == sandbox_pb2.REFUND_STATE_SUCCEEDED
        yield ProviderRefund(refund.key, minor, succeeded, currency)
