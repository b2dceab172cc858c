"""Restaurants, slots, bookings, and the kit's outbox and inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "restaurants",
        sa.Column("restaurant_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("time_zone", sa.Text, nullable=False),
        sa.Column("deposit_per_person", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("free_cancel_window_seconds", sa.Integer, nullable=False),
        sa.Column("acceptance", sa.Text, nullable=False),
        sa.Column("acceptance_limit_seconds", sa.Integer, nullable=False),
        sa.Column("acceptance_lead_seconds", sa.Integer, nullable=False),
        sa.Column("no_show_grace_seconds", sa.Integer, nullable=False),
        sa.Column("slot_interval_seconds", sa.Integer, nullable=False),
        sa.Column("service_duration_seconds", sa.Integer, nullable=False),
        sa.Column("max_party_size", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.CheckConstraint("deposit_per_person > 0", name="restaurants_deposit"),
        sa.CheckConstraint("acceptance IN ('AUTO', 'MANUAL')", name="restaurants_acceptance"),
        sa.CheckConstraint("slot_interval_seconds BETWEEN 1 AND 86400", name="restaurants_interval"),
        sa.CheckConstraint("version >= 1", name="restaurants_version"),
    )
    op.create_index("restaurants_by_name", "restaurants", ["name", "restaurant_id"])

    op.create_table(
        "create_requests",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("body_hash", sa.Text, nullable=False),
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )

    op.create_table(
        "slot_days",
        sa.Column("restaurant_id", sa.Text, primary_key=True),
        sa.Column("local_date", sa.Date, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("version >= 1", name="slot_days_version"),
    )

    op.create_table(
        "slots",
        sa.Column("restaurant_id", sa.Text, primary_key=True),
        sa.Column("dine_time", sa.BigInteger, primary_key=True),
        sa.Column("local_date", sa.Date, nullable=False),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.CheckConstraint("capacity >= 0", name="slots_capacity"),
        sa.CheckConstraint("version >= 1", name="slots_version"),
    )
    op.create_index("slots_by_day", "slots", ["restaurant_id", "local_date", "dine_time"])

    op.create_table(
        "bookings",
        sa.Column("reservation_id", sa.Text, primary_key=True),
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("confirmed", sa.Boolean, nullable=False),
        sa.Column("accepted_revision", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("dine_time", sa.BigInteger, nullable=False),
        sa.Column("party_size", sa.Integer, nullable=False),
        sa.Column("acceptance", sa.Text, nullable=False),
        sa.Column("accept_deadline", sa.BigInteger),
        sa.Column("no_show_grace_seconds", sa.Integer, nullable=False),
        sa.Column("service_seconds", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("heard_version", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "state IN ('RECEIVED', 'ACCEPTED', 'DECLINED', 'SEATED', 'COMPLETED', 'NO_SHOW', 'WITHDRAWN')",
            name="bookings_state",
        ),
        sa.CheckConstraint(
            "NOT confirmed OR state IN ('ACCEPTED', 'SEATED', 'COMPLETED', 'NO_SHOW')",
            name="bookings_confirmed",
        ),
        sa.CheckConstraint("version >= 1", name="bookings_version"),
    )
    op.create_index("bookings_by_time", "bookings", ["restaurant_id", "dine_time", "reservation_id"])
    op.create_index("bookings_by_change", "bookings", ["restaurant_id", "update_time", "reservation_id"])

    _kit_tables()


def _kit_tables() -> None:
    position = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "outbox",
        sa.Column("position", position, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("aggregate_id", sa.Text, nullable=False),
        sa.Column("aggregate_version", sa.BigInteger, nullable=False),
        sa.Column("routing_key", sa.Text, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("claim_until", sa.BigInteger),
        sa.Column("sent_time", sa.BigInteger),
    )
    unsent = sa.text("sent_time IS NULL")
    op.create_index("outbox_unsent", "outbox", ["position"], sqlite_where=unsent, postgresql_where=unsent)
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
    raise NotImplementedError("a first schema has nothing before it")
