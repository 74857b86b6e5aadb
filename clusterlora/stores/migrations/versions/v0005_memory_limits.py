"""The micro-batch that fits a device, once a larger one did not."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "memory_limits",
        sa.Column("base", sa.Text(), primary_key=True),
        sa.Column("device", sa.Text(), primary_key=True),
        sa.Column("max_length", sa.Integer(), primary_key=True),
        sa.Column("micro_batch", sa.Integer(), nullable=False),
    )
