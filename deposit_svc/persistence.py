"""Deposits, refunds, forfeits, instructions and the ledger in SQL: the only place that knows the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    delete,
    func,
    literal,
    not_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from deposit_svc.domain import (
    POSTINGS,
    Account,
    Applied,
    Deposit,
    Forfeit,
    ForfeitOrder,
    Instruction,
    Money,
    Movement,
    Refund,
    RefundOrder,
    RefundState,
    State,
    Step,
    VoidOrder,
)
from dinemesh.kit import keyset
from dinemesh.kit.call import current
from dinemesh.kit.failing import failures_table, rests
from dinemesh.kit.inbox import inbox_tables
from dinemesh.kit.outbox import outbox_table
from dinemesh.kit.retention import retention_table
from dinemesh.kit.store import Instant, Transaction, insert_once

metadata = MetaData()
outbox = outbox_table(metadata)
inbox = inbox_tables(metadata)
retention = retention_table(metadata)
failures = failures_table(metadata)


def _one_of(column: str, names: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(repr(name) for name in names)})"


def _posting_rule() -> str:
    rules = (
        f"(kind = '{kind.value}' AND ((account = '{debit.value}' AND amount_minor > 0)"
        f" OR (account = '{credit.value}' AND amount_minor < 0)))"
        for kind, (debit, credit) in POSTINGS.items()
    )
    return " OR ".join(rules)


deposits = Table(
    "deposits",
    metadata,
    Column("deposit_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("reservation_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("void_ordered", Boolean, nullable=False),
    Column("decline_code", Text, nullable=False),
    Column("captured_minor", BigInteger, nullable=False),
    Column("refunding_minor", BigInteger, nullable=False),
    Column("refunded_minor", BigInteger, nullable=False),
    Column("refund_failed_minor", BigInteger, nullable=False),
    Column("forfeited_minor", BigInteger, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    # When it is reconciled next; NULL when nothing is open. Also the lease of the pod that is at it.
    Column("settle_time", Instant),
    Column("settle_tries", Integer, nullable=False),
    # Whose request it is that reconciling works on.
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text, nullable=False),
    CheckConstraint(_one_of("state", [state.value for state in State]), name="deposits_state"),
    CheckConstraint("amount_minor > 0 OR (amount_minor = 0 AND state = 'VOIDED')", name="deposits_amount"),
    CheckConstraint(
        "captured_minor = CASE WHEN state = 'CAPTURED' THEN amount_minor ELSE 0 END", name="deposits_captured"
    ),
    CheckConstraint(
        "refunding_minor >= 0 AND refunded_minor >= 0 AND refund_failed_minor >= 0 AND forfeited_minor >= 0",
        name="deposits_parts",
    ),
    CheckConstraint(
        "captured_minor - refunding_minor - refunded_minor - refund_failed_minor - forfeited_minor >= 0",
        name="deposits_held",
    ),
    CheckConstraint(
        "state NOT IN ('PENDING', 'VOIDING') OR settle_time IS NOT NULL", name="deposits_settled"
    ),
)
Index("deposits_of_customer", deposits.c.customer_id, deposits.c.create_time, deposits.c.deposit_id)
Index("deposits_of_reservation", deposits.c.reservation_id)
_open_deposits = deposits.c.settle_time.is_not(None)
Index(
    "deposits_to_settle",
    deposits.c.settle_time,
    sqlite_where=_open_deposits,
    postgresql_where=_open_deposits,
)

refunds = Table(
    "refunds",
    metadata,
    Column("refund_id", Text, primary_key=True),
    Column("deposit_id", Text, ForeignKey("deposits.deposit_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failure_code", Text, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    Column("settle_time", Instant),
    Column("settle_tries", Integer, nullable=False),
    # Whose request it is that reconciling works on.
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text, nullable=False),
    CheckConstraint(_one_of("state", [state.value for state in RefundState]), name="refunds_state"),
    CheckConstraint("amount_minor > 0", name="refunds_amount"),
    CheckConstraint("attempt >= 0", name="refunds_attempt"),
    CheckConstraint("(state = 'PENDING') = (settle_time IS NOT NULL)", name="refunds_settled"),
    UniqueConstraint("deposit_id", "position", name="refunds_position"),
)
_open_refunds = refunds.c.settle_time.is_not(None)
Index("refunds_to_settle", refunds.c.settle_time, sqlite_where=_open_refunds, postgresql_where=_open_refunds)
_failed_refunds = refunds.c.state == RefundState.FAILED.value
Index("refunds_failed", refunds.c.state, sqlite_where=_failed_refunds, postgresql_where=_failed_refunds)

forfeits = Table(
    "forfeits",
    metadata,
    Column("forfeit_id", Text, primary_key=True),
    Column("deposit_id", Text, ForeignKey("deposits.deposit_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("create_time", Instant, nullable=False),
    CheckConstraint("amount_minor > 0", name="forfeits_amount"),
    UniqueConstraint("deposit_id", "position", name="forfeits_position"),
)

instructions = Table(
    "instructions",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("instruction_id", Text, primary_key=True),
    Column("deposit_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("correlation_id", Text, nullable=False),
    Column("causation_id", Text, nullable=False),
    CheckConstraint("kind IN ('VOID', 'REFUND', 'FORFEIT')", name="instructions_kind"),
    CheckConstraint(_one_of("state", [state.value for state in Applied]), name="instructions_state"),
)
_waiting = instructions.c.state == Applied.WAITING.value
Index("instructions_waiting", instructions.c.deposit_id, sqlite_where=_waiting, postgresql_where=_waiting)

# Append-only (a trigger of the migration refuses anything else). All entries of a movement sum to zero.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("movement_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("deposit_id", Text, ForeignKey("deposits.deposit_id"), nullable=False),
    Column("account", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("record_time", Instant, nullable=False),
    CheckConstraint(_posting_rule(), name="ledger_entries_posting"),
    UniqueConstraint("movement_id", "account", name="ledger_entries_once"),
)
Index("ledger_entries_of_deposit", ledger_entries.c.deposit_id)


# Statements of every charge, built once: building them anew costs more than running them.

_ADD = insert_once(deposits)
_RECORD = insert_once(instructions)
_FIND = select(deposits).where(deposits.c.deposit_id == bindparam("key"))
_REFUNDS_OF, _FORFEITS_OF = (
    select(table)
    .where(table.c.deposit_id.in_(bindparam("captured", expanding=True)))
    .order_by(table.c.position)
    for table in (refunds, forfeits)
)
_MOVE = update(deposits).where(
    deposits.c.deposit_id == bindparam("key"),
    deposits.c.version == bindparam("version_before"),
    deposits.c.state == bindparam("state_before"),
)


def _is_due(table: Table) -> ColumnElement[bool]:
    """Also what is scheduled for later than anything is: the clock was ahead then."""
    at = table.c.settle_time
    return (at <= bindparam("now", type_=Instant)) | (at > bindparam("latest", type_=Instant))


def _claim(table: Table, key: Column[str]) -> ReturningUpdate[Any]:
    """One statement, however many it takes; what another pod is just taking is passed over."""
    is_due = _is_due(table)
    first = select(key).where(is_due).order_by(table.c.settle_time).limit(bindparam("most"))
    picked = first.with_for_update(skip_locked=True).cte("picked")
    return (
        update(table)
        .where(key.in_(select(picked.c[key.name])), is_due)
        .values(settle_time=bindparam("until", type_=Instant), settle_tries=table.c.settle_tries + 1)
        .returning(table)
    )


_CLAIM_CHARGES = _claim(deposits, deposits.c.deposit_id)
_CLAIM_REFUNDS = _claim(refunds, refunds.c.refund_id)
_CURRENCIES = select(deposits.c.deposit_id, deposits.c.currency).where(
    deposits.c.deposit_id.in_(bindparam("wanted", expanding=True))
)
_DUE = tuple(select(literal(1)).where(_is_due(table)).limit(1) for table in (deposits, refunds))
_NOT_OPEN_ANY_MORE = delete(failures).where(
    failures.c.subject.not_in(
        select(literal("CHARGE/") + deposits.c.deposit_id)
        .where(_open_deposits)
        .union_all(
            select(literal("REFUND/") + refunds.c.refund_id).where(_open_refunds),
            select(literal("INSTRUCTION/") + instructions.c.kind + "/" + instructions.c.instruction_id).where(
                _waiting
            ),
        )
    )
)


# Deposits


def add(tx: Transaction, deposit: Deposit, settle_time: datetime | None) -> bool:
    """Inserts a new deposit; False when its id is taken."""
    row = {
        "deposit_id": deposit.deposit_id,
        "customer_id": deposit.customer_id,
        "reservation_id": deposit.reservation_id,
        "amount_minor": deposit.amount.minor,
        "currency": deposit.amount.currency,
        "body_hash": deposit.body_hash,
        "create_time": deposit.create_time,
    }
    return tx.changed(_ADD[tx.dialect], row | _changing(deposit, settle_time) | _cause()) == 1


def find(tx: Transaction, deposit_id: str) -> Deposit | None:
    """The deposit with its refunds and forfeits; None if its id is unknown."""
    row = tx.execute(_FIND, {"key": deposit_id}).one_or_none()
    return None if row is None else _loaded(tx, [row])[0]


def known(tx: Transaction, deposit_id: str) -> bool:
    """Whether the id is taken, also by a tombstone; reads less than `find`."""
    query = select(deposits.c.deposit_id).where(deposits.c.deposit_id == deposit_id)
    return tx.execute(query).one_or_none() is not None


def save(tx: Transaction, before: Deposit, step: Step) -> bool:
    """Writes a step if the deposit is still as it was `before`; False: read again and decide."""
    after = step.deposit
    # An open deposit or refund is due at once; whoever reconciles it claims it first.
    settle_time = after.update_time if after.state in (State.PENDING, State.VOIDING) else None
    row = _changing(after, settle_time)
    if settle_time:
        row |= _cause()
    expected = {
        "key": before.deposit_id,
        "version_before": before.version,
        "state_before": before.state.value,
    }
    if tx.changed(_MOVE, row | expected) == 0:
        return False
    _save_refunds(tx, before, after)
    new = [
        {
            "forfeit_id": forfeit.forfeit_id,
            "deposit_id": after.deposit_id,
            "position": position,
            "amount_minor": forfeit.amount.minor,
            "create_time": forfeit.create_time,
        }
        # They are only ever added.
        for position, forfeit in enumerate(after.forfeits[len(before.forfeits) :], len(before.forfeits))
    ]
    if new:
        tx.execute(forfeits.insert(), new)
    if step.movements:
        _post(tx, after, step.movements)
    return True


def _save_refunds(tx: Transaction, before: Deposit, after: Deposit) -> None:
    known = {refund.refund_id: refund for refund in before.refunds}
    for position, refund in enumerate(after.refunds):
        earlier = known.get(refund.refund_id)
        if refund == earlier:
            continue
        row = {
            "state": refund.state.value,
            "attempt": refund.attempt,
            "failure_code": refund.failure_code,
            "update_time": refund.update_time,
            "settle_time": refund.update_time if refund.state is RefundState.PENDING else None,
            "settle_tries": 0,
        }
        if refund.state is RefundState.PENDING:
            row |= _cause()
        if earlier is None:
            row |= {
                "refund_id": refund.refund_id,
                "deposit_id": after.deposit_id,
                "position": position,
                "amount_minor": refund.amount.minor,
                "create_time": refund.create_time,
            }
            tx.execute(refunds.insert(), row)
        else:
            tx.execute(update(refunds).where(refunds.c.refund_id == refund.refund_id).values(row))


def _post(tx: Transaction, deposit: Deposit, movements: Sequence[Movement]) -> None:
    tx.execute(
        ledger_entries.insert(),
        [
            {
                "movement_id": f"{movement.kind.value}/{movement.cause}",
                "kind": movement.kind.value,
                "deposit_id": deposit.deposit_id,
                "account": entry.account.value,
                "amount_minor": entry.minor,
                "currency": movement.amount.currency,
                "record_time": deposit.update_time,
            }
            for movement in movements
            for entry in movement.entries
        ],
    )


def of_customer(
    tx: Transaction,
    customer_id: str,
    reservation_id: str,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Deposit]:
    """The customer's deposits (`reservation_id` "": all), newest first, those older than `before`."""
    query = select(deposits).where(deposits.c.customer_id == customer_id)
    if reservation_id:
        query = query.where(deposits.c.reservation_id == reservation_id)
    if before is not None:
        query = query.where(keyset.before((deposits.c.create_time, deposits.c.deposit_id), before))
    query = query.order_by(deposits.c.create_time.desc(), deposits.c.deposit_id.desc()).limit(limit)
    return _loaded(tx, tx.execute(query).all())


