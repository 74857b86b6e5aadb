"""What is to be forgotten of a person: in which studies they are, which adapters learned from them, and how long the rest takes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clusterlora.errors import BadData, BadSettings, ServiceDown, UnknownName
from clusterlora.metadata import TrackerPage
from clusterlora.planning.family import family
from clusterlora.planning.ladder import rungs
from clusterlora.planning.study_state import StudyState, is_busy, read_state
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.values import Dataset, TrainedAdapter

_ONCE = ("prepare", "cluster", "refine", "probe", "train", "tune")
"""Phases of a study that are not done anew for everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter by name, cache key and the SHA-256 of its weights, and how many people it learned from."""

    name: str
    key: str
    weights_sha256: str | None
    n_personas: int
    still_in: tuple[str, ...] = ()
    """Studies that were not asked for and have the same weights, so that these are not deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What one study had of the person, and what came of it. `data_digest` covers all people of the study, before and after."""

    study: str
    n_dialogues: int
    n_answers: int
    """Answers to the person's items; everybody's are deleted and given anew."""
    data_digest: str
    removed: tuple[AdapterRecord, ...]
    kept: tuple[str, ...]
    """Keys of the adapters that never learned from the person."""
    champion: str | None
    ended: bool
    """Whether the study had compared its methods; one that had not is left to be continued."""
    seconds: float = 0.0
    """Expected duration of all that is done anew, from what it took before."""
    data_digest_after: str = ""
    retrained: tuple[AdapterRecord, ...] = ()
    champion_after: str | None = None
    whole: bool = False
    """Whether the study is removed itself: its dialogues were exchanged (`data.permute_seed`), so that the person's are anybody's."""
    data_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was removed and trained again when a person left; the keyed digest of the id alone names the person.

    `left` is what this program cannot remove, with what to do; `backups` are the files of backups that were removed. `erased` is the moment
    (ISO 8601, UTC) at which everything was removed, `at` that at which everything was trained and compared anew. `scope` are the studies
    that were asked for; empty: all.
    """

    person: str
    studies: tuple[Removal, ...]
    scope: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    backups: tuple[str, ...] = ()
    erased: str = ""
    at: str = ""


def plan_removal(person: str, stores: Stores, only: Collection[str] = ()) -> Certificate:
    """Return what there is to forget of the person with this pseudonym.

    Args:
        only: studies to which it is limited, each with its whole family of refreshes; empty: all.

    Raises:
        UnknownName: no such study has such a person.
        BadData: a study would be left with nothing to compare, or compares adapters of several people that were trained elsewhere.
        BadSettings: a run is live.
        ServiceDown: a study was tracked, and its tracker is not there.
    """
    chosen = _families(only, stores)
    names = [name for name in chosen if id_of(person, name, stores) is not None]
    if not names:
        of = f"of {', '.join(sorted(only))} " if only else ""
        raise UnknownName(f"no study {of}has this person; `clusterlora study list` names the studies")
    refuse_while_busy(stores)
    removals: list[Removal] = []
    gone: set[str] = set()
    for name in names:
        state = read_state(name, stores)
        persona_id = str(id_of(person, name, stores))
        whole = stores.studies.study(state.settings.refresh.root or name).data.permute_seed is not None
        _refuse_without_tracker(state, stores)
        if not whole:
            _refuse(state, persona_id)
        removed = state.adapters if whole else learned_from(state, persona_id, gone)
        gone |= {adapter.key for adapter in removed}
        removal = _removal(state, persona_id, removed, stores)
        removals.append(replace(removal, whole=True, ended=False, seconds=0.0) if whole else removal)
    others = studies_with([adapter for removal in removals for adapter in removal.removed], names, stores)
    marked = tuple(replace(one, removed=tuple(with_others(adapter, others) for adapter in one.removed)) for one in removals)
    return Certificate(person=person, studies=marked, scope=tuple(sorted(only)))


def refuse_while_busy(stores: Stores) -> None:
    """Raise BadSettings where a study runs."""
    if is_busy(stores):
        raise BadSettings(
            "a study is running, and may be writing about the person; forget them when it has ended. If nothing runs any more, "
            "`clusterlora study verify --repair` says so in the database"
        )


def studies_with(adapters: Collection[AdapterRecord], besides: Collection[str], stores: Stores) -> dict[str, tuple[str, ...]]:
    """Return, by key of these adapters, the other studies that have one under the same key or of the same weights."""
    found: dict[str, tuple[str, ...]] = {}
    for study in (name for name, *_ in stores.studies.studies() if name not in besides):
        having = stores.studies.adapters(study)
        keys, weights = {one.key for one in having}, {one.weights_sha256 for one in having} - {None}
        for one in adapters:
            if one.key in keys or one.weights_sha256 in weights:
                found[one.key] = tuple(dict.fromkeys((*found.get(one.key, ()), study)))
    return found


def with_others(adapter: AdapterRecord, others: Mapping[str, tuple[str, ...]]) -> AdapterRecord:
    """Return the record with the studies that `studies_with` found."""
    return replace(adapter, still_in=others.get(adapter.key, ()))


