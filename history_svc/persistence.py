"""The tables of the timeline and every statement on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from dinemesh.kit import inbox as kit_inbox
from dinemesh.kit import keyset
from dinemesh.kit.retention import retention_table
from dinemesh.kit.store import Instant, Transaction, insert_once
from history_svc.domain import Archived, Entry, Facts, Kind, Money, Origin, Place, Terms

metadata = MetaData()

# The order of event ids must be the same on both engines, whatever the locale of the database.
_ID = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

timeline_entries = Table(
    "timeline_entries",
    metadata,
    Column("event_id", _ID, primary_key=True),
    Column("position", BigInteger, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("aggregate_id", Text, nullable=False),
    Column("aggregate_version", BigInteger, nullable=False),
    Column("occur_time", Instant, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("reservation_id", Text, nullable=False),
    Column("restaurant_id", Text, nullable=False),
    Column("deposit_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("dine_time", Instant),
    Column("party_size", Integer, nullable=False),
    Column("amount_minor", BigInteger),
    Column("refunded_minor", BigInteger),
    Column("forfeited_minor", BigInteger),
    Column("currency", Text, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Index("timeline_by_customer", "customer_id", "occur_time", "event_id"),
    Index("timeline_by_reservation", "customer_id", "reservation_id", "occur_time", "event_id"),
    Index("timeline_by_arrival", "customer_id", "position"),
)

# One row. Its lock makes the order of positions the order of commits, so that a watch which has seen a
# position has seen every lower one, with several processes writing.
arrivals = Table(
    "arrivals",
    metadata,
    Column("arrivals_id", Integer, primary_key=True),
    Column("last_position", BigInteger, nullable=False),
)

# Every event as it came, for ever: entries are made anew from here. Nothing personal stands in an event but
# the ids that its entry has, too.
archived_events = Table(
    "archived_events",
    metadata,
    Column("event_id", _ID, primary_key=True),
    Column("envelope", LargeBinary, nullable=False),
)

inbox = kit_inbox.inbox_tables(metadata)
retention = retention_table(metadata)

# Built once: to build a statement costs the processor more than to run it.
_NEXT_POSITIONS = (
    update(arrivals)
    .values(last_position=arrivals.c.last_position + bindparam("more"))
    .returning(arrivals.c.last_position)
)
_APPEND = insert_once(timeline_entries)
_ARCHIVE = insert_once(archived_events)


def append(tx: Transaction, entries: Sequence[Entry]) -> None:
    """Add entries, in this order of arrival. One that is there already stays as it is."""
    if not entries:
        return
    last: int = tx.execute(_NEXT_POSITIONS, {"more": len(entries)}).scalar_one()
    first = last - len(entries) + 1
    rows = [{"position": first + n, **_values(entry)} for n, entry in enumerate(entries)]
    tx.execute(_APPEND[tx.dialect], rows)


def archive(tx: Transaction, events: Sequence[Archived]) -> None:
    """Keep events as they came. One that is there already stays as it is."""
    if events:
        tx.execute(_ARCHIVE[tx.dialect], [event._asdict() for event in events])


def archived(tx: Transaction, *, after: str, limit: int) -> list[Archived]:
    """Events as they came, in the order of their ids, after one of them; "" begins."""
    columns = archived_events.c
    query = select(columns.event_id, columns.envelope).where(columns.event_id > after)
    return [
        Archived(row.event_id, row.envelope) for row in tx.execute(query.order_by("event_id").limit(limit))
    ]


def without_event(tx: Transaction) -> int:
    """How many entries there are of events that were not kept as they came."""
    kept = exists().where(archived_events.c.event_id == timeline_entries.c.event_id)
    count: int = tx.execute(select(func.count()).select_from(timeline_entries).where(~kept)).scalar_one()
    return count


def correct(tx: Transaction, entries: Sequence[Entry]) -> int:
    """Make the view have these entries as they are here; returns how many were missing or different. One that
    is there keeps its place in the order of arrival."""
    columns = timeline_entries.c
    mine = columns.event_id.in_([entry.origin.event_id for entry in entries])
    stored = {row.event_id: row._mapping for row in tx.execute(select(timeline_entries).where(mine))}
    missing = [entry for entry in entries if entry.origin.event_id not in stored]
    append(tx, missing)
    changed = len(missing)
    for entry in entries:
        values, before = _values(entry), stored.get(entry.origin.event_id)
        if before is not None and any(before[name] != value for name, value in values.items()):
            tx.execute(
                update(timeline_entries).where(columns.event_id == entry.origin.event_id).values(values)
            )
            changed += 1
    return changed


def last_position(tx: Transaction) -> int:
    """The newest arrival."""
    position: int = tx.execute(select(arrivals.c.last_position)).scalar_one()
    return position


def knows(tx: Transaction, customer_id: str, reservation_id: str) -> bool:
    """Whether this customer has an entry of this reservation."""
    return tx.execute(_of(customer_id, reservation_id).limit(1)).first() is not None


def in_order(
    tx: Transaction,
    customer_id: str,
    reservation_id: str,
    *,
    after: Place | None,
    limit: int,
) -> list[tuple[int, Entry]]:
    """Entries by occur_time and event_id, with the positions of their arrival, from a place on."""
    order = timeline_entries.c.occur_time, timeline_entries.c.event_id
    query = _of(customer_id, reservation_id).order_by(*order).limit(limit)
    if after is not None:
        query = query.where(keyset.after(order, after))
    return [(row.position, _entry(row)) for row in tx.execute(query)]


def arrived(tx: Transaction, customer_id: str, *, after: int, limit: int) -> list[tuple[int, Entry]]:
    """Entries of all the customer's reservations by arrival, with their positions, after a position."""
    position = timeline_entries.c.position
    query = _of(customer_id, "").where(position > after).order_by(position).limit(limit)
    return [(row.position, _entry(row)) for row in tx.execute(query)]


