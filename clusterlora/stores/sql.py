"""The study database on SQLite or PostgreSQL."""

import math
import threading
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from clusterlora.errors import UnknownName
from clusterlora.ports.study_store import AnswerKey, DeviceUse, Duplicates
from clusterlora.settings import PreparedStudy, check_study_name
from clusterlora.stores import duplicates, forgetting, rows, schema
from clusterlora.stores.database import Database
from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.stores.metadata_kinds import NAME_BY_KIND
from clusterlora.stores.resume import refuse_other_data, refuse_other_settings
from clusterlora.values import Answer, Attempt, Clustering, Dataset, LearningCurve, Route, Split, TrainedAdapter, Verdict

T = TypeVar("T")

_ANSWERS_PER_BATCH = 2000

_KEYS_PER_QUERY = 5000
"""Databases take some ten thousands of values per query; a person's own adapter is a key of its own."""

_ROWS_AT_ONCE = 2000

_cached_dataset: dict[str, Dataset] = {}
"""The data set read last, by its digest: every step reads it, and the data under a digest never change."""
_reading_dataset = threading.Lock()
"""Of steps in threads of one process one reads it, and the others find it."""


def forget_dataset() -> None:
    """Drop the data set that this process keeps: it is read again when it is needed."""
    _cached_dataset.clear()


