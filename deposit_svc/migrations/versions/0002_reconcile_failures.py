"""What fails while it is reconciled: it waits, longer each time, and is listed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reconcile_failures",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("since_time", sa.BigInteger, nullable=False),
        sa.Column("next_time", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("reconcile_failures")
