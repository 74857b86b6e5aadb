"""What answers is a composition of adapters: other names of columns and of fields in stored JSON."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SPEC_FIELDS = {"init": "init_from", "underlay": "frozen_adapter", "parts": "merge_of", "described": "persona_in_prompt"}
_COMPOSITION_FIELDS = {"layers": "adapters", "described": "persona_in_prompt"}


def upgrade() -> None:
    op.execute("ALTER TABLE routes RENAME COLUMN stack TO composition")
    op.drop_index("ix_answers_study_stack_key", "answers")
    op.execute("ALTER TABLE answers RENAME COLUMN stack_key TO composition_key")
    op.create_index("ix_answers_study_composition_key", "answers", ["study", "composition_key"], unique=False)
    connection = op.get_bind()
    for table, column, renamed in (("adapters", "spec", _spec), ("routes", "composition", _composition)):
        rows = sa.table(table, sa.column(column, sa.Text()))
        # Many rows hold the same text: a method answers everybody with one of a few compositions.
        for text in connection.execute(sa.select(rows.c[column]).distinct()).scalars().all():
            to = json.dumps(renamed(json.loads(text)), sort_keys=True, separators=(",", ":"))
            connection.execute(sa.update(rows).where(rows.c[column] == text).values({column: to}))


def _spec(value: dict[str, Any]) -> dict[str, Any]:
    return {_SPEC_FIELDS.get(name, name): field for name, field in value.items()}


def _composition(value: dict[str, Any]) -> dict[str, Any]:
    renamed = {_COMPOSITION_FIELDS.get(name, name): field for name, field in value.items()}
    renamed["adapters"] = [{"name": layer["adapter"], "weight": layer["weight"]} for layer in value["layers"]]
    return renamed
