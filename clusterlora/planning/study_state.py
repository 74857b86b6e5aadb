"""The state of a study at one moment: every step reads it once and passes it down; status, artifacts and report are rendered from it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clusterlora.errors import UnknownName
from clusterlora.gate.ceiling import Ceiling
from clusterlora.gate.power import Power
from clusterlora.metadata import (
    ComparisonSummary,
    Cut,
    Decision,
    GateDecisions,
    ImportedAdapters,
    News,
    Probe,
    Provenance,
    Refinement,
    RefreshOutcome,
    RefreshStart,
    Regrouping,
    TrackerPage,
    Tuning,
    Workers,
)
from clusterlora.methods import METHODS
from clusterlora.planning.cut import studied_dataset
from clusterlora.ports.stores import Stores
from clusterlora.settings import MOST_SHARDS, PreparedStudy, Rung
from clusterlora.values import Attempt, Clustering, Dataset, Dialogue, TrainedAdapter, Verdict


def default_shards(n_workers: int) -> int:
    """Return into how many runs a study divides its work on so many workers, where its settings leave that open: one for each.

    Two on one worker, as on two: what is trained together, and with it the last digits of a table, then is the same on both.
    """
    return min(max(2, n_workers), MOST_SHARDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyState:
    """A study's settings as prepared, and the results of its steps in the study database so far.

    A step's result is None before that step. Where the clustering found no clusters, the settings' methods are those that need none. Where
    every method is tuned, the gate has no ladder, which would tune clusters alone.
    """

    settings: PreparedStudy
    status: str
    data: Dataset | None
    clustering: Clustering | None
    verdicts: tuple[Verdict, ...]
    decisions: tuple[Decision, ...]
    adapters: tuple[TrainedAdapter, ...]
    attempts: tuple[Attempt, ...]
    imported: ImportedAdapters | None
    refinement: Refinement
    provenance: Provenance | None
    power: Power | None
    ceiling: Ceiling | None
    """What the gate's absolute thresholds can ask of the data; None where none is set."""
    outcome: ComparisonSummary | None
    seconds: tuple[tuple[str, str, float], ...]
    """(phase, part, seconds) of everything timed."""
    page: str | None
    """Address of the study's run in the tracker's UI."""
    probe: Probe | None = None
    cut: Cut | None = None
    """What was left of the data so that the study ends within its minutes; None where all are used."""
    n_workers: int = 1
    """Workers that were there for trainings when the study was last started."""
    decided_shards: int = default_shards(1)
    """Shards of a study whose settings leave them open, decided when it was first started."""
    tuning: Tuning | None = None
    """The recipes that are tried and how they did; None where nothing is tuned."""
    start: RefreshStart | None = None
    """What this study goes on from; None where it is no refresh."""
    news: News | None = None
    """What the champion that a refresh challenges has not seen."""
    regrouping: Regrouping | None = None
    moved: RefreshOutcome | None = None

    @property
    def name(self) -> str:
        """The study's name."""
        return self.settings.name

    @property
    def n_shards(self) -> int:
        """Runs into which per-persona training and evaluation are divided; the names of groups depend on it."""
        return self.settings.runtime.shards or self.decided_shards

    @property
    def dataset(self) -> Dataset:
        """The study's people and their split dialogues. Raises UnknownName before the study is prepared."""
        if self.data is None:
            raise UnknownName(f"study {self.name!r} has no data yet; prepare it first")
        return self.data

    @property
    def prepared_with(self) -> Provenance:
        """The code, data and base model of the last preparation. Raises UnknownName before the study is prepared."""
        if self.provenance is None:
            raise UnknownName(f"study {self.name!r} has no data yet; prepare it first")
        return self.provenance

    @property
    def retry_rungs(self) -> tuple[Rung, ...]:
        """The rungs of people's decisions to retry."""
        return tuple(decision.rung for decision in self.decisions if decision.rung is not None)


def read_state(study_name: str, stores: Stores) -> StudyState:
    """Return the present state of a study. Raises UnknownName."""
    studies = stores.studies
    clustering = studies.clustering(study_name)
    page, news = studies.metadata(study_name, TrackerPage), studies.metadata(study_name, News)
    workers = studies.metadata(study_name, Workers) or Workers(1)
    return StudyState(
        settings=_possible(studies.study(study_name), clustering),
        status=studies.status(study_name),
        data=_data(study_name, news, outdated(study_name, stores), stores),
        clustering=clustering,
        verdicts=studies.verdicts(study_name),
        decisions=(studies.metadata(study_name, GateDecisions) or GateDecisions()).decisions,
        adapters=studies.adapters(study_name),
        attempts=studies.attempts(study_name),
        imported=studies.metadata(study_name, ImportedAdapters),
        refinement=studies.metadata(study_name, Refinement) or Refinement(),
        provenance=studies.metadata(study_name, Provenance),
        power=studies.metadata(study_name, Power),
        ceiling=studies.metadata(study_name, Ceiling),
        outcome=studies.metadata(study_name, ComparisonSummary),
        seconds=studies.seconds(study_name),
        page=page.address if page else None,
        probe=studies.metadata(study_name, Probe),
        cut=studies.metadata(study_name, Cut),
        n_workers=workers.n,
        decided_shards=workers.n_shards,
        tuning=studies.metadata(study_name, Tuning),
        start=studies.metadata(study_name, RefreshStart),
        news=news,
        regrouping=studies.metadata(study_name, Regrouping),
        moved=studies.metadata(study_name, RefreshOutcome),
    )


def _possible(study: PreparedStudy, clustering: Clustering | None) -> PreparedStudy:
    if study.tune:
        study = replace(study, gate=replace(study.gate, ladder=()))
    if clustering is None or len(clustering.members) > 1:
        return study
    return replace(study, methods=tuple(name for name in study.methods if not METHODS[name].needs_clusters))


def outdated(study_name: str, stores: Stores) -> dict[str, frozenset[str]]:
    """Return the ids of dialogues of before people changed, by person, as far as this refresh or those before it found."""
    found = stores.studies.metadata(study_name, Regrouping)
    if found is None and (of := stores.studies.study(study_name).refresh.of) is not None:
        return outdated(of, stores)
    return {p: frozenset(ids) for p, ids in found.outdated} if found else {}


def _data(study_name: str, news: News | None, left: Mapping[str, frozenset[str]], stores: Stores) -> Dataset | None:
    """Return a study's data without what is left out.

    A refresh has of its test dialogues the new ones, and some of the old ones to compare with.
    """
    try:
        dataset = studied_dataset(study_name, stores)
    except UnknownName:
        return None
    if news is None:
        return dataset
    tested = {(p, one) for p, ids in (*news.dialogues, *news.old_test) for one in ids}

    def is_used(persona_id: str, one: Dialogue) -> bool:
        return (one.split != "test" or (persona_id, one.id) in tested) and one.id not in left.get(persona_id, ())

    return Dataset(tuple(replace(p, dialogues=tuple(d for d in p.dialogues if is_used(p.id, d))) for p in dataset.personas))


def is_busy(stores: Stores) -> bool:
    """Return whether any study is recorded as running, or has an open attempt."""
    return any(
        status == "running" or any(attempt.state == "running" for attempt in stores.studies.attempts(name))
        for name, status, _ in stores.studies.studies()
    )
