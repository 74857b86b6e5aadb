"""What a study holds twice although primary keys allow it: the same thing under two positions or ids."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from clusterlora.ports.study_store import Duplicates, RowKind
from clusterlora.stores import rows, schema
from clusterlora.values import Answer

_TABLES: tuple[tuple[sa.Table, RowKind, tuple[str, ...]], ...] = (
    (schema.personas, "personas", ("position",)),
    (schema.dialogues, "dialogues", ("persona_id", "id")),
    (schema.cluster_members, "cluster_members", ("persona_id",)),
    (schema.answers, "answers", ("composition_key", "persona_id", "item_id")),
)
"""The tables, and the columns that no two rows of a study may share."""


def duplicates(connection: Connection, study: str) -> tuple[Duplicates, ...]:
    """Return one value per kind of row that is there more than once."""
    rows_by_kind: dict[RowKind, Sequence[Any]] = {kind: _twice(connection, study, table, names) for table, kind, names in _TABLES}
    return tuple(
        Duplicates(kind, len(twice), tuple(map(str, twice[0][:-1])), int(twice[0][-1])) for kind, twice in rows_by_kind.items() if twice
    )


def _twice(connection: Connection, study: str, table: sa.Table, names: tuple[str, ...]) -> Sequence[Any]:
    columns = [table.c[name] for name in names]
    many = sa.select(*columns, sa.func.count()).where(table.c.study == study).group_by(*columns).having(sa.func.count() > 1)
    return connection.execute(many.order_by(*columns)).all()


def drop_answers(connection: Connection, study: str) -> None:
    """Remove, of answers to one question, those whose id is not the digest of the question, with their scores."""
    table, scores = schema.answers, schema.scores
    for composition_key, persona_id, item_id, _ in _twice(connection, study, table, ("composition_key", "persona_id", "item_id")):
        right = rows.answer_id(study, Answer(composition_key, item_id, persona_id, "test", "", ()))
        same = (
            table.c.study == study,
            table.c.composition_key == composition_key,
            table.c.persona_id == persona_id,
            table.c.item_id == item_id,
        )
        wrong = connection.execute(sa.select(table.c.id).where(*same, table.c.id != right)).scalars().all()
        connection.execute(sa.delete(scores).where(scores.c.answer_id.in_(wrong)))
        connection.execute(sa.delete(table).where(table.c.id.in_(wrong)))
