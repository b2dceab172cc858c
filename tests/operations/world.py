"""A small mesh at rest, made of rows: the real schemas, a provider's record, a few reservations in order.

A test damages it in one place, and the audit must see it.
"""

from __future__ import annotations

import itertools
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from sqlalchemy import MetaData, Table, create_engine, insert, text

from dinemesh.kit import wire
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from operations.broker import LISTENS
from operations.snapshot import Sources

SERVICES = ("reservation", "deposit", "restaurant", "history")
RESTAURANT = "trattoria"
PRICE = 8000
PARTY = 4
SERVICE_SECONDS = 7200
POLICY = json.dumps({"currency": "EUR", "service_duration_seconds": SERVICE_SECONDS})
UNMARKED = timedelta(hours=24)
_CLOCKED = ("PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED", "SEATED")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_POSTINGS = {
    "CHARGE_CAPTURED": ("PROVIDER_CLEARING", "CUSTOMER_DEPOSITS"),
    "REFUND_ORDERED": ("CUSTOMER_DEPOSITS", "REFUNDS_PAYABLE"),
    "REFUND_SUCCEEDED": ("REFUNDS_PAYABLE", "PROVIDER_CLEARING"),
    "REFUND_FAILED": ("REFUNDS_PAYABLE", "REFUNDS_FAILED"),
    "DEPOSIT_FORFEITED": ("CUSTOMER_DEPOSITS", "FORFEITURE_INCOME"),
}


def micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Kept:
    """The ids of a reservation of the world and of its deposit."""

    reservation_id: str
    deposit_id: str
    return_id: str
    """Of its refund or forfeit."""


class Record(sandbox_pb2_grpc.SandboxServiceServicer):
    """The provider's record, as its bookkeeper shows it; the pages are small."""

    def __init__(self) -> None:
        self.charges: list[sandbox_pb2.Charge] = []
        self._server = grpc.server(ThreadPoolExecutor(max_workers=1))
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def ListCharges(
        self, request: sandbox_pb2.ListChargesRequest, context: object
    ) -> sandbox_pb2.ListChargesResponse:
        first = int(request.page_token or 0)
        after = first + 2
        token = str(after) if after < len(self.charges) else ""
        return sandbox_pb2.ListChargesResponse(charges=self.charges[first:after], next_page_token=token)

    def close(self) -> None:
        self._server.stop(None)