class SqlStudyStore:
    """A StudyStore in a database that any number of processes and machines may write to at once."""

    def __init__(self, url: str) -> None:
        """Open the database, making or migrating its tables when needed.

        Args:
            url: `sqlite:///path/to/file.db` or `postgresql://user:password@host/name`.

        Raises:
            BadSettings: the URL is of neither kind.
            ServiceDown: the database does not answer.
        """
        self._database = Database(url)

    def create_study(self, study: PreparedStudy) -> None:
        row = {"name": check_study_name(study.name), "status": "created", "settings": to_json(study)}
        row["created"] = datetime.now(UTC).isoformat(timespec="microseconds")
        with self._database.writing() as connection:
            self._database.upsert(connection, schema.studies, [row], replace=False)
            refuse_other_settings(from_json(PreparedStudy, self._value(connection, study.name, "settings")), study)
            connection.execute(_of_study(sa.update(schema.studies), study.name).values(settings=row["settings"]))

    def study(self, name: str) -> PreparedStudy:
        with self._database.reading() as connection:
            return from_json(PreparedStudy, self._value(connection, name, "settings"))

    def studies(self) -> tuple[tuple[str, str, str], ...]:
        table = schema.studies
        with self._database.reading() as connection:
            query = sa.select(table.c.name, table.c.status, table.c.created).order_by(table.c.created.desc())
            return tuple((row.name, row.status, row.created) for row in connection.execute(query))

    def set_status(self, name: str, status: str) -> None:
        with self._writing(name) as connection:
            connection.execute(_of_study(sa.update(schema.studies), name).values(status=status))

    def status(self, name: str) -> str:
        with self._database.reading() as connection:
            return self._value(connection, name, "status")

    def save_metadata(self, study: str, value: object) -> None:
        row = {"study": study, "kind": NAME_BY_KIND[type(value)], "value": to_json(value)}
        with self._writing(study) as connection:
            self._database.upsert(connection, schema.study_metadata, [row], replace=True)

    def metadata(self, study: str, kind: type[T]) -> T | None:
        table = schema.study_metadata
        query = _of_study(sa.select(table.c.value), study).where(table.c.kind == NAME_BY_KIND[kind])
        with self._reading(study) as connection:
            text = connection.execute(query).scalar_one_or_none()
        return None if text is None else from_json(kind, text)

    def add_seconds(self, study: str, phase: str, part: str, seconds: float) -> None:
        table = schema.phase_seconds
        same_part = (table.c.study == study, table.c.phase == phase, table.c.part == part)
        with self._writing(study) as connection:
            self._database.upsert(connection, table, [{"study": study, "phase": phase, "part": part, "seconds": 0.0}], replace=False)
            connection.execute(sa.update(table).where(*same_part).values(seconds=table.c.seconds + seconds))

    def seconds(self, study: str) -> tuple[tuple[str, str, float], ...]:
        # Not sorted by the database: the collations of PostgreSQL differ between servers.
        return tuple(sorted((row.phase, row.part, row.seconds) for row in self._read(study, schema.phase_seconds)))

    def add_device_use(self, study: str, use: DeviceUse) -> None:
        table = schema.device_use
        amounts = {"seconds": use.seconds, "metered_seconds": use.metered_seconds, "joules": use.joules, "train_tokens": use.train_tokens}
        same = (table.c.study == study, table.c.phase == use.phase, table.c.device == use.device)
        nothing = {"study": study, "phase": use.phase, "device": use.device, **dict.fromkeys(amounts, 0)}
        with self._writing(study) as connection:
            self._database.upsert(connection, table, [nothing], replace=False)
            connection.execute(sa.update(table).where(*same).values({name: table.c[name] + value for name, value in amounts.items()}))

    def device_use(self, study: str) -> tuple[DeviceUse, ...]:
        uses = [
            DeviceUse(row.phase, row.device, row.seconds, row.metered_seconds, row.joules, row.train_tokens)
            for row in self._read(study, schema.device_use)
        ]
        return tuple(sorted(uses, key=lambda use: (use.phase, use.device)))

    def save_dataset(self, study: str, dataset: Dataset) -> None:
        with self._writing(study) as connection:
            refuse_other_data(study, self._value(connection, study, "data_digest"), dataset)
            connection.execute(_of_study(sa.update(schema.studies), study).values(data_digest=dataset.digest))
            self._database.upsert(connection, schema.personas, rows.of_personas(study, dataset), replace=False)
            self._database.upsert(connection, schema.dialogues, rows.of_dialogues(study, dataset), replace=False)

    def dataset(self, study: str) -> Dataset:
        with self._database.reading() as connection:
            digest = self._value(connection, study, "data_digest")
        if digest is None:
            raise UnknownName(f"study {study!r} has no data yet; prepare it first")
        with _reading_dataset:
            return _cached_dataset.get(digest) or self._read_dataset(study, digest)

    def _read_dataset(self, study: str, digest: str) -> Dataset:
        of_study = (_of_study(sa.select(table), study).order_by(table.c.position) for table in (schema.personas, schema.dialogues))
        with self._reading(study) as connection:
            personas, dialogues = (connection.execute(query).yield_per(_ROWS_AT_ONCE) for query in of_study)
            dataset = rows.dataset(personas, dialogues)
        _cached_dataset.clear()
        _cached_dataset[digest] = dataset
        return dataset

    def forget_data(
        self, study: str, dataset: Dataset, clustering: Clustering | None, keep: Sequence[type], metadata: Sequence[object] = ()
    ) -> None:
        kept = [NAME_BY_KIND[kind] for kind in keep]
        with self._writing(study) as connection:
            forgetting.delete_derived(connection, study, kept)
            connection.execute(_of_study(sa.update(schema.studies), study).values(data_digest=dataset.digest))
            self._database.upsert(connection, schema.personas, rows.of_personas(study, dataset), replace=True)
            self._database.upsert(connection, schema.dialogues, rows.of_dialogues(study, dataset), replace=True)
            if clustering is not None:
                self._database.upsert(connection, schema.clusterings, [rows.of_clustering(study, clustering)], replace=True)
                self._database.upsert(connection, schema.cluster_members, rows.of_members(study, clustering), replace=True)
            recorded = [{"study": study, "kind": NAME_BY_KIND[type(value)], "value": to_json(value)} for value in metadata]
            self._database.upsert(connection, schema.study_metadata, recorded, replace=True)
        _cached_dataset.clear()

    def forget_study(self, study: str) -> None:
        with self._writing(study) as connection:
            forgetting.delete_study(connection, study)
        _cached_dataset.clear()

    def scrub(self) -> None:
        self._database.scrub()

    def save_clustering(self, study: str, clustering: Clustering) -> None:
        with self._writing(study) as connection:
            connection.execute(_of_study(sa.delete(schema.cluster_members), study))
            self._database.upsert(connection, schema.clusterings, [rows.of_clustering(study, clustering)], replace=True)
            self._database.upsert(connection, schema.cluster_members, rows.of_members(study, clustering), replace=True)

    def clustering(self, study: str) -> Clustering | None:
        clusterings = self._read(study, schema.clusterings)
        if not clusterings:
            return None
        return rows.clustering(clusterings[0], self._read(study, schema.cluster_members, order=("cluster", "position")))

    def save_adapter(
        self, study: str, adapter: TrainedAdapter, *, curves: Sequence[LearningCurve] = (), instead_of: TrainedAdapter | None = None
    ) -> None:
        lost = _has_weights_of(instead_of) if instead_of else None
        with self._writing(study) as connection:
            self._database.upsert(connection, schema.adapters, [rows.of_adapter(adapter)], replace=instead_of is not None, where=lost)
            # The same key means the same training, so it does not matter which of two equal curves stays.
            self._database.upsert(
                connection, schema.learning_curves, [rows.of_curve(adapter.key, curve) for curve in curves], replace=False
            )
            self._database.upsert(connection, schema.study_adapters, [{"study": study, "key": adapter.key}], replace=False)

    def save_adapters(self, study: str, adapters: Sequence[TrainedAdapter], curves: Mapping[str, Sequence[LearningCurve]]) -> None:
        # In one order everywhere, so that two writers of the same adapters cannot deadlock.
        in_order = sorted(adapters, key=lambda adapter: adapter.key)
        with self._writing(study) as connection:
            self._database.upsert(connection, schema.adapters, [rows.of_adapter(adapter) for adapter in in_order], replace=False)
            of_curves = [rows.of_curve(adapter.key, curve) for adapter in in_order for curve in curves.get(adapter.key, ())]
            self._database.upsert(connection, schema.learning_curves, of_curves, replace=False)
            links = [{"study": study, "key": adapter.key} for adapter in in_order]
            self._database.upsert(connection, schema.study_adapters, links, replace=False)

    def adapter(self, key: str) -> TrainedAdapter | None:
        with self._database.reading() as connection:
            row = connection.execute(sa.select(schema.adapters).where(schema.adapters.c.key == key)).one_or_none()
        return rows.adapter(row) if row else None

    def is_uri_used(self, uri: str) -> bool:
        with self._database.reading() as connection:
            return connection.execute(sa.select(schema.adapters.c.key).where(schema.adapters.c.uri == uri).limit(1)).first() is not None

    def move_adapter(self, key: str, *, run_id: str, uri: str) -> None:
        with self._database.writing() as connection:
            connection.execute(sa.update(schema.adapters).where(schema.adapters.c.key == key).values(run_id=run_id, uri=uri))

    def forget_adapter(self, key: str, *, only_of: Collection[str] | None = None) -> bool:
        links = schema.study_adapters.c
        with self._database.writing() as connection:
            # Whoever links the adapter waits for this row.
            connection.execute(sa.select(schema.adapters.c.key).where(schema.adapters.c.key == key).with_for_update())
            having = connection.execute(sa.select(links.study).where(links.key == key)).scalars()
            if only_of is not None and not set(having) <= set(only_of):
                return False
            for table in (schema.study_adapters, schema.learning_curves, schema.adapters):
                connection.execute(sa.delete(table).where(table.c.key == key))
            return True

    def unlink_adapter(self, study: str, key: str) -> None:
        links = schema.study_adapters
        with self._writing(study) as connection:
            connection.execute(sa.delete(links).where(links.c.study == study, links.c.key == key))

    def adapters(self, study: str) -> tuple[TrainedAdapter, ...]:
        linked = sa.select(schema.adapters).join(schema.study_adapters).where(schema.study_adapters.c.study == study)
        with self._reading(study) as connection:
            adapters = [rows.adapter(row) for row in connection.execute(linked)]
        return tuple(sorted(adapters, key=lambda a: (a.name, a.key)))

    def learning_curves(self, study: str) -> Mapping[str, tuple[LearningCurve, ...]]:
        table, links = schema.learning_curves, schema.study_adapters
        query = sa.select(table).join(links, links.c.key == table.c.key).where(links.c.study == study)
        curves_by_key: dict[str, list[LearningCurve]] = {}
        with self._reading(study) as connection:
            for row in connection.execute(query.order_by(table.c.key, table.c.split)):
                curves_by_key.setdefault(row.key, []).append(rows.curve(row))
        return {key: tuple(curves) for key, curves in curves_by_key.items()}

    def open_attempt(self, study: str, attempt: Attempt) -> None:
        still_open = schema.attempts.c.state == "running"
        with self._writing(study) as connection:
            self._database.upsert(connection, schema.attempts, [rows.of_attempt(study, attempt)], replace=True, where=still_open)

    def close_attempt(
        self, study: str, group: str, number: int, *, state: str, detail: str = "", peak_memory_bytes: int | None = None
    ) -> None:
        table = schema.attempts
        same_attempt = (table.c.study == study, table.c.group == group, table.c.number == number)
        never_started = rows.of_attempt(study, Attempt(group, number, micro_batch=0, state="running"))
        with self._writing(study) as connection:
            self._database.upsert(connection, table, [never_started], replace=False)
            end = {"state": state, "detail": detail, "peak_memory_bytes": peak_memory_bytes}
            connection.execute(sa.update(table).where(*same_attempt, table.c.state == "running").values(**end))

    def attempts(self, study: str, group: str | None = None) -> tuple[Attempt, ...]:
        attempts = [rows.attempt(row) for row in self._read(study, schema.attempts)]
        return tuple(sorted((a for a in attempts if group in (None, a.group)), key=lambda a: (a.group, a.number)))

    def save_memory_limit(self, base: str, device: str, max_length: int, *, micro_batch: int) -> None:
        row = {"base": base, "device": device, "max_length": max_length, "micro_batch": micro_batch}
        smaller = schema.memory_limits.c.micro_batch > micro_batch
        with self._database.writing() as connection:
            self._database.upsert(connection, schema.memory_limits, [row], replace=True, where=smaller)

    def memory_limit(self, base: str, device: str, max_length: int) -> int | None:
        table = schema.memory_limits
        query = sa.select(table.c.micro_batch).where(table.c.base == base, table.c.device == device, table.c.max_length == max_length)
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    def save_answers(self, study: str, answers: Iterable[Answer]) -> None:
        remaining = iter(answers)
        while batch := list(islice(remaining, _ANSWERS_PER_BATCH)):
            # In one order everywhere, so that two writers of the same answers cannot deadlock.
            answer_by_id = {rows.answer_id(study, a): a for a in batch}
            ids = sorted(answer_by_id)
            with self._writing(study) as connection:
                self._database.upsert(connection, schema.answers, [rows.of_answer(study, i, answer_by_id[i]) for i in ids], replace=True)
                connection.execute(sa.delete(schema.scores).where(schema.scores.c.answer_id.in_(ids)))
                scores = [row for i in ids for row in rows.of_scores(i, answer_by_id[i])]
                self._database.upsert(connection, schema.scores, scores, replace=True)

    def answers(self, study: str, composition_keys: Sequence[str] | None = None) -> tuple[Answer, ...]:
        column = schema.answers.c.composition_key
        conditions = [sa.true()] if composition_keys is None else [column.in_(keys) for keys in _batches(sorted(set(composition_keys)))]
        with self._reading(study) as connection:
            answers = [one for condition in conditions for one in self._answers(connection, (schema.answers.c.study == study) & condition)]
        return tuple(sorted(answers, key=lambda a: (a.composition_key, a.persona_id, a.item_id)))

    def _answers(self, connection: Connection, condition: sa.ColumnElement[bool]) -> list[Answer]:
        table, scores = schema.answers, schema.scores
        answer_rows = connection.execute(sa.select(table).where(condition)).all()
        scores_by_id: dict[str, list[tuple[str, float]]] = {row.id: [] for row in answer_rows}
        for row in connection.execute(sa.select(scores).join(table).where(condition)):
            # The second query may see answers that were written after the first.
            if row.answer_id in scores_by_id:
                scores_by_id[row.answer_id].append((row.metric, math.nan if row.value is None else row.value))
        return [rows.answer(row, scores_by_id[row.id]) for row in answer_rows]

    def item_scores(
        self, study: str, composition_keys: Sequence[str], metrics: Collection[str], split: Split | None = None
    ) -> dict[AnswerKey, dict[str, float]]:
        table, scores = schema.answers, schema.scores
        joined = sa.outerjoin(table, scores, (scores.c.answer_id == table.c.id) & scores.c.metric.in_(sorted(metrics)))
        of_item = (table.c.composition_key, table.c.persona_id, table.c.item_id)
        query = sa.select(*of_item, scores.c.metric, scores.c.value).select_from(joined).where(table.c.study == study)
        if split is not None:
            query = query.where(table.c.split == split)
        found: dict[AnswerKey, dict[str, float]] = {}
        with self._reading(study) as connection:
            for keys in _batches(sorted(set(composition_keys))):
                for key, persona_id, item_id, metric, value in connection.execute(query.where(table.c.composition_key.in_(keys))):
                    of_answer = found.setdefault((key, persona_id, item_id), {})
                    if metric is not None:
                        of_answer[metric] = math.nan if value is None else value
        return found

    def duplicates(self, study: str) -> tuple[Duplicates, ...]:
        with self._reading(study) as connection:
            return duplicates.duplicates(connection, study)

    def drop_duplicate_answers(self, study: str) -> None:
        with self._writing(study) as connection:
            duplicates.drop_answers(connection, study)

    def save_routes(self, study: str, routes: Sequence[Route]) -> None:
        with self._writing(study) as connection:
            self._database.upsert(connection, schema.routes, [rows.of_route(study, r) for r in routes], replace=True)

    def routes(self, study: str) -> tuple[Route, ...]:
        return tuple(sorted((rows.route(row) for row in self._read(study, schema.routes)), key=lambda r: (r.method, r.persona_id, r.seed)))

    def save_verdict(self, study: str, verdict: Verdict) -> None:
        table = schema.verdicts
        with self._writing(study) as connection:
            judged = connection.execute(_of_study(sa.select(table.c.rung), study).order_by(table.c.position)).scalars().all()
            position = judged.index(verdict.rung) if verdict.rung in judged else len(judged)
            self._database.upsert(connection, table, [rows.of_verdict(study, position, verdict)], replace=True)

    def verdicts(self, study: str) -> tuple[Verdict, ...]:
        return tuple(rows.verdict(row) for row in self._read(study, schema.verdicts, order=("position",)))

    @contextmanager
    def _reading(self, study: str) -> Generator[Connection]:
        with self._database.reading() as connection:
            self._value(connection, study, "name")
            yield connection

    @contextmanager
    def _writing(self, study: str) -> Generator[Connection]:
        with self._database.writing() as connection:
            self._value(connection, study, "name")
            yield connection

    def _value(self, connection: Connection, study: str, column: str) -> Any:
        row = connection.execute(sa.select(schema.studies.c[column]).where(schema.studies.c.name == study)).one_or_none()
        if row is None:
            names = ", ".join(connection.execute(sa.select(schema.studies.c.name)).scalars()) or "none"
            raise UnknownName(f"unknown study {study!r}; known: {names}")
        return row[0]

    def _read(self, study: str, table: sa.Table, order: tuple[str, ...] = ()) -> Sequence[sa.Row[Any]]:
        query = _of_study(sa.select(table), study).order_by(*(table.c[name] for name in order))
        with self._reading(study) as connection:
            return connection.execute(query).all()


def _batches(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + _KEYS_PER_QUERY] for start in range(0, len(keys), _KEYS_PER_QUERY)]


def _has_weights_of(adapter: TrainedAdapter) -> sa.ColumnElement[bool]:
    table = schema.adapters
    same = (table.c[name].is_not_distinct_from(getattr(adapter, name)) for name in ("run_id", "uri", "weights_sha256"))
    return sa.and_(*same)


def _of_study(statement: Any, study: str) -> Any:
    """Return a select, update or delete limited to one study's rows."""
    table = statement.table if hasattr(statement, "table") else statement.get_final_froms()[0]
    return statement.where((table.c.name if table is schema.studies else table.c.study) == study)
