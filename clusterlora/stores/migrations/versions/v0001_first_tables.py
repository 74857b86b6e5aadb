"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("train_tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("first_loss", sa.Float(), nullable=True),
        sa.Column("last_loss", sa.Float(), nullable=True),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_adapters"),
    )
    op.create_table(
        "studies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("data_digest", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_studies"),
    )
    op.create_table(
        "answers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("stack_key", sa.Text(), nullable=False),
        sa.Column("persona_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_answers_study"),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
    )
    op.create_index("ix_answers_study_stack_key", "answers", ["study", "stack_key"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("pack", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("micro_batch", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_attempts_study"),
        sa.PrimaryKeyConstraint("study", "pack", "number", name="pk_attempts"),
    )
    op.create_table(
        "cluster_members",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("cluster", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("persona_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_cluster_members_study"),
        sa.PrimaryKeyConstraint("study", "cluster", "position", name="pk_cluster_members"),
    )
    op.create_table(
        "clusterings",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("quality", sa.Text(), nullable=False),
        sa.Column("map_2d", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_clusterings_study"),
        sa.PrimaryKeyConstraint("study", name="pk_clusterings"),
    )
    op.create_table(
        "dialogues",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("persona_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("turns", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_dialogues_study"),
        sa.PrimaryKeyConstraint("study", "persona_id", "position", name="pk_dialogues"),
    )
    op.create_table(
        "facts",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_facts_study"),
        sa.PrimaryKeyConstraint("study", "name", name="pk_facts"),
    )
    op.create_table(
        "personas",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_personas_study"),
        sa.PrimaryKeyConstraint("study", "id", name="pk_personas"),
    )
    op.create_table(
        "routes",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("persona_id", sa.Text(), nullable=False),
        sa.Column("stack", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_routes_study"),
        sa.PrimaryKeyConstraint("study", "method", "persona_id", name="pk_routes"),
    )
    op.create_table(
        "study_adapters",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["adapters.key"], name="fk_study_adapters_key"),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_study_adapters_study"),
        sa.PrimaryKeyConstraint("study", "key", name="pk_study_adapters"),
    )
    op.create_table(
        "verdicts",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("rung", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("criteria", sa.Text(), nullable=False),
        sa.Column("n_personas", sa.Integer(), nullable=False),
        sa.Column("n_items", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_verdicts_study"),
        sa.PrimaryKeyConstraint("study", "rung", name="pk_verdicts"),
    )
    op.create_table(
        "scores",
        sa.Column("answer_id", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["answer_id"], ["answers.id"], name="fk_scores_answer_id"),
        sa.PrimaryKeyConstraint("answer_id", "metric", name="pk_scores"),
    )
