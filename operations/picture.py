"""What an audit looks at: rows of four databases, the provider's record and the dead letters, at one moment.

Read from outside, by SQL of its own: a checker that shared the services' code would share their mistakes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from dinemesh.kit import currency as currencies
from dinemesh.kit import wire
from dinemesh.kit.dead_letters import DeadLetter
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from operations.broker import LISTENS, QUEUES, NoBroker, blocks, connected, dead_letters_of

PROVIDER_SECONDS = 10.0
CONNECT_SECONDS = 5
BUSY_SECONDS = 10
PAGE = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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


class Unreadable(Exception):
    """A source that was named cannot be read: nothing can be said."""


@dataclass(frozen=True)
class Reservation:
    reservation_id: str
    customer_id: str
    restaurant_id: str
    state: str
    cancelled_by: str | None
    dine_time: datetime
    party_size: int
    price: int
    revision: int
    update_time: datetime
    hold_expire_time: datetime
    accept_deadline: datetime | None
    due_time: datetime | None = None
    """When the clock has something to do with it."""
    policy: str = ""
    """The restaurant's terms when it was made, as JSON."""

    @property
    def currency(self) -> str:
        return str(self._terms.get("currency", ""))

    @property
    def service_end(self) -> datetime:
        """When the guests leave the table."""
        return self.dine_time + timedelta(seconds=int(self._terms.get("service_duration_seconds", 0)))

    @property
    def _terms(self) -> Mapping[str, Any]:
        # What nobody can read is listed as failing, and must not hide all else.
        try:
            found = json.loads(self.policy)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Line:
    """A deposit as reservation knows it."""

    deposit_id: str
    reservation_id: str
    amount: int
    state: str
    captured: bool


@dataclass(frozen=True)
class Instruction:
    """An order of reservation to deposit."""

    instruction_id: str
    reservation_id: str
    kind: str
    deposit_id: str
    amount: int


@dataclass(frozen=True)
class Modification:
    """An open one: it holds seats and waits for its deposit."""

    modification_id: str
    reservation_id: str
    deposit_id: str
    dine_time: datetime
    party_size: int
    attempt_deadline: datetime
    hold_expire_time: datetime


@dataclass(frozen=True)
class Asked:
    """A modification that waited for a deposit, whatever became of it."""

    modification_id: str
    reservation_id: str
    state: str


@dataclass(frozen=True)
class Request:
    """What a request id of a customer has led to."""

    customer_id: str
    request_id: str
    reservation_id: str
    modification_id: str | None


@dataclass(frozen=True)
class Slot:
    restaurant_id: str
    dine_time: datetime
    capacity: int
    sold: int


@dataclass(frozen=True)
class Deposit:
    deposit_id: str
    customer_id: str
    reservation_id: str
    currency: str
    state: str
    void_ordered: bool
    captured_minor: int
    refunding_minor: int
    refunded_minor: int
    refund_failed_minor: int
    forfeited_minor: int
    update_time: datetime

    @property
    def held(self) -> int:
        gone = self.refunding_minor + self.refunded_minor + self.refund_failed_minor + self.forfeited_minor
        return self.captured_minor - gone

    def money(self, minor: int) -> str:
        return currencies.text(minor, self.currency)


@dataclass(frozen=True)
class Refund:
    refund_id: str
    deposit_id: str
    amount_minor: int
    state: str
    attempt: int
    failure_code: str
    update_time: datetime


@dataclass(frozen=True)
class Forfeit:
    forfeit_id: str
    deposit_id: str
    amount_minor: int


@dataclass(frozen=True)
class Applied:
    """What deposit made of an instruction: WAITING, APPLIED or NO_EFFECT."""

    kind: str
    instruction_id: str
    deposit_id: str
    state: str
    create_time: datetime


@dataclass(frozen=True)
class Balance:
    """The sum of a deposit's ledger entries of one kind in one account."""

    deposit_id: str
    account: str
    kind: str
    currency: str
    amount_minor: int


@dataclass(frozen=True)
class Movement:
    """A movement in the ledger whose entries do not sum to zero."""

    movement_id: str
    currency: str
    amount_minor: int


@dataclass(frozen=True)
class Booking:
    reservation_id: str
    restaurant_id: str
    state: str
    confirmed: bool
    revision: int
    dine_time: datetime
    party_size: int
    update_time: datetime


@dataclass(frozen=True)
class Outgoing:
    """A row of an outbox."""

    source: str
    event_id: str
    routing_key: str
    create_time: datetime
    sent: bool
    tries: int = 0
    """How often the broker has refused it."""


@dataclass(frozen=True)
class Failing:
    """What fails while a service reconciles it, and is looked at again at `next_time`."""

    service: str
    subject: str
    tries: int
    since_time: datetime
    next_time: datetime
    error: str


