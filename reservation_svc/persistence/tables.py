"""The schema. The CHECK constraints hold what no code may break."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

from dinemesh.kit.failing import failures_table
from dinemesh.kit.inbox import inbox_tables
from dinemesh.kit.outbox import outbox_table
from dinemesh.kit.retention import retention_table
from dinemesh.kit.store import Instant
from reservation_svc import domain

metadata = MetaData()
outbox = outbox_table(metadata)
inbox = inbox_tables(metadata)
failures = failures_table(metadata)
retention = retention_table(metadata)


def _one_of(column: str, kind: type[StrEnum]) -> CheckConstraint:
    values = ", ".join(f"'{value}'" for value in kind)
    return CheckConstraint(f"{column} IN ({values})", name=f"known_{column}")


restaurants = Table(
    "restaurants",
    metadata,
    Column("restaurant_id", Text, primary_key=True),
    Column("time_zone", Text, nullable=False),
    Column("policy", Text, nullable=False),
)

slots = Table(
    "slots",
    metadata,
    Column("restaurant_id", Text, primary_key=True),
    Column("dine_time", Instant, primary_key=True),
    Column("capacity", Integer, nullable=False),
    Column("sold", Integer, nullable=False, server_default=text("0")),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("capacity >= 0", name="capacity_not_negative"),
    CheckConstraint("sold >= 0", name="sold_not_negative"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("restaurant_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("dine_time", Instant, nullable=False),
    Column("party_size", Integer, nullable=False),
    Column("price", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    Column("attempt_deadline", Instant, nullable=False),
    Column("hold_expire_time", Instant, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("accept_deadline", Instant),
    Column("cancelled_by", Text),
    Column("decline_cause", Text),
    Column("failure", Text),
    Column("decline_code", Text, nullable=False),
    # What a read has to fetch besides the row and its deposits; both are empty on most.
    Column("modification_id", Text),
    Column("instruction_count", Integer, nullable=False),
    # How many modifications of another price were begun; the default is for pods that know nothing of it.
    Column("priced_modifications", Integer, nullable=False, server_default=text("0")),
    # When the clock has something to do with it.
    Column("due_time", Instant),
    _one_of("state", domain.State),
    _one_of("cancelled_by", domain.CancelledBy),
    _one_of("decline_cause", domain.DeclineCause),
    _one_of("failure", domain.Failure),
    CheckConstraint("party_size > 0", name="party_not_empty"),
    CheckConstraint("price > 0", name="no_booking_without_a_deposit"),
    CheckConstraint("revision >= 1", name="revision_from_one"),
    CheckConstraint("(state = 'FAILED') = (failure IS NOT NULL)", name="failure_if_failed"),
    CheckConstraint("(state = 'CANCELLED') = (cancelled_by IS NOT NULL)", name="cancelled_by_if_cancelled"),
    CheckConstraint("(state = 'DECLINED') = (decline_cause IS NOT NULL)", name="decline_cause_if_declined"),
)
Index(
    "reservations_of_customer",
    reservations.c.customer_id,
    reservations.c.create_time,
    reservations.c.reservation_id,
)
# Few: an attempt that gets its deposit leaves it.
Index(
    "reservations_unpaid",
    reservations.c.customer_id,
    reservations.c.create_time,
    sqlite_where=reservations.c.accept_deadline.is_(None),
    postgresql_where=reservations.c.accept_deadline.is_(None),
)
Index(
    "reservations_due",
    reservations.c.due_time,
    sqlite_where=reservations.c.due_time.is_not(None),
    postgresql_where=reservations.c.due_time.is_not(None),
)

deposits = Table(
    "deposits",
    metadata,
    Column("deposit_id", Text, primary_key=True),
    Column("reservation_id", Text, ForeignKey("reservations.reservation_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("captured", Boolean, nullable=False),
    _one_of("state", domain.DepositState),
    CheckConstraint("amount > 0", name="amount_positive"),
)
Index("deposits_of_reservation", deposits.c.reservation_id, deposits.c.position, unique=True)

instructions = Table(
    "instructions",
    metadata,
    Column("instruction_id", Text, primary_key=True),
    Column("reservation_id", Text, ForeignKey("reservations.reservation_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("deposit_id", Text, ForeignKey("deposits.deposit_id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    _one_of("kind", domain.Kind),
    _one_of("cause", domain.Cause),
    CheckConstraint(
        "(kind = 'VOID' AND amount = 0) OR (kind <> 'VOID' AND amount > 0)", name="amount_fits_kind"
    ),
)
Index("instructions_of_reservation", instructions.c.reservation_id, instructions.c.position, unique=True)

modifications = Table(
    "modifications",
    metadata,
    Column("modification_id", Text, primary_key=True),
    Column("reservation_id", Text, ForeignKey("reservations.reservation_id"), nullable=False),
    Column("dine_time", Instant, nullable=False),
    Column("party_size", Integer, nullable=False),
    Column("price", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("deposit_id", Text, ForeignKey("deposits.deposit_id"), nullable=False),
    Column("attempt_deadline", Instant, nullable=False),
    Column("hold_expire_time", Instant, nullable=False),
    Column("state", Text, nullable=False),
    Column("failure", Text),
    Column("decline_code", Text, nullable=False),
    _one_of("state", domain.ModificationState),
    _one_of("failure", domain.Failure),
    CheckConstraint("party_size > 0", name="party_not_empty"),
)
Index(
    "one_open_modification",
    modifications.c.reservation_id,
    unique=True,
    sqlite_where=modifications.c.state == "OPEN",
    postgresql_where=modifications.c.state == "OPEN",
)

requests = Table(
    "requests",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("reservation_id", Text, nullable=False),
    Column("modification_id", Text),
)

# One row: by which time of the database's clock what is due may end, and what was held back at a jump of it.
reconcile_clock = Table(
    "reconcile_clock",
    metadata,
    Column("clock", Text, primary_key=True),
    Column("trusted_time", Instant),
    Column("held_time", Instant),
    Column("held_count", Integer, nullable=False),
    Column("alive_count", Integer, nullable=False),
)