# Instructions


def record(tx: Transaction, instruction: Instruction) -> bool:
    """Notes an instruction as WAITING; False when it was heard before."""
    amount = Money(0, "") if isinstance(instruction, VoidOrder) else instruction.amount
    row = {
        "kind": _KINDS[type(instruction)],
        "instruction_id": instruction.instruction_id,
        "deposit_id": instruction.deposit_id,
        "amount_minor": amount.minor,
        "currency": amount.currency,
        "state": Applied.WAITING.value,
        "create_time": tx.now,
    } | _cause()
    return tx.changed(_RECORD[tx.dialect], row) == 1


def note(tx: Transaction, instruction: Instruction, applied: Applied) -> None:
    """What became of an instruction that this transaction recorded or took."""
    tx.execute(update(instructions).where(_key_of(instruction)).values(state=applied.value))


def take_waiting(tx: Transaction, instruction: Instruction) -> bool:
    """Takes an instruction out of WAITING; False when somebody else did."""
    guarded = update(instructions).where(_key_of(instruction), _waiting)
    return tx.changed(guarded.values(state=Applied.APPLIED.value)) == 1


@dataclass(frozen=True)
class Cause:
    """Whose request something belongs to, and which event led to it."""

    correlation_id: str
    causation_id: str


def waiting(tx: Transaction, limit: int) -> list[tuple[Instruction, Cause]]:
    """Instructions that waited for the outcome of a charge that is decided by now, oldest first; without
    those that failed and rest."""
    name = literal("INSTRUCTION/") + instructions.c.kind + "/" + instructions.c.instruction_id
    query = (
        select(instructions)
        .join(deposits, deposits.c.deposit_id == instructions.c.deposit_id)
        .where(
            _waiting,
            deposits.c.state.not_in([State.PENDING.value, State.VOIDING.value]),
            not_(rests(tx, failures, name)),
        )
        .order_by(instructions.c.create_time, instructions.c.instruction_id)
        .limit(limit)
    )
    return [(_instruction(row), _cause_of(row)) for row in tx.execute(query)]


