"""Rows that a study holds more than once although no primary key is violated: the same thing under two positions or ids."""

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
    rows_by_kind: dict[RowKind, Sequence[Any]] = {kind: _repeated(connection, study, table, names) for table, kind, names in _TABLES}
    return tuple(
        Duplicates(kind, len(repeated), tuple(map(str, repeated[0][:-1])), int(repeated[0][-1]))
        for kind, repeated in rows_by_kind.items()
        if repeated
    )


def _repeated(connection: Connection, study: str, table: sa.Table, names: tuple[str, ...]) -> Sequence[Any]:
    """Return the values of these columns that more than one row has, each with the number of rows."""
    columns = [table.c[name] for name in names]
    query = sa.select(*columns, sa.func.count()).where(table.c.study == study).group_by(*columns).having(sa.func.count() > 1)
    return connection.execute(query.order_by(*columns)).all()


def drop_answers(connection: Connection, study: str) -> None:
    """Where an item is answered more than once, delete the answers whose id is not the digest of the item, and their scores."""
    table, scores = schema.answers, schema.scores
    for composition_key, persona_id, item_id, _ in _repeated(connection, study, table, ("composition_key", "persona_id", "item_id")):
        digest_id = rows.answer_id(study, Answer(composition_key, item_id, persona_id, "test", "", ()))
        same_item = (
            table.c.study == study,
            table.c.composition_key == composition_key,
            table.c.persona_id == persona_id,
            table.c.item_id == item_id,
        )
        wrong_ids = connection.execute(sa.select(table.c.id).where(*same_item, table.c.id != digest_id)).scalars().all()
        connection.execute(sa.delete(scores).where(scores.c.answer_id.in_(wrong_ids)))
        connection.execute(sa.delete(table).where(table.c.id.in_(wrong_ids)))
