"""Restaurants, slots, reservations and what hangs on them, request ids, and the kit's outbox and inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "inbox",
        sa.Column("subscriber", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("receive_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subscriber", "event_id"),
    )
    op.create_table(
        "inbox_versions",
        sa.Column("subscriber", sa.Text, nullable=False),
        sa.Column("aggregate", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subscriber", "aggregate"),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("aggregate_id", sa.Text, nullable=False),
        sa.Column("aggregate_version", sa.BigInteger, nullable=False),
        sa.Column("routing_key", sa.Text, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("claim_until", sa.BigInteger),
        sa.Column("sent_time", sa.BigInteger),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("event_id"),
    )
    op.create_index(
        "outbox_unsent",
        "outbox",
        ["position"],
        sqlite_where=sa.text("sent_time IS NULL"),
        postgresql_where=sa.text("sent_time IS NULL"),
    )
    op.create_table(
        "requests",
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("body_hash", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("modification_id", sa.Text),
        sa.PrimaryKeyConstraint("customer_id", "request_id"),
    )
    op.create_table(
        "reservations",
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("dine_time", sa.BigInteger, nullable=False),
        sa.Column("party_size", sa.Integer, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("attempt_deadline", sa.BigInteger, nullable=False),
        sa.Column("hold_expire_time", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("accept_deadline", sa.BigInteger),
        sa.Column("cancelled_by", sa.Text),
        sa.Column("decline_cause", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("decline_code", sa.Text, nullable=False),
        sa.Column("modification_id", sa.Text),
        sa.Column("instruction_count", sa.Integer, nullable=False),
        sa.Column("due_time", sa.BigInteger),
        sa.CheckConstraint(
            "(state = 'CANCELLED') = (cancelled_by IS NOT NULL)", name="cancelled_by_if_cancelled"
        ),
        sa.CheckConstraint(
            "(state = 'DECLINED') = (decline_cause IS NOT NULL)", name="decline_cause_if_declined"
        ),
        sa.CheckConstraint("(state = 'FAILED') = (failure IS NOT NULL)", name="failure_if_failed"),
        sa.CheckConstraint("cancelled_by IN ('CUSTOMER', 'RESTAURANT')", name="known_cancelled_by"),
        sa.CheckConstraint("decline_cause IN ('RESTAURANT', 'DEADLINE')", name="known_decline_cause"),
        sa.CheckConstraint(
            "failure IN ('CARD_DECLINED', 'DEPOSIT_OVERLOADED', 'DEPOSIT_UNKNOWN', 'DEPOSIT_VOIDED')",
            name="known_failure",
        ),
        sa.CheckConstraint(
            "state IN ('PENDING_DEPOSIT', 'PENDING_ACCEPTANCE', 'CONFIRMED', 'SEATED', 'COMPLETED', "
            "'NO_SHOW', 'FAILED', 'DECLINED', 'CANCELLED')",
            name="known_state",
        ),
        sa.CheckConstraint("party_size > 0", name="party_not_empty"),
        sa.CheckConstraint("price > 0", name="no_booking_without_a_deposit"),
        sa.CheckConstraint("revision >= 1", name="revision_from_one"),
        sa.PrimaryKeyConstraint("reservation_id"),
    )
    op.create_index(
        "reservations_due",
        "reservations",
        ["due_time"],
        sqlite_where=sa.text("due_time IS NOT NULL"),
        postgresql_where=sa.text("due_time IS NOT NULL"),
    )
    op.create_index(
        "reservations_of_customer", "reservations", ["customer_id", "create_time", "reservation_id"]
    )
    op.create_table(
        "restaurants",
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("time_zone", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("restaurant_id"),
    )
    op.create_table(
        "slots",
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("dine_time", sa.BigInteger, nullable=False),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("sold", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("capacity >= 0", name="capacity_not_negative"),
        sa.CheckConstraint("sold >= 0", name="sold_not_negative"),
        sa.PrimaryKeyConstraint("restaurant_id", "dine_time"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("subscriber", sa.Text, nullable=False),
        sa.Column("caught_up", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("subscriber"),
    )
    op.create_table(
        "deposits",
        sa.Column("deposit_id", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("captured", sa.Boolean, nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING', 'CAPTURED', 'DECLINED', 'VOIDING', 'VOIDED', 'REFUNDING', "
            "'REFUNDED', 'FORFEITED', 'REFUND_FAILED')",
            name="known_state",
        ),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.ForeignKeyConstraint(["reservation_id"], ["reservations.reservation_id"]),
        sa.PrimaryKeyConstraint("deposit_id"),
    )
    op.create_index("deposits_of_reservation", "deposits", ["reservation_id", "position"], unique=True)
    op.create_table(
        "instructions",
        sa.Column("instruction_id", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("deposit_id", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.CheckConstraint(
            "(kind = 'VOID' AND amount = 0) OR (kind <> 'VOID' AND amount > 0)", name="amount_fits_kind"
        ),
        sa.CheckConstraint(
            "cause IN ('FAILED', 'MODIFIED', 'MODIFICATION_FAILED', 'DECLINED', 'CANCELLED', 'SEATED', "
            "'NO_SHOW', 'COMPLETED')",
            name="known_cause",
        ),
        sa.CheckConstraint("kind IN ('VOID', 'REFUND', 'FORFEIT')", name="known_kind"),
        sa.ForeignKeyConstraint(["deposit_id"], ["deposits.deposit_id"]),
        sa.ForeignKeyConstraint(["reservation_id"], ["reservations.reservation_id"]),
        sa.PrimaryKeyConstraint("instruction_id"),
    )
    op.create_index(
        "instructions_of_reservation", "instructions", ["reservation_id", "position"], unique=True
    )
    op.create_table(
        "modifications",
        sa.Column("modification_id", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("dine_time", sa.BigInteger, nullable=False),
        sa.Column("party_size", sa.Integer, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("deposit_id", sa.Text, nullable=False),
        sa.Column("attempt_deadline", sa.BigInteger, nullable=False),
        sa.Column("hold_expire_time", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failure", sa.Text),
        sa.Column("decline_code", sa.Text, nullable=False),
        sa.CheckConstraint(
            "failure IN ('CARD_DECLINED', 'DEPOSIT_OVERLOADED', 'DEPOSIT_UNKNOWN', 'DEPOSIT_VOIDED')",
            name="known_failure",
        ),
        sa.CheckConstraint("state IN ('OPEN', 'APPLIED', 'FAILED', 'CLOSED')", name="known_state"),
        sa.CheckConstraint("party_size > 0", name="party_not_empty"),
        sa.ForeignKeyConstraint(["deposit_id"], ["deposits.deposit_id"]),
        sa.ForeignKeyConstraint(["reservation_id"], ["reservations.reservation_id"]),
        sa.PrimaryKeyConstraint("modification_id"),
    )
    op.create_index(
        "one_open_modification",
        "modifications",
        ["reservation_id"],
        unique=True,
        sqlite_where=sa.text("state = 'OPEN'"),
        postgresql_where=sa.text("state = 'OPEN'"),
    )


def downgrade() -> None:
    raise NotImplementedError("a first schema has nothing before it")
