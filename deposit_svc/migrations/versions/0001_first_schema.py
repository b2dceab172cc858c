"""Deposits, refunds, forfeits, instructions, the append-only ledger, and the kit's outbox and inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# One rule for each kind of movement: which account is debited (above zero), which is credited (below zero).
POSTINGS = {
    "CHARGE_CAPTURED": ("PROVIDER_CLEARING", "CUSTOMER_DEPOSITS"),
    "REFUND_ORDERED": ("CUSTOMER_DEPOSITS", "REFUNDS_PAYABLE"),
    "REFUND_SUCCEEDED": ("REFUNDS_PAYABLE", "PROVIDER_CLEARING"),
    "REFUND_FAILED": ("REFUNDS_PAYABLE", "REFUNDS_FAILED"),
    "REFUND_RETRIED": ("REFUNDS_FAILED", "REFUNDS_PAYABLE"),
    "DEPOSIT_FORFEITED": ("CUSTOMER_DEPOSITS", "FORFEITURE_INCOME"),
}
POSTING_RULE = " OR ".join(
    f"(kind = '{kind}' AND ((account = '{debit}' AND amount_minor > 0)"
    f" OR (account = '{credit}' AND amount_minor < 0)))"
    for kind, (debit, credit) in POSTINGS.items()
)


def upgrade() -> None:
    op.create_table(
        "deposits",
        sa.Column("deposit_id", sa.Text, primary_key=True),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("body_hash", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("void_ordered", sa.Boolean, nullable=False),
        sa.Column("decline_code", sa.Text, nullable=False),
        sa.Column("captured_minor", sa.BigInteger, nullable=False),
        sa.Column("refunding_minor", sa.BigInteger, nullable=False),
        sa.Column("refunded_minor", sa.BigInteger, nullable=False),
        sa.Column("refund_failed_minor", sa.BigInteger, nullable=False),
        sa.Column("forfeited_minor", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("settle_time", sa.BigInteger),
        sa.Column("settle_tries", sa.Integer, nullable=False),
        sa.Column("correlation_id", sa.Text, nullable=False),
        sa.Column("causation_id", sa.Text, nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING', 'CAPTURED', 'DECLINED', 'VOIDING', 'VOIDED')", name="deposits_state"
        ),
        sa.CheckConstraint(
            "amount_minor > 0 OR (amount_minor = 0 AND state = 'VOIDED')", name="deposits_amount"
        ),
        sa.CheckConstraint(
            "captured_minor = CASE WHEN state = 'CAPTURED' THEN amount_minor ELSE 0 END",
            name="deposits_captured",
        ),
        sa.CheckConstraint(
            "refunding_minor >= 0 AND refunded_minor >= 0 AND refund_failed_minor >= 0"
            " AND forfeited_minor >= 0",
            name="deposits_parts",
        ),
        sa.CheckConstraint(
            "captured_minor - refunding_minor - refunded_minor - refund_failed_minor - forfeited_minor >= 0",
            name="deposits_held",
        ),
        sa.CheckConstraint(
            "state NOT IN ('PENDING', 'VOIDING') OR settle_time IS NOT NULL", name="deposits_settled"
        ),
    )
    op.create_index("deposits_of_customer", "deposits", ["customer_id", "create_time", "deposit_id"])
    op.create_index("deposits_of_reservation", "deposits", ["reservation_id"])
    _partial_index("deposits_to_settle", "deposits", "settle_time", "settle_time IS NOT NULL")

    op.create_table(
        "refunds",
        sa.Column("refund_id", sa.Text, primary_key=True),
        sa.Column("deposit_id", sa.Text, sa.ForeignKey("deposits.deposit_id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failure_code", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("settle_time", sa.BigInteger),
        sa.Column("settle_tries", sa.Integer, nullable=False),
        sa.Column("correlation_id", sa.Text, nullable=False),
        sa.Column("causation_id", sa.Text, nullable=False),
        sa.CheckConstraint("state IN ('PENDING', 'SUCCEEDED', 'FAILED')", name="refunds_state"),
        sa.CheckConstraint("amount_minor > 0", name="refunds_amount"),
        sa.CheckConstraint("attempt >= 0", name="refunds_attempt"),
        sa.CheckConstraint("(state = 'PENDING') = (settle_time IS NOT NULL)", name="refunds_settled"),
        sa.UniqueConstraint("deposit_id", "position", name="refunds_position"),
    )
    _partial_index("refunds_to_settle", "refunds", "settle_time", "settle_time IS NOT NULL")
    _partial_index("refunds_failed", "refunds", "state", "state = 'FAILED'")

    op.create_table(
        "forfeits",
        sa.Column("forfeit_id", sa.Text, primary_key=True),
        sa.Column("deposit_id", sa.Text, sa.ForeignKey("deposits.deposit_id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount_minor > 0", name="forfeits_amount"),
        sa.UniqueConstraint("deposit_id", "position", name="forfeits_position"),
    )

    op.create_table(
        "instructions",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("instruction_id", sa.Text, primary_key=True),
        sa.Column("deposit_id", sa.Text, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("correlation_id", sa.Text, nullable=False),
        sa.Column("causation_id", sa.Text, nullable=False),
        sa.CheckConstraint("kind IN ('VOID', 'REFUND', 'FORFEIT')", name="instructions_kind"),
        sa.CheckConstraint("state IN ('WAITING', 'APPLIED', 'NO_EFFECT')", name="instructions_state"),
    )
    _partial_index("instructions_waiting", "instructions", "deposit_id", "state = 'WAITING'")

    op.create_table(
        "ledger_entries",
        sa.Column("position", COUNTER, primary_key=True, autoincrement=True),
        sa.Column("movement_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("deposit_id", sa.Text, sa.ForeignKey("deposits.deposit_id"), nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("record_time", sa.BigInteger, nullable=False),
        sa.CheckConstraint(POSTING_RULE, name="ledger_entries_posting"),
        sa.UniqueConstraint("movement_id", "account", name="ledger_entries_once"),
    )
    op.create_index("ledger_entries_of_deposit", "ledger_entries", ["deposit_id"])
    _append_only("ledger_entries")

    _outbox_and_inbox()


def _partial_index(name: str, table: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)


def _append_only(table: str) -> None:
    """What is once in the ledger is corrected by another movement, never changed."""
    if op.get_bind().dialect.name == "sqlite":
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" EXECUTE FUNCTION {table}_append_only()"
    )


def _outbox_and_inbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("position", COUNTER, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("aggregate_id", sa.Text, nullable=False),
        sa.Column("aggregate_version", sa.BigInteger, nullable=False),
        sa.Column("routing_key", sa.Text, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("claim_until", sa.BigInteger),
        sa.Column("sent_time", sa.BigInteger),
    )
    _partial_index("outbox_unsent", "outbox", "position", "sent_time IS NULL")
    op.create_table(
        "inbox",
        sa.Column("subscriber", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("receive_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "inbox_versions",
        sa.Column("subscriber", sa.Text, primary_key=True),
        sa.Column("aggregate", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "subscriptions",
        sa.Column("subscriber", sa.Text, primary_key=True),
        sa.Column("caught_up", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back: restore a backup instead")
