"""The tables of the study database. A change here needs a migration; a test compares the two.

Values that no query filters by (settings, turns, compositions, criteria) are JSON text: PostgreSQL's JSON types refuse NaN and NUL.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text, TypeDecorator

REVISION = "0012"
"""The migration this code needs the database to be at."""

# Named, so that a later migration can drop or alter a constraint on every backend.
metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s"}
)


class Words(TypeDecorator[str]):
    """Text written by a person or a model. A NUL, which PostgreSQL cannot store, becomes the replacement character."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002
        return value and value.replace("\x00", "\ufffd")


def _study_column() -> Column[str]:
    return Column("study", Text, ForeignKey("studies.name"), primary_key=True)


studies = Table(
    "studies",
    metadata,
    Column("name", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("created", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("data_digest", Text),
)

study_metadata = Table(
    "study_metadata",
    metadata,
    _study_column(),
    # One of `stores.metadata_kinds`; the value is JSON of that kind.
    Column("kind", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

phase_seconds = Table(
    "phase_seconds",
    metadata,
    _study_column(),
    Column("phase", Text, primary_key=True),
    # A training group, a shard, a rung; empty where a phase has no parts.
    Column("part", Text, primary_key=True),
    Column("seconds", Float, nullable=False),
)

device_use = Table(
    "device_use",
    metadata,
    _study_column(),
    Column("phase", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("seconds", Float, nullable=False),
    # Of these seconds the device told its energy, the joules.
    Column("metered_seconds", Float, nullable=False),
    Column("joules", Float, nullable=False),
    Column("train_tokens", BigInteger, nullable=False),
)

personas = Table(
    "personas",
    metadata,
    _study_column(),
    Column("id", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("description", Words),
)

dialogues = Table(
    "dialogues",
    metadata,
    _study_column(),
    Column("persona_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("split", Text),
    Column("turns", Text, nullable=False),
    Column("context", Text, nullable=False),
)

clusterings = Table(
    "clusterings",
    metadata,
    _study_column(),
    Column("algorithm", Text, nullable=False),
    Column("quality", Text, nullable=False),
    Column("map_2d", Text, nullable=False),
    Column("curve", Text, nullable=False, server_default="[]"),
)

cluster_members = Table(
    "cluster_members",
    metadata,
    _study_column(),
    Column("cluster", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("persona_id", Text, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("key", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("train_tokens", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    # SQLite cannot store NaN: a loss that is not a number is NULL.
    Column("first_loss", Float),
    Column("last_loss", Float),
    Column("n_bytes", BigInteger, nullable=False),
    Column("run_id", Text),
    Column("uri", Text),
    # NULL for adapters recorded before weights were digested.
    Column("weights_sha256", Text),
)

study_adapters = Table(
    "study_adapters",
    metadata,
    _study_column(),
    Column("key", Text, ForeignKey("adapters.key"), primary_key=True),
)

learning_curves = Table(
    "learning_curves",
    metadata,
    Column("key", Text, ForeignKey("adapters.key"), primary_key=True),
    Column("split", Text, primary_key=True),
    # A JSON list: one loss per step (train) or epoch (val).
    Column("losses", Text, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    _study_column(),
    Column("group", Text, primary_key=True),  # a training group, or a shard of an evaluation
    Column("number", Integer, primary_key=True),
    Column("micro_batch", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("detail", Words, nullable=False),
    Column("peak_memory_bytes", BigInteger),
)

memory_limits = Table(
    "memory_limits",
    metadata,
    Column("base", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("max_length", Integer, primary_key=True),
    Column("micro_batch", Integer, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    # A digest of study, composition, persona and item, so that scores can refer to it without reading it back.
    Column("id", Text, primary_key=True),
    Column("study", Text, ForeignKey("studies.name"), nullable=False),
    Column("composition_key", Text, nullable=False),
    Column("persona_id", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("text", Words, nullable=False),
    Index("ix_answers_study_composition_key", "study", "composition_key"),
)

scores = Table(
    "scores",
    metadata,
    Column("answer_id", Text, ForeignKey("answers.id"), primary_key=True),
    Column("metric", Text, primary_key=True),
    # NULL stands for NaN.
    Column("value", Float),
)

routes = Table(
    "routes",
    metadata,
    _study_column(),
    Column("method", Text, primary_key=True),
    Column("persona_id", Text, primary_key=True),
    Column("seed", Integer, primary_key=True),
    Column("composition", Text, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    _study_column(),
    Column("rung", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("criteria", Text, nullable=False),
    Column("n_personas", Integer, nullable=False),
    Column("n_items", Integer, nullable=False),
    Column("notes", Text, nullable=False, server_default="[]"),
)
