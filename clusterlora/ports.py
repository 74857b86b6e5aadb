"""What the core needs from the outside world. Real implementations live in stores/ and models/; the fakes in stores/memory.py."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from clusterlora.settings import PreparedStudy
from clusterlora.values import Answer, Attempt, Clustering, Dataset, LearningCurve, Route, TrainedAdapter, Verdict

T = TypeVar("T")


@runtime_checkable
class RunLog(Protocol):
    """Where progress and curves go: a rich bar, a Prefect progress artifact, an MLflow run, or nowhere."""

    def phase(self, name: str, *, total: int, unit: str) -> None:
        """Begin a stretch of work of `total` units; the previous one is over."""
        ...

    def advance(self, units: int = 1, **facts: float) -> None:
        """Report that so many more units are done; facts are shown beside the bar (loss, tokens_per_second)."""
        ...

    def metric(self, name: str, value: float, *, step: int) -> None:
        """Record one point of a curve."""
        ...

    def note(self, message: str) -> None:
        """Say one line."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A sentence embedding model."""

    name: str
    revision: str

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return unit-length embeddings, one row per text."""
        ...


RowKind = Literal["personas", "dialogues", "cluster_members", "answers"]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows of one kind that a study holds more than once: how many, and the first one with how often it is there."""

    rows: RowKind
    n: int
    example: tuple[str, ...]
    times: int

    def __str__(self) -> str:
        nouns = {
            "personas": "positions of personas",
            "dialogues": "dialogues of a persona",
            "cluster_members": "personas in clusters",
            "answers": "answers",
        }
        return f"{self.n} {nouns[self.rows]} are there more than once, for example {', '.join(self.example)} ({self.times} times)"


class StudyStore(Protocol):
    """The study database. Every write is idempotent: writing the same thing twice leaves one row."""

    def create_study(self, study: PreparedStudy) -> None:
        """Record a study; resuming it with the same settings is fine.

        Raises:
            BadSettings: a study of this name exists with other settings (runtime aside); names the fields that differ.
        """
        ...

    def study(self, name: str) -> PreparedStudy:
        """Return a study's settings as prepared. Raises UnknownName."""
        ...

    def studies(self) -> tuple[tuple[str, str, str], ...]:
        """Return (name, status, created) of every study, newest first."""
        ...

    def set_status(self, name: str, status: str) -> None: ...

    def status(self, name: str) -> str: ...

    def save_metadata(self, study: str, value: object) -> None:
        """Record a value of one of the kinds in `stores.metadata_kinds`; the last one of its kind stays."""
        ...

    def metadata(self, study: str, kind: type[T]) -> T | None:
        """Return the study's value of this kind; None when it was not recorded."""
        ...

    def add_seconds(self, study: str, phase: str, part: str, seconds: float) -> None:
        """Add to the time that a part of a phase has taken; `part` is empty where a phase has none."""
        ...

    def seconds(self, study: str) -> tuple[tuple[str, str, float], ...]:
        """Return (phase, part, seconds) of everything timed, by phase and part."""
        ...

    def save_dataset(self, study: str, dataset: Dataset) -> None:
        """Keep personas and split dialogues. Raises BadData when the study already holds other data."""
        ...

    def dataset(self, study: str) -> Dataset: ...

    def save_clustering(self, study: str, clustering: Clustering) -> None: ...

    def clustering(self, study: str) -> Clustering | None: ...

    def save_adapter(
        self, study: str, adapter: TrainedAdapter, *, curves: Sequence[LearningCurve] = (), instead_of: TrainedAdapter | None = None
    ) -> None:
        """Record a trained adapter with its learning curves under its key and link it to the study.

        The first record of a key stays, unless it is `instead_of`: one whose weights are lost, for every study that has it.
        """
        ...

    def adapter(self, key: str) -> TrainedAdapter | None: ...

    def move_adapter(self, key: str, *, run_id: str, uri: str) -> None:
        """Record that other machines find an adapter's weights elsewhere."""
        ...

    def forget_adapter(self, key: str) -> None:
        """Take an adapter whose weights are lost out of every study: it will be trained again."""
        ...

    def adapters(self, study: str) -> tuple[TrainedAdapter, ...]: ...

    def learning_curves(self, study: str) -> Mapping[str, tuple[LearningCurve, ...]]:
        """Return the curves of the study's adapters by key, to six digits; merged and imported adapters have none."""
        ...

    def open_attempt(self, study: str, attempt: Attempt) -> None: ...

    def close_attempt(
        self, study: str, group: str, number: int, *, state: str, detail: str = "", peak_memory_bytes: int | None = None
    ) -> None:
        """End an attempt, creating its row when it never started; an attempt that already ended keeps its first end."""
        ...

    def attempts(self, study: str, group: str | None = None) -> tuple[Attempt, ...]: ...

    def save_memory_limit(self, base: str, device: str, max_length: int, *, micro_batch: int) -> None:
        """Remember that trainings on a base revision run out of a device's memory above this micro-batch; the smallest one stays."""
        ...

    def memory_limit(self, base: str, device: str, max_length: int) -> int | None:
        """Return the largest micro-batch to try there; None when nothing has failed yet."""
        ...

    def save_answers(self, study: str, answers: Iterable[Answer]) -> None: ...

    def answers(self, study: str, composition_keys: Sequence[str] | None = None) -> tuple[Answer, ...]: ...

    def duplicates(self, study: str) -> tuple["Duplicates", ...]:
        """Return what the study holds more than once, one value per kind of row."""
        ...

    def drop_duplicate_answers(self, study: str) -> None:
        """Remove answers that stand beside another to the same question; the one whose id is right stays."""
        ...

    def save_routes(self, study: str, routes: Sequence[Route]) -> None:
        """Record each persona's route of each method; the last write wins, and routes not named stay (shards write their own)."""
        ...

    def routes(self, study: str) -> tuple[Route, ...]: ...

    def save_verdict(self, study: str, verdict: Verdict) -> None: ...

    def verdicts(self, study: str) -> tuple[Verdict, ...]: ...