# What reconciling has to do


@dataclass(frozen=True)
class OpenCharge:
    """A deposit whose charge is undecided. `tries` counts how often reconciling claimed it."""

    deposit_id: str
    state: State
    tries: int
    cause: Cause

    @property
    def name(self) -> str:
        """Under which its failures are counted."""
        return f"CHARGE/{self.deposit_id}"


@dataclass(frozen=True)
class OpenRefund:
    """A refund that the provider has not answered definitely."""

    deposit_id: str
    refund: Refund
    tries: int
    cause: Cause

    @property
    def name(self) -> str:
        """Under which its failures are counted."""
        return f"REFUND/{self.refund.refund_id}"


Open = OpenCharge | OpenRefund


AHEAD = timedelta(hours=1)
"""Nothing is scheduled for so much later, unless the settings say so."""


def is_due(tx: Transaction, ahead: timedelta = AHEAD) -> bool:
    """Whether there is anything to claim; `ahead`: nothing is scheduled for later than that."""
    times = {"now": tx.now, "latest": tx.now + ahead}
    return any(tx.execute(query, times).one_or_none() is not None for query in _DUE)


def claim_charges(tx: Transaction, most: int, lease: timedelta, ahead: timedelta = AHEAD) -> list[OpenCharge]:
    """Takes up to `most` undecided charges, those first that are due longest. Other pods, and this one, keep
    off them for the time of the lease."""
    times = {"now": tx.now, "latest": tx.now + ahead, "until": tx.now + lease}
    rows = tx.execute(_CLAIM_CHARGES, times | {"most": most})
    return [
        OpenCharge(row.deposit_id, State(row.state), row.settle_tries - 1, _cause_of(row)) for row in rows
    ]