@dataclass(frozen=True)
class Held:
    """The clock of a database that is not trusted to end what became due after `trusted_time` (None:
    anything): at `held_time` it would have ended so many bookings of those alive."""

    trusted_time: datetime | None
    held_time: datetime
    held_count: int
    alive_count: int


@dataclass(frozen=True)
class Told:
    """An entry of the timeline."""

    event_id: str
    source: str
    type: str


@dataclass(frozen=True)
class ProviderRefund:
    key: str
    minor: int
    succeeded: bool
    currency: str = ""


@dataclass(frozen=True)
class Charge:
    """What the provider has recorded under a key."""

    key: str
    state: str
    minor: int
    currency: str
    refunds: tuple[ProviderRefund, ...]

    @property
    def captured(self) -> bool:
        return self.state == "CAPTURED"


@dataclass(frozen=True)
class Picture:
    """All that was read; `now` is the reader's clock when it began. Empty where there was no source."""

    now: datetime
    reservations: dict[str, Reservation] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    orders: Sequence[Instruction] = ()
    modifications: Sequence[Modification] = ()
    asked: dict[str, Asked] = field(default_factory=dict)
    requests: Sequence[Request] = ()
    slots: Sequence[Slot] = ()
    deposits: dict[str, Deposit] = field(default_factory=dict)
    refunds: Sequence[Refund] = ()
    forfeits: Sequence[Forfeit] = ()
    applied: Sequence[Applied] = ()
    balances: Sequence[Balance] = ()
    unbalanced: Sequence[Movement] = ()
    bookings: dict[str, Booking] = field(default_factory=dict)
    outgoing: Sequence[Outgoing] = ()
    failing: Sequence[Failing] = ()
    held: Held | None = None
    told: Sequence[Told] = ()
    taken: Mapping[str, Set[str]] = field(default_factory=dict)
    """Event ids by subscriber, of those whose inbox was read."""
    charges: Sequence[Charge] = ()
    dead_letters: Sequence[DeadLetter] = ()
    broker_blocks: bool = False
    """It takes no messages: it is short of memory or disk."""

    def lines_of(self, reservation_id: str) -> Sequence[Line]:
        """The deposits of a reservation."""
        return self._lines_by_reservation.get(reservation_id, ())

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
        return self.now - moment <= age


async def take(sources: Sources, missing: list[str] | None = None) -> Picture:
    """Read all sources, each in one transaction. One that cannot be read raises Unreadable, or, if `missing`
    is given, is named there and left out.

    History is read first: whatever its timeline holds then was in an outbox before.
    """
    now = datetime.now(UTC)
    parts: dict[str, Any] = {}
    outgoing: list[Outgoing] = []
    failing: list[Failing] = []
    taken: dict[str, Set[str]] = {}
    for url, read in (
        (sources.history_db, _history),
        (sources.reservation_db, _reservation),
        (sources.deposit_db, _deposit),
        (sources.restaurant_db, _restaurant),
    ):
        with _tolerating(missing):
            if url is not None:
                found = await asyncio.to_thread(_read, url, read)
                outgoing += found.pop("outgoing", [])
                failing += found.pop("failing", [])
                taken |= found.pop("taken", {})
                parts |= found
    with _tolerating(missing):
        if sources.provider is not None:
            parts["charges"] = await _charges(sources.provider)
    with _tolerating(missing):
        if sources.amqp is not None:
            parts |= await _broker(sources.amqp, sources.queues)
    return Picture(now, outgoing=outgoing, failing=failing, taken=taken, **parts)


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

    def read(connection: Connection) -> dict[str, Any]:
        return {"found": _rows(connection, Refund, "refunds WHERE deposit_id = :id", id=deposit_id)}

    found: list[Refund] = (await asyncio.to_thread(_read, deposit_db, read))["found"]
    return found


async def refused_deposits(deposit_db: str, most: int) -> list[str]:
    """Of at most so many deposits whose refunds the provider refused, the ids. Raises Unreadable."""

    def read(connection: Connection) -> dict[str, Any]:
        query = text("SELECT DISTINCT deposit_id FROM refunds WHERE state = 'FAILED' ORDER BY 1 LIMIT :most")
        return {"found": [row.deposit_id for row in connection.execute(query, {"most": most})]}

    found: list[str] = (await asyncio.to_thread(_read, deposit_db, read))["found"]
    return found


def _reservation(connection: Connection) -> dict[str, Any]:
    reservations = _rows(connection, Reservation, "reservations")
    return {
        "reservations": {one.reservation_id: one for one in reservations},
        "lines": {one.deposit_id: one for one in _rows(connection, Line, "deposits")},
        "orders": _rows(connection, Instruction, "instructions"),
        "modifications": _rows(connection, Modification, "modifications WHERE state = 'OPEN'"),
        "asked": {one.modification_id: one for one in _rows(connection, Asked, "modifications")},
        "requests": _rows(connection, Request, "requests"),
        "slots": _rows(connection, Slot, "slots"),
        "held": next(iter(_rows(connection, Held, "reconcile_clock WHERE held_time IS NOT NULL")), None),
        "failing": _failing(connection, "reservation"),
        "outgoing": _outgoing(connection, "reservation"),
        "taken": _taken(connection, "reservation"),
    }


