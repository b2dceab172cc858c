"""The timeline, and the marks of its subscription."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "timeline_entries",
        sa.Column(
            "event_id", sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"), primary_key=True
        ),
        sa.Column("position", sa.BigInteger, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("aggregate_id", sa.Text, nullable=False),
        sa.Column("aggregate_version", sa.BigInteger, nullable=False),
        sa.Column("occur_time", sa.BigInteger, nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("reservation_id", sa.Text, nullable=False),
        sa.Column("restaurant_id", sa.Text, nullable=False),
        sa.Column("deposit_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("dine_time", sa.BigInteger),
        sa.Column("party_size", sa.Integer, nullable=False),
        sa.Column("amount_minor", sa.BigInteger),
        sa.Column("refunded_minor", sa.BigInteger),
        sa.Column("forfeited_minor", sa.BigInteger),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("correlation_id", sa.Text, nullable=False),
        sa.Column("causation_id", sa.Text, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
    )
    op.create_index("timeline_by_customer", "timeline_entries", ["customer_id", "occur_time", "event_id"])
    op.create_index(
        "timeline_by_reservation",
        "timeline_entries",
        ["customer_id", "reservation_id", "occur_time", "event_id"],
    )
    op.create_index("timeline_by_arrival", "timeline_entries", ["customer_id", "position"])

    arrivals = op.create_table(
        "arrivals",
        sa.Column("arrivals_id", sa.Integer, primary_key=True),
        sa.Column("last_position", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(arrivals, [{"arrivals_id": 1, "last_position": 0}])

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
    for table in ("subscriptions", "inbox_versions", "inbox", "arrivals", "timeline_entries"):
        op.drop_table(table)
