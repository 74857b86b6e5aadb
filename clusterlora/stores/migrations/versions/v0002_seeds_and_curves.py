"""Routes say which training seed they belong to, and stacks what their prompt shows; clusterings keep the curve over k.

Evaluating a study again writes its routes anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("clusterings", sa.Column("curve", sa.Text(), nullable=False, server_default="[]"))
    op.drop_table("routes")
    op.create_table(
        "routes",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("persona_id", sa.Text(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("stack", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_routes_study"),
        sa.PrimaryKeyConstraint("study", "method", "persona_id", "seed", name="pk_routes"),
    )
