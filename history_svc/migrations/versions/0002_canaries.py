"""Until when each binding of a subscriber was seen to be there."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "canaries",
        sa.Column("subscriber", sa.Text, primary_key=True),
        sa.Column("binding", sa.Text, primary_key=True),
        sa.Column("through_time", sa.BigInteger, nullable=False),
        sa.Column("resume_time", sa.BigInteger),
        sa.Column("latest_time", sa.BigInteger),
        sa.Column("receive_time", sa.BigInteger, nullable=False),
        sa.Column("look_time", sa.BigInteger),
        sa.Column("interval_ms", sa.BigInteger, nullable=False),
        sa.Column("unread_time", sa.BigInteger),
    )


def downgrade() -> None:
    op.drop_table("canaries")
