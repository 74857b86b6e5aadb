"""Verdicts say how far they can be trusted."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("notes", sa.Text(), nullable=False, server_default="[]"))
