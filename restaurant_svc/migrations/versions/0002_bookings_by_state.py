"""An index by which a list of bookings in some states, and the start of a watch, read no others."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "bookings_by_state", "bookings", ["restaurant_id", "state", "dine_time", "reservation_id"]
    )


def downgrade() -> None:
    op.drop_index("bookings_by_state", table_name="bookings")
