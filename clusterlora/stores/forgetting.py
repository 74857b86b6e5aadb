"""Delete the rows of a study: those that were derived from its data, or all."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from clusterlora.stores import schema

_DERIVED = (
    *(schema.answers, schema.routes, schema.verdicts, schema.attempts),
    *(schema.cluster_members, schema.clusterings, schema.dialogues, schema.personas),
)


def delete_derived(connection: Connection, study: str, kept: Sequence[str]) -> None:
    """Delete people, dialogues and clusters, all that was derived from them, and metadata of other kinds than `kept`."""
    answered = sa.select(schema.answers.c.id).where(schema.answers.c.study == study)
    connection.execute(sa.delete(schema.scores).where(schema.scores.c.answer_id.in_(answered)))
    for table in _DERIVED:
        connection.execute(sa.delete(table).where(table.c.study == study))
    table = schema.study_metadata
    connection.execute(sa.delete(table).where(table.c.study == study, table.c.kind.not_in(kept)))


def delete_study(connection: Connection, study: str) -> None:
    """Delete a study with all that was recorded of it."""
    delete_derived(connection, study, ())
    for table in (schema.study_adapters, schema.phase_seconds, schema.device_use):
        connection.execute(sa.delete(table).where(table.c.study == study))
    connection.execute(sa.delete(schema.studies).where(schema.studies.c.name == study))
