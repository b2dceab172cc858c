"""When rows that may be forgotten were looked through, and up to when they may be gone."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("what", sa.Text, primary_key=True),
        sa.Column("pass_time", sa.BigInteger),
        sa.Column("through_time", sa.BigInteger),
    )


def downgrade() -> None:
    op.drop_table("retention")