def _deposit(connection: Connection) -> dict[str, Any]:
    sums = "SELECT {0}, SUM(amount_minor) AS amount_minor FROM ledger_entries GROUP BY {0}"
    by_account = sums.format("deposit_id, account, kind, currency")
    by_movement = sums.format("movement_id, currency") + " HAVING SUM(amount_minor) <> 0"
    return {
        "deposits": {one.deposit_id: one for one in _rows(connection, Deposit, "deposits")},
        "refunds": _rows(connection, Refund, "refunds"),
        "forfeits": _rows(connection, Forfeit, "forfeits"),
        "applied": _rows(connection, Applied, "instructions"),
        "balances": _rows(connection, Balance, f"({by_account}) AS sums"),
        "unbalanced": _rows(connection, Movement, f"({by_movement}) AS sums"),
        "failing": _failing(connection, "deposit"),
        "outgoing": _outgoing(connection, "deposit"),
        "taken": _taken(connection, "deposit"),
    }


def _restaurant(connection: Connection) -> dict[str, Any]:
    return {
        "bookings": {one.reservation_id: one for one in _rows(connection, Booking, "bookings")},
        "outgoing": _outgoing(connection, "restaurant"),
        "taken": _taken(connection, "restaurant"),
    }


def _history(connection: Connection) -> dict[str, Any]:
    return {
        "told": _rows(connection, Told, "timeline_entries"),
        "taken": _taken(connection, "history"),
    }


def _outgoing(connection: Connection, source: str) -> list[Outgoing]:
    query = text("SELECT event_id, routing_key, create_time, sent_time, tries FROM outbox")
    return [
        Outgoing(
            source,
            row.event_id,
            row.routing_key,
            _instant(row.create_time),
            row.sent_time is not None,
            row.tries,
        )
        for row in connection.execute(query)
    ]


def _failing(connection: Connection, service: str) -> list[Failing]:
    return _rows(
        connection, Failing, f"(SELECT '{service}' AS service, f.* FROM reconcile_failures f) AS named"
    )


def _taken(connection: Connection, service: str) -> dict[str, Set[str]]:
    """What the subscribers of a service have taken; an empty set for one that has taken nothing."""
    found: dict[str, set[str]] = {queue: set() for queue in LISTENS if queue.startswith(f"{service}.")}
    for row in connection.execute(text("SELECT subscriber, event_id FROM inbox")):
        found.setdefault(row.subscriber, set()).add(row.event_id)
    return {**found}


def _rows(connection: Connection, kind: type[T], table: str, **parameters: str) -> list[T]:
    """One value for each row; the columns are the fields of the value."""
    columns = fields(kind)  # type: ignore[arg-type]
    query = text(f"SELECT {', '.join(column.name for column in columns)} FROM {table}")
    return [
        kind(*(_value(column.type, cell) for column, cell in zip(columns, row, strict=True)))
        for row in connection.execute(query, parameters)
    ]


def _value(kind: Any, cell: Any) -> Any:
    """Annotations are strings here. SQLite has no booleans, sums may be decimals, times are numbers."""
    if cell is None:
        return None
    if str(kind).startswith("datetime"):
        return _instant(cell)
    return {"bool": bool, "int": int}.get(str(kind), str)(cell)


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _read(url: str, read: Any) -> dict[str, Any]:
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            found: dict[str, Any] = read(connection)
            connection.rollback()
            return found
    except Exception as error:
        name = make_url(url).render_as_string(hide_password=True)
        raise Unreadable(f"{name}: {getattr(error, 'orig', error)}") from error
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    """Read-only, and every query of one reading on the same snapshot."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    if not Path(parsed.database or "").is_file():
        raise Unreadable(f"{url}: there is no such file")
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN DEFERRED")

    return engine


async def _charges(address: str) -> list[Charge]:
    charges: list[Charge] = []
    token = ""
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
            while True:
                request = sandbox_pb2.ListChargesRequest(page_size=PAGE, page_token=token)
                page = await stub.ListCharges(request, timeout=PROVIDER_SECONDS)
                charges += map(_charge, page.charges)
                token = page.next_page_token
                if not token:
                    return charges
    except grpc.aio.AioRpcError as error:
        raise Unreadable(f"the provider at {address}: {error.code().name}") from error


def _charge(charge: sandbox_pb2.Charge) -> Charge:
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


async def _broker(amqp_url: str, queues: Sequence[str]) -> dict[str, Any]:
    try:
        async with connected(amqp_url) as bus:
            found = [letter for queue in queues for letter in await dead_letters_of(bus, queue)]
            return {"dead_letters": found, "broker_blocks": await blocks(bus)}
    except NoBroker as error:
        raise Unreadable(str(error)) from error