def contents(tx: Transaction) -> Iterator[tuple[Any, ...]]:
    """All that the view holds, in a fixed order, without the order of arrival, which a rebuild changes."""
    columns = [column for column in timeline_entries.c if column.name != "position"]
    for row in tx.execute(select(*columns).order_by(timeline_entries.c.event_id)):
        yield tuple(row)


def forget(tx: Transaction, subscriber: str) -> None:
    """Forget what a subscriber took: it reads the log again, for what is missing here."""
    kit_inbox.forget(tx, inbox, subscriber)


def _of(customer_id: str, reservation_id: str) -> Select[Any]:
    query = select(timeline_entries).where(timeline_entries.c.customer_id == customer_id)
    if reservation_id:
        query = query.where(timeline_entries.c.reservation_id == reservation_id)
    return query


def _values(entry: Entry) -> dict[str, Any]:
    origin, facts = entry.origin, entry.facts
    amounts = (facts.amount, facts.refunded, facts.forfeited)
    return {
        "event_id": origin.event_id,
        "kind": entry.kind.value,
        "type": origin.type,
        "source": origin.source,
        "aggregate_id": origin.aggregate_id,
        "aggregate_version": origin.aggregate_version,
        "occur_time": origin.occur_time,
        "customer_id": origin.customer_id,
        "reservation_id": origin.reservation_id,
        "restaurant_id": facts.restaurant_id,
        "deposit_id": facts.deposit_id,
        "state": facts.state,
        "revision": facts.revision,
        "dine_time": facts.terms.dine_time if facts.terms else None,
        "party_size": facts.terms.party_size if facts.terms else 0,
        "amount_minor": facts.amount.minor if facts.amount else None,
        "refunded_minor": facts.refunded.minor if facts.refunded else None,
        "forfeited_minor": facts.forfeited.minor if facts.forfeited else None,
        "currency": next((amount.currency for amount in amounts if amount), ""),
        "correlation_id": origin.correlation_id,
        "causation_id": origin.causation_id,
        "summary": entry.summary,
    }


def _entry(row: Row[Any]) -> Entry:
    origin = Origin(
        event_id=row.event_id,
        type=row.type,
        source=row.source,
        aggregate_id=row.aggregate_id,
        aggregate_version=row.aggregate_version,
        occur_time=row.occur_time,
        customer_id=row.customer_id,
        reservation_id=row.reservation_id,
        correlation_id=row.correlation_id,
        causation_id=row.causation_id,
    )
    facts = Facts(
        restaurant_id=row.restaurant_id,
        deposit_id=row.deposit_id,
        state=row.state,
        revision=row.revision,
        terms=Terms(row.dine_time, row.party_size) if row.dine_time else None,
        amount=_money(row.amount_minor, row.currency),
        refunded=_money(row.refunded_minor, row.currency),
        forfeited=_money(row.forfeited_minor, row.currency),
    )
    return Entry(origin, Kind(row.kind), facts, row.summary)


def _money(minor: int | None, currency: str) -> Money | None:
    return None if minor is None else Money(minor, currency)