class World:
    """Databases by service, and the provider. Everything in it is an hour old."""

    def __init__(self, urls: dict[str, str], provider: Record) -> None:
        self.urls = urls
        self.provider = provider
        self.then = datetime.now(UTC) - timedelta(hours=1)
        self.dine_time = datetime(2030, 5, 17, 19, 0, tzinfo=UTC)
        self._engines = {name: create_engine(url) for name, url in urls.items()}
        for engine in self._engines.values():
            if engine.dialect.name == "sqlite":
                with engine.connect() as connection:  # as the services' store does: who reads stops no writer
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        self._tables: dict[str, MetaData] = {}
        for name, engine in self._engines.items():
            self._tables[name] = MetaData()
            self._tables[name].reflect(engine)
        self._seats = 0
        self._positions = itertools.count()
        self.confirmed = self._booked("CONFIRMED", "ACCEPTED", PARTY)
        self.cancelled = self._booked("CANCELLED", "WITHDRAWN", 0, cancelled_by="CUSTOMER")
        self._refund(self.cancelled, "SUCCEEDED")
        self.no_show = self._booked("NO_SHOW", "NO_SHOW", PARTY)
        self._forfeit(self.no_show)
        self.insert("reservation", "slots", **self.slot, capacity=20, sold=self._seats, version=1)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()

    @property
    def sources(self) -> Sources:
        databases = {f"{name}_db": url for name, url in self.urls.items()}
        return Sources(provider=self.provider.address, **databases)

    @property
    def then_micros(self) -> int:
        return micros(self.then)

    @property
    def end(self) -> int:
        """When a booking ends by itself."""
        return micros(self.dine_time + timedelta(seconds=SERVICE_SECONDS) + UNMARKED)

    @property
    def slot(self) -> dict[str, Any]:
        return {"restaurant_id": RESTAURANT, "dine_time": micros(self.dine_time)}

    def insert(self, service: str, table: str, **row: Any) -> None:
        """Inserts a row; what it leaves out and must not be null is empty or an hour old."""
        found = self._tables[service].tables[table]
        with self._engines[service].begin() as connection:
            connection.execute(insert(found).values(_filled(found, row, micros(self.then))))

    def execute(self, service: str, statement: str, **parameters: Any) -> None:
        """Damages something: fails if it changes nothing."""
        with self._engines[service].begin() as connection:
            assert connection.execute(text(statement), parameters).rowcount > 0, statement

    def charge(self, key: str, minor: int = PRICE, currency: str = "EUR") -> None:
        """A charge in the provider's own record."""
        self.provider.charges.append(
            sandbox_pb2.Charge(
                key=key, state=sandbox_pb2.CHARGE_STATE_CAPTURED, amount=wire.to_money(minor, currency)
            )
        )

    def pay_back(self, key: str, charge_key: str, minor: int = PRICE, currency: str = "EUR") -> None:
        """A refund in the provider's own record."""
        charge = next(charge for charge in self.provider.charges if charge.key == charge_key)
        charge.refunds.add(
            key=key,
            charge_key=charge_key,
            amount=wire.to_money(minor, currency),
            state=sandbox_pb2.REFUND_STATE_SUCCEEDED,
        )

    def post(self, kind: str, cause: str, deposit_id: str, minor: int, currency: str = "EUR") -> None:
        """A movement in the ledger."""
        debit, credit = _POSTINGS[kind]
        for account, amount in ((debit, minor), (credit, -minor)):
            self.entry(kind, cause, deposit_id, account, amount, currency)

    def entry(
        self, kind: str, cause: str, deposit_id: str, account: str, minor: int, currency: str = "EUR"
    ) -> None:
        """One side of a movement."""
        self.insert(
            "deposit",
            "ledger_entries",
            movement_id=f"{kind}/{cause}",
            kind=kind,
            deposit_id=deposit_id,
            account=account,
            amount_minor=minor,
            currency=currency,
        )

    def event(
        self,
        service: str,
        *,
        told: bool = True,
        sent: bool = True,
        heard: bool = True,
        at: datetime | None = None,
    ) -> str:
        """An event in a service's outbox, in the inboxes of those who listen to it, and in the timeline."""
        event_id = str(uuid.uuid4())
        moment = micros(at or self.then)
        row = {"event_id": event_id, "aggregate_id": "a", "routing_key": f"{service}.v1.happened"}
        sent_time = moment if sent else None
        self.insert(service, "outbox", **row, envelope=b"-", create_time=moment, sent_time=sent_time)
        for queue, sources in LISTENS.items():
            if heard and sent and service in sources:
                self.hear(event_id, queue)
        if told:
            self.tell(event_id, service, moment)
        return event_id

    def hear(self, event_id: str, queue: str) -> None:
        """An event in the inbox of a subscriber."""
        self.insert(queue.partition(".")[0], "inbox", subscriber=queue, event_id=event_id)

    def tell(self, event_id: str, source: str, occur_time: int | None = None) -> None:
        """An entry of the timeline."""
        kind = f"dinemesh.{source}.v1.Happened"
        position = uuid.uuid4().int % 2**62
        self.insert(
            "history",
            "timeline_entries",
            event_id=event_id,
            source=source,
            type=kind,
            position=position,
            occur_time=occur_time or self.then_micros,
        )

    def reservation(self, reservation_id: str, state: str, *, asked: bool = True, **fields: Any) -> None:
        """A reservation, and the row of the request that it was asked for by."""
        due = fields.get("hold_expire_time", self.then_micros) if state == "PENDING_DEPOSIT" else self.end
        values: dict[str, Any] = {
            "hold_expire_time": self.then_micros,
            "price": PRICE,
            "party_size": PARTY,
            "revision": 1,
            "policy": POLICY,
            "due_time": due if state in _CLOCKED else None,
        }
        mine = {"reservation_id": reservation_id, "customer_id": "alice", "state": state, **self.slot}
        self.insert("reservation", "reservations", **(mine | values | fields))
        if asked:
            self.request(reservation_id)

    def request(self, reservation_id: str, modification_id: str | None = None, **fields: Any) -> None:
        """The row of a request id."""
        mine = {"customer_id": "alice", "request_id": str(uuid.uuid4()), "reservation_id": reservation_id}
        self.insert("reservation", "requests", **(mine | {"modification_id": modification_id} | fields))

    def line(self, deposit_id: str, reservation_id: str, *, captured: bool = True, **fields: Any) -> None:
        """A deposit as reservation knows it."""
        values = {"amount": PRICE, "state": "CAPTURED", "position": 0} | fields
        self.insert(
            "reservation",
            "deposits",
            deposit_id=deposit_id,
            reservation_id=reservation_id,
            captured=captured,
            **values,
        )

    def deposit(self, deposit_id: str, reservation_id: str, state: str = "CAPTURED", **fields: Any) -> None:
        captured = PRICE if state == "CAPTURED" else 0
        settle_time = micros(self.then) if state in ("PENDING", "VOIDING") else None
        values: dict[str, Any] = {
            "deposit_id": deposit_id,
            "customer_id": "alice",
            "reservation_id": reservation_id,
            "amount_minor": PRICE,
            "captured_minor": captured,
            "currency": "EUR",
            "state": state,
            "settle_time": settle_time,
        }
        self.insert("deposit", "deposits", **(values | fields))

    def order(self, kind: str, kept: Kept, minor: int = PRICE, *, heard: bool = True) -> None:
        """An instruction of reservation, and that deposit has heard it."""
        instruction_id = kept.deposit_id if kind == "VOID" else kept.return_id
        self.insert(
            "reservation",
            "instructions",
            instruction_id=instruction_id,
            reservation_id=kept.reservation_id,
            kind=kind,
            deposit_id=kept.deposit_id,
            amount=minor,
            cause="CANCELLED",
        )
        if heard:
            row = {"kind": kind, "instruction_id": instruction_id, "deposit_id": kept.deposit_id}
            self.insert("deposit", "instructions", **row, amount_minor=minor, currency="EUR", state="APPLIED")

    def _booked(self, state: str, booking_state: str, seats: int, **fields: Any) -> Kept:
        kept = Kept(str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()))
        self._seats += seats
        self.reservation(kept.reservation_id, state, **fields)
        self.line(kept.deposit_id, kept.reservation_id)
        self.deposit(kept.deposit_id, kept.reservation_id)
        self.charge(kept.deposit_id)
        self.post("CHARGE_CAPTURED", kept.deposit_id, kept.deposit_id, PRICE)
        self.booking(kept.reservation_id, booking_state)
        for service in ("reservation", "deposit", "restaurant"):
            self.event(service)
        return kept

    def booking(self, reservation_id: str, state: str, **fields: Any) -> None:
        values: dict[str, Any] = {"customer_id": "alice", "revision": 1, "party_size": PARTY, **self.slot}
        values |= {"confirmed": state == "ACCEPTED"}
        self.insert("restaurant", "bookings", reservation_id=reservation_id, state=state, **(values | fields))

    def _refund(self, kept: Kept, state: str) -> None:
        self.order("REFUND", kept)
        self.refund_row(kept, state)
        self.post("REFUND_ORDERED", kept.return_id, kept.deposit_id, PRICE)
        self.post("REFUND_SUCCEEDED", kept.return_id, kept.deposit_id, PRICE)
        self.pay_back(kept.return_id, kept.deposit_id)
        self.execute(
            "deposit",
            f"UPDATE deposits SET refunded_minor = {PRICE} WHERE deposit_id = :id",
            id=kept.deposit_id,
        )

    def refuse_refund(self) -> Kept:
        """The confirmed reservation is cancelled, and the provider refuses to give its deposit back."""
        kept = Kept(self.confirmed.reservation_id, self.confirmed.deposit_id, str(uuid.uuid4()))
        change = "UPDATE reservations SET state = 'CANCELLED', cancelled_by = 'CUSTOMER'"
        self.execute("reservation", f"{change} WHERE reservation_id = :id", id=kept.reservation_id)
        self.execute("reservation", "UPDATE slots SET sold = sold - :seats", seats=PARTY)
        change = "UPDATE bookings SET state = 'WITHDRAWN', confirmed = :no WHERE state = 'ACCEPTED'"
        self.execute("restaurant", change, no=False)
        self.order("REFUND", kept)
        self.refund_row(kept, "FAILED")
        self.post("REFUND_ORDERED", kept.return_id, kept.deposit_id, PRICE)
        self.post("REFUND_FAILED", kept.return_id, kept.deposit_id, PRICE)
        change = "UPDATE deposits SET refund_failed_minor = :all WHERE deposit_id = :id"
        self.execute("deposit", change, all=PRICE, id=kept.deposit_id)
        return kept

    def refund_row(self, kept: Kept, state: str, minor: int = PRICE) -> None:
        settle_time = micros(self.then) if state == "PENDING" else None
        self.insert(
            "deposit",
            "refunds",
            refund_id=kept.return_id,
            deposit_id=kept.deposit_id,
            position=next(self._positions),
            amount_minor=minor,
            state=state,
            settle_time=settle_time,
        )

    def _forfeit(self, kept: Kept) -> None:
        self.order("FORFEIT", kept)
        self.insert(
            "deposit",
            "forfeits",
            forfeit_id=kept.return_id,
            deposit_id=kept.deposit_id,
            position=0,
            amount_minor=PRICE,
        )
        self.post("DEPOSIT_FORFEITED", kept.return_id, kept.deposit_id, PRICE)
        self.execute(
            "deposit",
            f"UPDATE deposits SET forfeited_minor = {PRICE} WHERE deposit_id = :id",
            id=kept.deposit_id,
        )


def _filled(table: Table, row: dict[str, Any], moment: int) -> dict[str, Any]:
    filled = dict(row)
    for column in table.columns:
        if column.name in row or column.nullable or column.autoincrement is True or column.server_default:
            continue
        if column.name == "position" and column.primary_key:
            continue
        kind: type = column.type.python_type
        if column.name.endswith(("_time", "_deadline")):
            filled[column.name] = moment
        else:
            filled[column.name] = "" if kind is str else kind("version" in column.name)
    return filled