def claim_refunds(tx: Transaction, most: int, lease: timedelta, ahead: timedelta = AHEAD) -> list[OpenRefund]:
    """The same of refunds."""
    times = {"now": tx.now, "latest": tx.now + ahead, "until": tx.now + lease}
    rows = tx.execute(_CLAIM_REFUNDS, times | {"most": most}).all()
    wanted = {row.deposit_id for row in rows}
    currencies = {row.deposit_id: row.currency for row in tx.execute(_CURRENCIES, {"wanted": sorted(wanted)})}
    return [
        OpenRefund(
            row.deposit_id, _refund(row, currencies[row.deposit_id]), row.settle_tries - 1, _cause_of(row)
        )
        for row in rows
    ]


def forget_failures(tx: Transaction) -> None:
    """Of what is not open any more."""
    tx.execute(_NOT_OPEN_ANY_MORE)


def postpone(tx: Transaction, one: Open, pause: timedelta) -> None:
    """Reconciling comes back to `one` after `pause`, if it is still open then."""
    table, own = _row_of(one)
    tx.execute(update(table).where(own, table.c.settle_time.is_not(None)).values(settle_time=tx.now + pause))


def reconcile_now(tx: Transaction, deposit_id: str) -> None:
    """The charge attempt ended without an outcome: no need to wait for it any longer."""
    tx.execute(
        update(deposits)
        .where(deposits.c.deposit_id == deposit_id, deposits.c.state == State.PENDING.value)
        .values(settle_time=tx.now)
    )