def id_of(person: str, study: str, stores: Stores) -> str | None:
    """Return the id by which a study knows the person with this pseudonym; None where it has no such person."""
    try:
        ids = stores.studies.dataset(study).ids
    except UnknownName:
        return None
    return next((one for one in ids if pseudonym(stores.home, one, make_key=True) == person), None)


def _families(only: Collection[str], stores: Stores) -> tuple[str, ...]:
    """Return the studies, every refresh after the one it goes on from. Raises UnknownName."""
    names = [name for name, *_ in reversed(stores.studies.studies())]
    root = {name: stores.studies.study(name).refresh.root or name for name in names}
    for name in only:
        stores.studies.study(name)
    wanted = {root[name] for name in only} or set(root.values())
    return tuple(member for name in names if name in wanted for member in family(name, stores))


def _refuse_without_tracker(state: StudyState, stores: Stores) -> None:
    page = stores.studies.metadata(state.name, TrackerPage)
    if page is not None and page.address and not stores.tracker.keeps_adapters:
        raise ServiceDown(
            f"study {state.name} is tracked by MLflow ({page.address.partition('/#')[0]}), which is not there; start it "
            "(`clusterlora up`), or set MLFLOW_TRACKING_URI"
        )


def _refuse(state: StudyState, persona_id: str) -> None:
    if len(state.dataset.personas) <= 2:
        raise BadData(f"study {state.name} has {len(state.dataset.personas)} people; without this one there is nothing to compare")
    imported = [a.name for a in state.adapters if a.spec.imported and len(a.spec.persona_ids) > 1 and persona_id in a.spec.persona_ids]
    if imported:
        raise BadData(
            f"study {state.name} compares {', '.join(imported)}, trained elsewhere on several people, which cannot be trained again here; "
            "train them without this person and import them into another study"
        )
    if state.news is not None and not _is_news_of_others(state, persona_id):
        raise BadData(
            f"without this person refresh {state.name} has no new test dialogue, so nothing could be compared; start a study of the "
            "others' dialogues instead of the family, and remove this installation's folder"
        )


def _is_news_of_others(state: StudyState, persona_id: str) -> bool:
    news = {(p, one) for p, ids in (state.news.dialogues if state.news else ()) for one in ids if p != persona_id}
    return any((p.id, d.id) in news for p in state.dataset.personas for d in p.of_split("test"))


def learned_from(state: StudyState, persona_id: str, gone: Iterable[str]) -> list[TrainedAdapter]:
    """Return the adapters that learned from the person, or start from, are merged of, or answer on one that did or is `gone`.

    Names may have changed since an adapter was recorded; its key has not. So one that depends on others is only known to be free of the
    person where today's plans have its key, and say on what it depends.
    """
    learned, known = set(gone), set[str]()
    for plan in _plans(state):
        for name in plan.with_needs(plan.specs):
            spec, key = plan.specs[name], plan.keys[name]
            known.add(key)
            if persona_id in spec.persona_ids or any(plan.keys[needed] in learned for needed in spec.needs):
                learned.add(key)
    return [a for a in state.adapters if persona_id in a.spec.persona_ids or a.key in learned or (a.spec.needs and a.key not in known)]


def _plans(state: StudyState) -> list[WorkPlan]:
    if not state.adapters:
        return []
    if state.clustering is None:
        return [work_plan(state)]
    return [work_plan(state, rung) for rung in dict.fromkeys(rungs(state))]


def _removal(state: StudyState, persona_id: str, removed: Sequence[TrainedAdapter], stores: Stores) -> Removal:
    # A refresh's state has of its test dialogues those that it answers.
    dataset = stores.studies.dataset(state.name)
    again = [adapter for adapter in removed if len(adapter.spec.persona_ids) > 1]
    steps = sum(adapter.steps for adapter in state.adapters) or 1
    spent = {phase: sum(s for p, _, s in state.seconds if p == phase) for phase, *_ in state.seconds}
    train = spent.get("train", 0.0) * sum(adapter.steps for adapter in again) / steps
    return Removal(
        study=state.name,
        n_dialogues=len(dataset.by_id()[persona_id].dialogues),
        n_answers=sum(answer.persona_id == persona_id for answer in stores.studies.answers(state.name)),
        data_digest=dataset.digest,
        removed=tuple(map(record, removed)),
        kept=tuple(adapter.key for adapter in state.adapters if adapter not in removed),
        champion=state.outcome.champion if state.outcome else None,
        ended=state.outcome is not None,
        data_path=stores.studies.study(state.name).data.path,
        seconds=train + sum(seconds for phase, seconds in spent.items() if phase not in _ONCE) if state.outcome else 0.0,
    )


def record(adapter: TrainedAdapter) -> AdapterRecord:
    """Return what a certificate says of an adapter."""
    n_personas = len(adapter.spec.persona_ids)
    return AdapterRecord(name=adapter.name, key=adapter.key, weights_sha256=adapter.weights_sha256, n_personas=n_personas)


def without(dataset: Dataset, persona_id: str) -> Dataset:
    """Return the data without a person."""
    return replace(dataset, personas=tuple(persona for persona in dataset.personas if persona.id != persona_id))
