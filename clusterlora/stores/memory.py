"""Small real implementations of the ports that keep everything in memory: for tests, and for runs that need no server."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from clusterlora.errors import UnknownName
from clusterlora.ports.model_registry import About, ModelVersion
from clusterlora.ports.study_store import Duplicates
from clusterlora.ports.tracker import AdapterRun, OpenRun
from clusterlora.settings import PreparedStudy, check_study_name
from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.stores.metadata_kinds import WORD_BY_KIND
from clusterlora.stores.resume import refuse_other_data, refuse_other_settings
from clusterlora.values import Answer, Attempt, Clustering, Dataset, LearningCurve, Route, TrainedAdapter, Verdict

T = TypeVar("T")


class SilentLog:
    """A RunLog that says nothing."""

    def phase(self, name: str, *, total: int, unit: str) -> None: ...

    def advance(self, units: int = 1, **facts: float) -> None: ...

    def metric(self, name: str, value: float, *, step: int) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass(slots=True)
class _StudyRecord:
    study: PreparedStudy
    created: str
    status: str = "created"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    dataset: Dataset | None = None
    clustering: Clustering | None = None
    adapter_keys: set[str] = field(default_factory=set[str])
    attempts: dict[tuple[str, int], Attempt] = field(default_factory=dict[tuple[str, int], Attempt])
    answers: dict[tuple[str, str, str], Answer] = field(default_factory=dict[tuple[str, str, str], Answer])
    routes: dict[tuple[str, str, int], Route] = field(default_factory=dict[tuple[str, str, int], Route])
    verdicts: dict[str, Verdict] = field(default_factory=dict[str, Verdict])


class MemoryStudyStore:
    """A StudyStore that dies with its process."""

    def __init__(self) -> None:
        self._studies: dict[str, _StudyRecord] = {}
        self._adapters: dict[str, TrainedAdapter] = {}
        self._curves: dict[str, tuple[LearningCurve, ...]] = {}
        self._memory_limits: dict[tuple[str, str, int], int] = {}

    def create_study(self, study: PreparedStudy) -> None:
        record = self._studies.get(check_study_name(study.name))
        if record is None:
            record = self._studies[study.name] = _StudyRecord(study, datetime.now(UTC).isoformat(timespec="microseconds"))
        else:
            refuse_other_settings(record.study, study)
            record.study = study

    def study(self, name: str) -> PreparedStudy:
        return self._record(name).study

    def studies(self) -> tuple[tuple[str, str, str], ...]:
        return tuple((name, r.status, r.created) for name, r in reversed(self._studies.items()))

    def set_status(self, name: str, status: str) -> None:
        self._record(name).status = status

    def status(self, name: str) -> str:
        return self._record(name).status

    def save_metadata(self, study: str, value: object) -> None:
        self._record(study).metadata[WORD_BY_KIND[type(value)]] = to_json(value)

    def metadata(self, study: str, kind: type[T]) -> T | None:
        text = self._record(study).metadata.get(WORD_BY_KIND[kind])
        return None if text is None else from_json(kind, text)

    def add_seconds(self, study: str, phase: str, part: str, seconds: float) -> None:
        recorded = self._record(study).seconds
        recorded[phase, part] = recorded.get((phase, part), 0.0) + seconds

    def seconds(self, study: str) -> tuple[tuple[str, str, float], ...]:
        return tuple((phase, part, seconds) for (phase, part), seconds in sorted(self._record(study).seconds.items()))

    def save_dataset(self, study: str, dataset: Dataset) -> None:
        record = self._record(study)
        refuse_other_data(study, record.dataset and record.dataset.digest, dataset)
        record.dataset = dataset

    def dataset(self, study: str) -> Dataset:
        dataset = self._record(study).dataset
        if dataset is None:
            raise UnknownName(f"study {study!r} has no data yet; prepare it first")
        return dataset

    def save_clustering(self, study: str, clustering: Clustering) -> None:
        self._record(study).clustering = clustering

    def clustering(self, study: str) -> Clustering | None:
        return self._record(study).clustering

    def save_adapter(
        self, study: str, adapter: TrainedAdapter, *, curves: Sequence[LearningCurve] = (), instead_of: TrainedAdapter | None = None
    ) -> None:
        if curves:
            self._curves.setdefault(adapter.key, tuple(sorted((_six_digits(curve) for curve in curves), key=lambda curve: curve.split)))
        self._record(study).adapter_keys.add(adapter.key)
        known = self._adapters.setdefault(adapter.key, adapter)
        if instead_of is not None and _weights(known) == _weights(instead_of):
            self._adapters[adapter.key] = adapter

    def adapter(self, key: str) -> TrainedAdapter | None:
        return self._adapters.get(key)

    def move_adapter(self, key: str, *, run_id: str, uri: str) -> None:
        self._adapters[key] = replace(self._adapters[key], run_id=run_id, uri=uri)

    def forget_adapter(self, key: str) -> None:
        self._adapters.pop(key, None)
        self._curves.pop(key, None)
        for record in self._studies.values():
            record.adapter_keys.discard(key)

    def adapters(self, study: str) -> tuple[TrainedAdapter, ...]:
        return tuple(sorted((self._adapters[k] for k in self._record(study).adapter_keys), key=lambda a: (a.name, a.key)))

    def learning_curves(self, study: str) -> Mapping[str, tuple[LearningCurve, ...]]:
        return {key: self._curves[key] for key in sorted(self._record(study).adapter_keys) if key in self._curves}

    def open_attempt(self, study: str, attempt: Attempt) -> None:
        attempts = self._record(study).attempts
        known = attempts.get((attempt.group, attempt.number))
        if known is None or known.state == "running":
            attempts[attempt.group, attempt.number] = attempt

    def close_attempt(
        self, study: str, group: str, number: int, *, state: str, detail: str = "", peak_memory_bytes: int | None = None
    ) -> None:
        attempts = self._record(study).attempts
        attempt = attempts.get((group, number), Attempt(group, number, micro_batch=0, state="running"))
        if attempt.state == "running":
            attempts[group, number] = replace(attempt, state=state, detail=detail, peak_memory_bytes=peak_memory_bytes)

    def attempts(self, study: str, group: str | None = None) -> tuple[Attempt, ...]:
        attempts = self._record(study).attempts
        return tuple(attempts[key] for key in sorted(attempts) if group in (None, key[0]))

    def save_memory_limit(self, base: str, device: str, max_length: int, *, micro_batch: int) -> None:
        place = (base, device, max_length)
        self._memory_limits[place] = min(micro_batch, self._memory_limits.get(place, micro_batch))

    def memory_limit(self, base: str, device: str, max_length: int) -> int | None:
        return self._memory_limits.get((base, device, max_length))

    def save_answers(self, study: str, answers: Iterable[Answer]) -> None:
        kept = self._record(study).answers
        for answer in answers:
            kept[answer.composition_key, answer.persona_id, answer.item_id] = replace(answer, scores=tuple(sorted(answer.scores)))

    def answers(self, study: str, composition_keys: Sequence[str] | None = None) -> tuple[Answer, ...]:
        kept = self._record(study).answers
        return tuple(kept[key] for key in sorted(kept) if composition_keys is None or key[0] in composition_keys)

    def duplicates(self, study: str) -> tuple[Duplicates, ...]:
        self._record(study)
        return ()

    def drop_duplicate_answers(self, study: str) -> None: ...

    def save_routes(self, study: str, routes: Sequence[Route]) -> None:
        self._record(study).routes.update({(r.method, r.persona_id, r.seed): r for r in routes})

    def routes(self, study: str) -> tuple[Route, ...]:
        routes = self._record(study).routes
        return tuple(routes[key] for key in sorted(routes))

    def save_verdict(self, study: str, verdict: Verdict) -> None:
        self._record(study).verdicts[verdict.rung] = verdict

    def verdicts(self, study: str) -> tuple[Verdict, ...]:
        return tuple(self._record(study).verdicts.values())

    def _record(self, name: str) -> _StudyRecord:
        if name not in self._studies:
            raise UnknownName(f"unknown study {name!r}; known: {', '.join(self._studies) or 'none'}")
        return self._studies[name]


def _six_digits(curve: LearningCurve) -> LearningCurve:
    return replace(curve, losses=tuple(float(f"{loss:.6g}") for loss in curve.losses))


def _weights(adapter: TrainedAdapter) -> tuple[str | None, ...]:
    return adapter.run_id, adapter.uri, adapter.weights_sha256


@dataclass(slots=True)
class MemoryRun:
    """A run of MemoryTracker: what was logged to it, for a test to look at."""

    run_id: str
    name: str
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    status: str = "RUNNING"
    values: dict[str, float] = field(default_factory=dict[str, float])
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict[str, list[tuple[int, float]]])
    uploads: dict[str, Path] = field(default_factory=dict[str, Path])

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        self.curves.setdefault(name, []).extend(points)

    def metrics(self, values: Mapping[str, float]) -> None:
        self.values.update(values)

    def tag(self, values: Mapping[str, str]) -> None:
        self.tags.update(values)

    def artifacts(self, folder: Path, path: str) -> str:
        self.uploads[path] = folder
        return f"memory:/{self.run_id}/{path}"


class MemoryTracker:
    """A Tracker that sends nothing anywhere, for tests to look at.

    `runs` holds every run by id, `models` every version by registered name, `champions` the champion's version number.
    """

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.models: dict[str, list[MemoryVersion]] = {}
        self.champions: dict[str, int] = {}
        self.verdicts: dict[str, list[Verdict]] = {}

    def start_study(self, study: str, *, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset, running: bool = True) -> str:
        is_new = study not in self.runs
        run = self._parent(study)
        run.params.update(params)
        run.tags.update(tags, data_digest=dataset.digest)
        if running or is_new:
            run.status = "RUNNING" if running else "FINISHED"
        return run.run_id

    @contextmanager
    def adapter_run(self, study: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[AdapterRun]:
        run = MemoryRun(f"{study}-{len(self.runs)}", name, dict(params), dict(tags))
        self.runs[run.run_id] = run
        try:
            yield run
        except BaseException:
            run.status = "FAILED"
            raise
        run.status = "FINISHED"

    def log_verdict(self, study: str, verdict: Verdict) -> None:
        self.verdicts.setdefault(study, []).append(verdict)

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float], description: str = "") -> None:
        self._parent(study).tags["description"] = description
        self._parent(study).artifacts(folder, "results")
        self._parent(study).metrics(metrics)

    def page(self, study: str) -> str | None:  # noqa: ARG002  (there is no page)
        return None

    def link(self, study: str, name: str, address: str) -> None:
        self._parent(study).tags[name] = address

    def register_router(
        self,
        study: str,
        *,
        routes: Mapping[str, Any],
        adapter_folders: Mapping[str, Path],
        champion: bool,
        model: str | None = None,
        about: About | None = None,
    ) -> str:
        name = f"{study}-{model}" if model else study
        number = self._register(name, MemoryVersion(dict(routes), dict(adapter_folders), about))
        if champion:
            self.champions[name] = number
        return f"models:/{name}/{number}"

    def end_study(self, study: str, *, status: str, seconds: Mapping[str, float] | None = None) -> None:
        self._parent(study).metrics({f"seconds/{phase}": value for phase, value in (seconds or {}).items()})
        self._parent(study).tags["status"] = status
        self._parent(study).status = "FAILED" if status == "failed" else "FINISHED"

    @property
    def keeps_adapters(self) -> bool:
        return False

    def download(self, uri: str, folder: Path) -> bool:  # noqa: ARG002
        return False

    def upload(self, study: str, *, adapter: TrainedAdapter, folder: Path) -> tuple[str, str]:
        run = self._parent(study)
        return run.run_id, run.artifacts(folder, f"adapters/{adapter.name}")

    def open_runs(self, study: str) -> tuple[OpenRun, ...]:  # noqa: ARG002
        return ()

    def kill_run(self, run_id: str) -> None: ...

    def versions(self, study: str) -> tuple[ModelVersion, ...]:  # noqa: ARG002
        return ()

    def drop_version(self, name: str, version: str) -> None: ...

    def _parent(self, study: str) -> MemoryRun:
        """Return a study's parent run, made here when another process started the study."""
        return self.runs.setdefault(study, MemoryRun(study, study))

    def _register(self, name: str, version: "MemoryVersion") -> int:
        versions = self.models.setdefault(name, [])
        known = [v.content for v in versions]
        if version.content in known:
            return known.index(version.content) + 1
        versions.append(version)
        return len(versions)


@dataclass(frozen=True, slots=True)
class MemoryVersion:
    """A version of a model of MemoryTracker: what it was made of, and the adapter folders it came with, by key."""

    content: dict[str, Any]
    folders: dict[str, Path]
    about: About | None = None