@dataclass(frozen=True)
class Backlog:
    """How many charges are undecided, refunds are pending, refunds have failed for good; how long the oldest
    charge and the oldest refund among them have waited."""

    undecided: int
    pending: int
    failed: int
    longest_undecided: timedelta
    longest_pending: timedelta


def backlog(tx: Transaction) -> Backlog:
    """What is open by now."""
    undecided, charge_time = _count(tx, deposits, _open_deposits)
    pending, refund_time = _count(tx, refunds, _open_refunds)
    failed, _ = _count(tx, refunds, _failed_refunds)
    return Backlog(undecided, pending, failed, tx.now - charge_time, tx.now - refund_time)


def _count(tx: Transaction, table: Table, which: ColumnElement[bool]) -> tuple[int, datetime]:
    """How many rows, and since when the oldest of them stands as it does; now if there is none."""
    query = select(func.count().label("rows"), func.min(table.c.update_time).label("oldest")).where(which)
    row = tx.execute(query.select_from(table)).one()
    return row.rows, min(row.oldest or tx.now, tx.now)


def ledger_balances(tx: Transaction, deposit_id: str = "") -> dict[Account, int]:
    """The balance of each account (debits above zero), of all deposits or of one; they sum to zero."""
    query = select(ledger_entries.c.account, func.sum(ledger_entries.c.amount_minor).label("minor"))
    if deposit_id:
        query = query.where(ledger_entries.c.deposit_id == deposit_id)
    balances = dict.fromkeys(Account, 0)
    for row in tx.execute(query.group_by(ledger_entries.c.account)):
        balances[Account(row.account)] = int(row.minor)
    return balances


# Rows


_KINDS: dict[type[Instruction], str] = {VoidOrder: "VOID", RefundOrder: "REFUND", ForfeitOrder: "FORFEIT"}


