"""How often a reservation was made dearer or cheaper, counted from now on; old rows are counted once."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Dearer: each one that was begun has left a deposit besides the first. Cheaper: each has left refunds of the
# cause MODIFIED, several if it went over several deposits, and each is a revision that no dearer one brought
# about; the lower of the two numbers is right, or a little too high where times were moved as well.
_COUNT = """
UPDATE reservations SET priced_modifications =
    (SELECT count(*) FROM deposits d WHERE d.reservation_id = reservations.reservation_id) - 1 +
    (SELECT CASE WHEN refunds < revisions THEN refunds ELSE revisions END FROM
        (SELECT
            (SELECT count(*) FROM instructions i
                WHERE i.reservation_id = reservations.reservation_id AND i.cause = 'MODIFIED') AS refunds,
            reservations.revision - 1 - (SELECT count(*) FROM modifications m
                WHERE m.reservation_id = reservations.reservation_id AND m.state = 'APPLIED') AS revisions
        ) AS cheaper)
WHERE EXISTS (SELECT 1 FROM deposits d
        WHERE d.reservation_id = reservations.reservation_id AND d.position > 0)
    OR EXISTS (SELECT 1 FROM instructions i
        WHERE i.reservation_id = reservations.reservation_id AND i.cause = 'MODIFIED')
"""


def upgrade() -> None:
    # With a default, so that the pods of the version before can go on writing rows.
    op.add_column(
        "reservations",
        sa.Column("priced_modifications", sa.Integer, nullable=False, server_default=sa.text("0")),
    )
    op.execute(_COUNT)


def downgrade() -> None:
    op.drop_column("reservations", "priced_modifications")