class AdapterStore(Protocol):
    """Adapter weights as PEFT folders, by content key. A folder that can be seen is complete."""

    def path(self, key: str) -> Path | None:
        """Return a local folder holding the adapter, fetching it if it is elsewhere; None when nobody has it."""
        ...

    def save(self, key: str, folder: Path) -> Path:
        """Keep a copy of a PEFT folder under its key, atomically; return where it lies."""
        ...

    def scratch(self, key: str) -> Path:
        """Return this adapter's folder for checkpoints of unfinished training; it survives a crash."""
        ...

    def drop_scratch(self, key: str) -> None: ...

    def local(self, key: str) -> Path | None:
        """Return the folder of an adapter that is here, without fetching it."""
        ...

    def local_keys(self) -> tuple[str, ...]:
        """Return the keys of the adapters that are here."""
        ...

    def scratch_keys(self) -> tuple[str, ...]:
        """Return the keys that have checkpoints here."""
        ...

    def quarantine(self, key: str) -> Path:
        """Move an adapter out of the store into its quarantine folder, and return the folder; nothing is deleted."""
        ...

    def half_written(self) -> tuple[Path, ...]:
        """Return the folders of copies and downloads that never ended, or are under way."""
        ...


@dataclass(frozen=True, slots=True)
class About:
    """What is said of a registered model: its card in Markdown, and tags to search by."""

    card: str
    tags: Mapping[str, str]


class Tracker(Protocol):
    """The experiment tracker and model registry (MLflow)."""

    def start_study(self, study: str, *, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset, running: bool = True) -> str:
        """Create or find the study's experiment and parent run; return the parent run's id.

        The parent run is then running; without `running` one that was there stays in its status, and one that is made has ended.
        """
        ...

    def adapter_run(
        self, study: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> AbstractContextManager["AdapterRun"]:
        """Open a child run for one adapter; it ends FINISHED, or FAILED when the block raises."""
        ...

    def log_verdict(self, study: str, verdict: Verdict) -> None: ...

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float], description: str = "") -> None:
        """Attach everything under `folder` (tables, figures) and the summary metrics to the parent run, and describe the experiment."""
        ...

    def page(self, study: str) -> str | None:
        """Return the address of the study's parent run in the tracker's UI, if it has one."""
        ...

    def link(self, study: str, name: str, address: str) -> None:
        """Keep the address of another system's page with the parent run."""
        ...

    def register_router(
        self,
        study: str,
        *,
        routes: Mapping[str, Any],
        adapter_folders: Mapping[str, Path],
        champion: bool,
        model: str | None = None,
        about: "About | None" = None,
    ) -> str | None:
        """Add a version of `<study>` (or of `<study>-<model>`) that answers everybody, unless one with this content exists.

        `routes` is a `stores.routing_table.RoutingTable` as plain JSON values: one adapter for all, or everybody's own. Returns the
        version's URI, to which alias champion moves when `champion`; None where there is no registry.
        """
        ...

    def end_study(self, study: str, *, status: str, seconds: Mapping[str, float] | None = None) -> None:
        """End the study's parent run; what each phase took becomes its metrics."""
        ...

    @property
    def keeps_adapters(self) -> bool:
        """Whether adapters that were uploaded can be had back, by any process."""
        ...

    def download(self, uri: str, folder: Path) -> bool:
        """Fill an existing folder with what was uploaded; false when there is nothing under this URI."""
        ...

    def upload(self, study: str, *, adapter: TrainedAdapter, folder: Path) -> tuple[str, str]:
        """Upload an adapter again, to its run if that exists, else to the study's; return (run id, URI)."""
        ...

    def open_runs(self, study: str) -> tuple["OpenRun", ...]:
        """Return the study's runs that have not ended, its parent run included."""
        ...

    def kill_run(self, run_id: str) -> None:
        """End a run that nobody will end any more."""
        ...

    def versions(self, study: str) -> tuple["ModelVersion", ...]:
        """Return the versions of the study's registered models."""
        ...

    def drop_version(self, name: str, version: str) -> None: ...


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A tracker's run that has not ended; the study's parent run has no training group and no attempt."""

    run_id: str
    name: str
    group: str | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version in the registry. `whole` says that the model and as many adapters as it was made of are among its artifacts.

    `content` is its identity as the registry keeps it, `uri` where its routes.json and its adapters can be downloaded from.
    """

    name: str
    version: str
    adapter_keys: tuple[str, ...]
    whole: bool
    content: str
    uri: str


class AdapterRun(Protocol):
    """An open child run."""

    run_id: str

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Log many points of one metric in one request."""
        ...

    def metrics(self, values: Mapping[str, float]) -> None: ...

    def tag(self, values: Mapping[str, str]) -> None: ...

    def artifacts(self, folder: Path, path: str) -> str:
        """Upload a folder; return its URI."""
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything the stages read from and write to. `home` is the folder of the studies' results."""

    studies: StudyStore
    adapters: AdapterStore
    tracker: Tracker
    home: Path

    def folder(self, study: str) -> Path:
        """Return the folder where people find a study's results, logs and adapters."""
        return self.home / study
