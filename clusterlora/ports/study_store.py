"""The study database: what every step reads and writes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from clusterlora.settings import PreparedStudy
from clusterlora.values import Answer, Attempt, Clustering, Dataset, LearningCurve, Route, Split, TrainedAdapter, Verdict

T = TypeVar("T")

AnswerKey = tuple[str, str, str]
"""Composition key, persona id and item id: what a study answers once."""

RowKind = Literal["personas", "dialogues", "cluster_members", "answers"]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows of one kind that a study has more than once: their number, and the first one with how many times it is there."""

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


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a device did in a phase of a study, work that failed included. Of its seconds, it told the energy of the metered ones."""

    phase: str
    device: str
    seconds: float = 0.0
    metered_seconds: float = 0.0
    joules: float = 0.0
    train_tokens: int = 0


class StudyStore(Protocol):
    """The study database. Every write is idempotent: writing the same thing twice leaves one row."""

    def create_study(self, study: PreparedStudy) -> None:
        """Record a study; one that exists with the same settings is resumed.

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
        """Record a value of one of the kinds in `stores.metadata_kinds`, replacing an earlier one of its kind."""
        ...

    def metadata(self, study: str, kind: type[T]) -> T | None:
        """Return the study's value of this kind; None when it was not recorded."""
        ...

    def add_seconds(self, study: str, phase: str, part: str, seconds: float) -> None:
        """Add to the time that a part of a phase has taken; `part` is empty for a phase without parts."""
        ...

    def seconds(self, study: str) -> tuple[tuple[str, str, float], ...]:
        """Return (phase, part, seconds) of everything timed, by phase and part."""
        ...

    def add_device_use(self, study: str, use: DeviceUse) -> None:
        """Add to what a device did in a phase of the study."""
        ...

    def device_use(self, study: str) -> tuple[DeviceUse, ...]:
        """Return what devices did, by phase and device."""
        ...

    def save_dataset(self, study: str, dataset: Dataset) -> None:
        """Record personas and split dialogues. Raises BadData when the study already has other data."""
        ...

    def dataset(self, study: str) -> Dataset: ...

    def forget_data(
        self, study: str, dataset: Dataset, clustering: Clustering | None, keep: Sequence[type], metadata: Sequence[object] = ()
    ) -> None:
        """Replace the study's people and clusters by these, and delete all that was derived from those before.

        That is answers, scores, routes, verdicts, attempts, and metadata of other kinds than `keep`; adapters are left to `forget_adapter`.
        `metadata` are recorded in the same transaction.
        """
        ...

    def forget_study(self, study: str) -> None:
        """Delete a study with everything that was recorded of it; adapters are left to `forget_adapter`."""
        ...

    def scrub(self) -> None:
        """Rewrite the database's files, so that nothing of deleted rows is left in them."""
        ...

    def save_clustering(self, study: str, clustering: Clustering) -> None: ...

    def clustering(self, study: str) -> Clustering | None: ...

    def save_adapter(
        self, study: str, adapter: TrainedAdapter, *, curves: Sequence[LearningCurve] = (), instead_of: TrainedAdapter | None = None
    ) -> None:
        """Record a trained adapter with its learning curves under its key and link it to the study.

        The first record of a key stays, unless it is `instead_of`: one whose weights are lost, for every study that has it.
        """
        ...

    def save_adapters(self, study: str, adapters: Sequence[TrainedAdapter], curves: Mapping[str, Sequence[LearningCurve]]) -> None:
        """Record trained adapters with their learning curves by key, and link them to the study, all at once; first records stay."""
        ...

    def adapter(self, key: str) -> TrainedAdapter | None: ...

    def is_uri_used(self, uri: str) -> bool:
        """Return whether an adapter is recorded whose weights the tracker has under this URI."""
        ...

    def move_adapter(self, key: str, *, run_id: str, uri: str) -> None:
        """Record another place in the tracker where other machines find an adapter's weights."""
        ...

    def forget_adapter(self, key: str, *, only_of: Collection[str] | None = None) -> bool:
        """Remove an adapter whose weights are lost or given up from every study, so that it is trained again.

        Where a study has it that `only_of` does not name, nothing is removed, and False is returned.
        """
        ...

    def unlink_adapter(self, study: str, key: str) -> None:
        """Take an adapter that other studies have from this one."""
        ...

    def adapters(self, study: str) -> tuple[TrainedAdapter, ...]: ...

    def learning_curves(self, study: str) -> Mapping[str, tuple[LearningCurve, ...]]:
        """Return the curves of the study's adapters by key, to six digits; merged and imported adapters have none."""
        ...

    def open_attempt(self, study: str, attempt: Attempt) -> None: ...

    def close_attempt(
        self, study: str, group: str, number: int, *, state: str, detail: str = "", peak_memory_bytes: int | None = None
    ) -> None:
        """End an attempt, creating its row when it never started; one that has already ended is not changed."""
        ...

    def attempts(self, study: str, group: str | None = None) -> tuple[Attempt, ...]: ...

    def save_memory_limit(self, base: str, device: str, max_length: int, *, micro_batch: int) -> None:
        """Record that training on a base revision runs out of a device's memory above this micro-batch; the smallest one is kept.

        Args:
            device: with what else decides how much fits, such as the dtype.
        """
        ...

    def memory_limit(self, base: str, device: str, max_length: int) -> int | None:
        """Return the largest micro-batch to try on that device; None when none has failed yet."""
        ...

    def save_answers(self, study: str, answers: Iterable[Answer]) -> None: ...

    def answers(self, study: str, composition_keys: Sequence[str] | None = None) -> tuple[Answer, ...]: ...

    def item_scores(
        self, study: str, composition_keys: Sequence[str], metrics: Collection[str], split: Split | None = None
    ) -> dict[AnswerKey, dict[str, float]]:
        """Return what the answers of these compositions have of these metrics, without their texts; of some that is nothing."""
        ...

    def duplicates(self, study: str) -> tuple["Duplicates", ...]:
        """Return the rows that the study has more than once, one value per kind of row."""
        ...

    def drop_duplicate_answers(self, study: str) -> None:
        """Where an item is answered more than once, delete the answers whose id is not the digest of the item."""
        ...

    def save_routes(self, study: str, routes: Sequence[Route]) -> None:
        """Record routes, by method, persona and seed; the last write wins, and other routes are kept (shards write their own)."""
        ...

    def routes(self, study: str) -> tuple[Route, ...]: ...

    def save_verdict(self, study: str, verdict: Verdict) -> None: ...

    def verdicts(self, study: str) -> tuple[Verdict, ...]: ...