def _cause() -> dict[str, str]:
    call = current.get()
    return {"correlation_id": call.correlation_id, "causation_id": call.causation_id}


def _cause_of(row: Row[Any]) -> Cause:
    return Cause(row.correlation_id, row.causation_id)


def _key_of(instruction: Instruction) -> ColumnElement[bool]:
    return and_(
        instructions.c.kind == _KINDS[type(instruction)],
        instructions.c.instruction_id == instruction.instruction_id,
    )


def name_of(instruction: Instruction) -> str:
    """Under which its failures are counted."""
    return f"INSTRUCTION/{_KINDS[type(instruction)]}/{instruction.instruction_id}"


def _row_of(one: Open) -> tuple[Table, ColumnElement[bool]]:
    if isinstance(one, OpenCharge):
        return deposits, deposits.c.deposit_id == one.deposit_id
    attempt = and_(refunds.c.refund_id == one.refund.refund_id, refunds.c.attempt == one.refund.attempt)
    return refunds, attempt


def _changing(deposit: Deposit, settle_time: datetime | None) -> dict[str, Any]:
    """The columns that a step can change."""
    return {
        "state": deposit.state.value,
        "version": deposit.version,
        "void_ordered": deposit.void_ordered,
        "decline_code": deposit.decline_code,
        "captured_minor": deposit.captured,
        "refunding_minor": deposit.refunding,
        "refunded_minor": deposit.refunded,
        "refund_failed_minor": deposit.refund_failed,
        "forfeited_minor": deposit.forfeited,
        "update_time": deposit.update_time,
        "settle_time": settle_time,
        "settle_tries": 0,
    }


def _loaded(tx: Transaction, rows: Sequence[Row[Any]]) -> list[Deposit]:
    """Deposits with their refunds and forfeits, which only captured ones can have."""
    captured = {row.deposit_id: row.currency for row in rows if row.state == State.CAPTURED.value}
    returned: dict[str, list[Refund]] = {deposit_id: [] for deposit_id in captured}
    kept: dict[str, list[Forfeit]] = {deposit_id: [] for deposit_id in captured}
    if captured:
        for row in tx.execute(_REFUNDS_OF, {"captured": list(captured)}):
            returned[row.deposit_id].append(_refund(row, captured[row.deposit_id]))
        for row in tx.execute(_FORFEITS_OF, {"captured": list(captured)}):
            amount = Money(row.amount_minor, captured[row.deposit_id])
            kept[row.deposit_id].append(Forfeit(row.forfeit_id, amount, row.create_time))
    return [
        Deposit(
            deposit_id=row.deposit_id,
            customer_id=row.customer_id,
            reservation_id=row.reservation_id,
            amount=Money(row.amount_minor, row.currency),
            body_hash=row.body_hash,
            state=State(row.state),
            version=row.version,
            void_ordered=row.void_ordered,
            decline_code=row.decline_code,
            captured=row.captured_minor,
            refunding=row.refunding_minor,
            refunded=row.refunded_minor,
            refund_failed=row.refund_failed_minor,
            forfeited=row.forfeited_minor,
            create_time=row.create_time,
            update_time=row.update_time,
            refunds=tuple(returned.get(row.deposit_id, ())),
            forfeits=tuple(kept.get(row.deposit_id, ())),
        )
        for row in rows
    ]


def _refund(row: Row[Any], currency: str) -> Refund:
    return Refund(
        refund_id=row.refund_id,
        amount=Money(row.amount_minor, currency),
        state=RefundState(row.state),
        attempt=row.attempt,
        failure_code=row.failure_code,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _instruction(row: Row[Any]) -> Instruction:
    amount = Money(row.amount_minor, row.currency)
    if row.kind == "REFUND":
        return RefundOrder(row.instruction_id, row.deposit_id, amount)
    if row.kind == "FORFEIT":
        return ForfeitOrder(row.instruction_id, row.deposit_id, amount)
    return VoidOrder(row.deposit_id)
