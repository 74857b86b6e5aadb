"""The column of attempts that holds a training group, or a shard of an evaluation, is called after it."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute('ALTER TABLE attempts RENAME COLUMN pack TO "group"')
