"""What devices did for each phase of a study: their seconds, energy and train tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_use",
        sa.Column("study", sa.Text(), sa.ForeignKey("studies.name"), primary_key=True),
        sa.Column("phase", sa.Text(), primary_key=True),
        sa.Column("device", sa.Text(), primary_key=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("metered_seconds", sa.Float(), nullable=False),
        sa.Column("joules", sa.Float(), nullable=False),
        sa.Column("train_tokens", sa.BigInteger(), nullable=False),
    )
