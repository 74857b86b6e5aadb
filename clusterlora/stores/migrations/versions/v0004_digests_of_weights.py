"""Adapters carry a digest of their weights, so that a copy that arrives from elsewhere can be checked."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adapters", sa.Column("weights_sha256", sa.Text(), nullable=True))
