"""Events on their way: all that was committed to an outbox may come to a subscriber now, later, again, and
before what was said earlier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sqlalchemy import Table, select, update

from deposit_svc.persistence import outbox as deposit_outbox
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.store import Transaction
from reservation_svc.persistence.tables import outbox as reservation_outbox
from restaurant_svc.persistence import outbox as restaurant_outbox
from tests.machines.process import Process

OUTBOXES: Mapping[str, Table] = {
    "reservation_svc": reservation_outbox,
    "deposit_svc": deposit_outbox,
    "restaurant_svc": restaurant_outbox,
}
BINDINGS: Mapping[str, str] = {
    "reservation.restaurants": "restaurant.v1.*",
    "reservation.deposits": "deposit.v1.*",
    "deposit.instructions": "reservation.v1.*",
    "restaurant.bookings": "reservation.v1.*",
    "history.timeline": "*",
}


@dataclass(frozen=True)
class Event:
    routing_key: str
    body: bytes


class Bus:
    """`events` grows in the order of the commits of each service."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def collect(self, process: Process) -> None:
        """What the relay of a service would publish now."""
        table = OUTBOXES[process.package]

        def take(tx: Transaction) -> list[Event]:
            unsent = table.c.sent_time.is_(None)
            found = tx.execute(
                select(table.c.routing_key, table.c.envelope).where(unsent).order_by(table.c.position)
            )
            events = [Event(row.routing_key, row.envelope) for row in found]
            if events:
                tx.execute(update(table).where(unsent).values(sent_time=tx.now))
            return events

        if not process.is_dead:
            self.events += process.store.at_once(take)

    def deliver(self, event: Event, process: Process, queue: str, inbox: Inbox) -> None:
        """Once. What goes wrong on the way is delivered again by somebody."""
        if fnmatchcase(event.routing_key, BINDINGS[queue]) and not process.is_dead:
            process.begin(inbox.take(inbox.decode(event.body)))

    def listeners(self, event: Event) -> Iterator[str]:
        return (queue for queue, pattern in BINDINGS.items() if fnmatchcase(event.routing_key, pattern))
