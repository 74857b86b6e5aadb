"""Learning curves of adapters; those trained before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "learning_curves",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("losses", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["adapters.key"], name="fk_learning_curves_key"),
        sa.PrimaryKeyConstraint("key", "split", name="pk_learning_curves"),
    )
