"""Every event as it came; and when rows that may be forgotten were looked through."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archived_events",
        sa.Column(
            "event_id", sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"), primary_key=True
        ),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "retention",
        sa.Column("what", sa.Text, primary_key=True),
        sa.Column("pass_time", sa.BigInteger),
        sa.Column("through_time", sa.BigInteger),
    )


def downgrade() -> None:
    op.drop_table("retention")
    op.drop_table("archived_events")
