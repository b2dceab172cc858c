"""What fails while it is reconciled, and how far the clock is trusted to end what it passes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
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
    op.create_table(
        "reconcile_clock",
        sa.Column("clock", sa.Text, primary_key=True),
        sa.Column("trusted_time", sa.BigInteger),
        sa.Column("held_time", sa.BigInteger),
        sa.Column("held_count", sa.Integer, nullable=False),
        sa.Column("alive_count", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("reconcile_clock")
    op.drop_table("reconcile_failures")
