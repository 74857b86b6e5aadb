"""What a study holds twice although primary keys allow it: the same thing under two positions or ids."""

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from clusterlora.stores import rows, schema
from clusterlora.values import Answer

_WHAT = (
    (schema.personas, ("position",), "places in the order of personas"),
    (schema.dialogues, ("persona_id", "id"), "dialogues of a persona"),
    (schema.cluster_members, ("persona_id",), "personas in clusters"),
    (schema.answers, ("composition_key", "persona_id", "item_id"), "answers"),
)


def sentences(connection: Connection, study: str) -> tuple[str, ...]:
    """Return one sentence per kind of thing that is there more than once."""
    return tuple(_sentences(connection, study))


def _sentences(connection: Connection, study: str) -> Iterator[str]:
    for table, names, words in _WHAT:
        found = _twice(connection, study, table, names)
        if found:
            yield f"{len(found)} {words} are there more than once, for example {', '.join(map(str, found[0][:-1]))} ({found[0][-1]} times)"


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
