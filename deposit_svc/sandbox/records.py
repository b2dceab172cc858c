"""The provider's own record: one row a key, decided once. SQLite only, by the single writer of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    create_engine,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from deposit_svc.sandbox.tokens import Behaviour
from dinemesh.kit.store import Instant, Transaction

metadata = MetaData()

charges = Table(
    "charges",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("amount_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("decline_code", Text, nullable=False),
    Column("refunds_blocked", Boolean, nullable=False),
    Column("refunded_minor", Integer, nullable=False),
    Column("create_time", Instant, nullable=False),
    CheckConstraint("state IN ('CAPTURED', 'DECLINED', 'CLOSED')"),
    CheckConstraint("refunded_minor BETWEEN 0 AND amount_minor"),
    CheckConstraint("state = 'CAPTURED' OR refunded_minor = 0"),
)

refunds = Table(
    "refunds",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
    Column("charge_key", Text, nullable=False, index=True),
    Column("amount_minor", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("refusal_code", Text, nullable=False),
    Column("create_time", Instant, nullable=False),
    CheckConstraint("state IN ('SUCCEEDED', 'REFUSED')"),
    CheckConstraint("amount_minor > 0"),
)


class ChargeState(Enum):
    """What was decided under a key; CLOSED is one that was forbidden before any charge came."""

    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    CLOSED = "CLOSED"


class RefundState(Enum):
    """What was decided under a refund's key; REFUSED stays so, another key may succeed."""

    SUCCEEDED = "SUCCEEDED"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class Refund:
    """A part of a charge, returned or refused; `minor` is in minor units of the currency."""

    key: str
    charge_key: str
    minor: int
    currency: str
    state: RefundState
    refusal_code: str
    create_time: datetime


@dataclass(frozen=True)
class Charge:
    """What a key came to, with its refunds. Amounts are in minor units; a closed key has 0 and no
    currency."""

    key: str
    state: ChargeState
    minor: int
    currency: str
    body_hash: str
    decline_code: str
    refunds_blocked: bool
    refunded_minor: int
    create_time: datetime
    refunds: tuple[Refund, ...] = ()
    position: int = 0  # in the list; not known of one that was just made


# Built once: whoever inserts the key first has decided it.
_DECIDE = sqlite.insert(charges).on_conflict_do_nothing()


class KeyReused(Exception):
    """The key was used with another body."""


class NoSuchCharge(Exception):
    """No captured charge under this key."""


class ExceedsCharge(Exception):
    """The refunds together would exceed the charge, or are in another currency."""


def create_tables(url: str) -> None:
    """Makes the file ready; idempotent."""
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()


def find(tx: Transaction, key: str) -> Charge | None:
    """The charge or the closed key; None if the key was never seen."""
    row = tx.execute(select(charges).where(charges.c.key == key)).one_or_none()
    return None if row is None else _charges(tx, [row])[0]


def charge(
    tx: Transaction, key: str, minor: int, currency: str, body_hash: str, behaviour: Behaviour
) -> Charge:
    """The charge under `key`: made now, or the one that was there."""
    state = ChargeState.DECLINED if behaviour.decline_code else ChargeState.CAPTURED
    row = {
        "key": key,
        "state": state.value,
        "amount_minor": minor,
        "currency": currency,
        "body_hash": body_hash,
        "decline_code": behaviour.decline_code,
        "refunds_blocked": behaviour.refunds_blocked,
        "refunded_minor": 0,
        "create_time": tx.now,
    }
    if tx.changed(_DECIDE, row) == 1:
        return Charge(
            key,
            state,
            minor,
            currency,
            body_hash,
            behaviour.decline_code,
            behaviour.refunds_blocked,
            0,
            tx.now,
        )
    found = find(tx, key)
    assert found is not None
    if found.state is not ChargeState.CLOSED and found.body_hash != body_hash:
        raise KeyReused
    return found


def close(tx: Transaction, key: str) -> Charge:
    """Forbids a charge under `key`, or tells of the one that was there first: one insert decides."""
    row = {
        "key": key,
        "state": ChargeState.CLOSED.value,
        "amount_minor": 0,
        "currency": "",
        "body_hash": "",
        "decline_code": "",
        "refunds_blocked": False,
        "refunded_minor": 0,
        "create_time": tx.now,
    }
    tx.execute(_DECIDE, row)
    found = find(tx, key)
    assert found is not None
    return found


def refund(tx: Transaction, key: str, charge_key: str, minor: int, currency: str) -> Refund:
    """The refund under `key`: decided now, or as it was decided the first time."""
    row = tx.execute(select(refunds).where(refunds.c.key == key)).one_or_none()
    if row is not None:
        known = _refund(row)
        if (known.charge_key, known.minor, known.currency) != (charge_key, minor, currency):
            raise KeyReused
        return known
    target = find(tx, charge_key)
    if target is None or target.state is not ChargeState.CAPTURED:
        raise NoSuchCharge
    if currency != target.currency or target.refunded_minor + minor > target.minor:
        raise ExceedsCharge
    made = Refund(
        key,
        charge_key,
        minor,
        currency,
        RefundState.REFUSED if target.refunds_blocked else RefundState.SUCCEEDED,
        "refund_blocked" if target.refunds_blocked else "",
        tx.now,
    )
    tx.execute(
        refunds.insert().values(
            key=key,
            charge_key=charge_key,
            amount_minor=minor,
            currency=currency,
            state=made.state.value,
            refusal_code=made.refusal_code,
            create_time=made.create_time,
        )
    )
    if made.state is RefundState.SUCCEEDED:
        tx.execute(
            update(charges)
            .where(charges.c.key == charge_key)
            .values(refunded_minor=charges.c.refunded_minor + minor)
        )
    return made


def lift_refund_block(tx: Transaction, charge_key: str | None) -> int:
    """How many charges were blocked until now; `charge_key` None is all of them."""
    if charge_key is not None and find(tx, charge_key) is None:
        raise NoSuchCharge
    lift = update(charges).where(charges.c.refunds_blocked).values(refunds_blocked=False)
    return tx.changed(lift if charge_key is None else lift.where(charges.c.key == charge_key))


def page(tx: Transaction, after: int, limit: int) -> list[Charge]:
    """Charges in the order of first sight."""
    query = select(charges).where(charges.c.position > after).order_by(charges.c.position).limit(limit)
    return _charges(tx, tx.execute(query).all())


def _charges(tx: Transaction, rows: Sequence[Row[tuple[object, ...]]]) -> list[Charge]:
    keys = [row.key for row in rows]
    by_charge: dict[str, list[Refund]] = {key: [] for key in keys}
    query = select(refunds).where(refunds.c.charge_key.in_(keys)).order_by(refunds.c.position)
    for row in tx.execute(query):
        by_charge[row.charge_key].append(_refund(row))
    return [
        Charge(
            row.key,
            ChargeState(row.state),
            row.amount_minor,
            row.currency,
            row.body_hash,
            row.decline_code,
            row.refunds_blocked,
            row.refunded_minor,
            row.create_time,
            tuple(by_charge[row.key]),
            row.position,
        )
        for row in rows
    ]


def _refund(row: Row[tuple[object, ...]]) -> Refund:
    return Refund(
        row.key,
        row.charge_key,
        row.amount_minor,
        row.currency,
        RefundState(row.state),
        row.refusal_code,
        row.create_time,
    )
