"""An index of the attempts that took no deposit, so that a customer's are counted by themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "reservations_unpaid",
        "reservations",
        ["customer_id", "create_time"],
        sqlite_where=sa.text("accept_deadline IS NULL"),
        postgresql_where=sa.text("accept_deadline IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("reservations_unpaid", "reservations")
