"""How often the broker refused an event, and until when each binding was seen to be there."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("tries", sa.Integer, nullable=False, server_default="0"))
    op.drop_index("outbox_unsent", "outbox")
    _partial_index("outbox_unsent", ["tries", "position"], "sent_time IS NULL")
    _partial_index("outbox_refused", ["claim_until"], "sent_time IS NULL AND tries > 0")
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
    op.drop_index("outbox_refused", "outbox")
    op.drop_index("outbox_unsent", "outbox")
    _partial_index("outbox_unsent", ["position"], "sent_time IS NULL")
    with op.batch_alter_table("outbox") as table:
        table.drop_column("tries")


def _partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "outbox", columns, sqlite_where=where, postgresql_where=where)
