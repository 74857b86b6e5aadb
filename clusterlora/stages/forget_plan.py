"""What is to be forgotten of a person: in which studies they are, which adapters learned from them, and how long the rest takes."""

from collections.abc import Collection, Iterable, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was removed and trained again when a person left; the keyed digest of the id alone names the person.

    `left` is what this program cannot remove, with what to do. `erased` is the moment (ISO 8601, UTC) at which everything was removed, `at`
    that at which everything was trained and compared anew.
    """

    person: str
    studies: tuple[Removal, ...]
    left: tuple[str, ...] = ()
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
    if is_busy(stores):
        raise BadSettings(
            "a study is running, and may be writing about the person; forget them when it has ended. If nothing runs any more, "
            "`clusterlora study verify --repair` says so in the database"
        )
    removals: list[Removal] = []
    gone: set[str] = set()
    for name in names:
        state = read_state(name, stores)
        persona_id = str(id_of(person, name, stores))
        _refuse(state, persona_id, stores)
        removed = learned_from(state, persona_id, gone)
        gone |= {adapter.key for adapter in removed}
        removals.append(_removal(state, persona_id, removed, stores))
    return Certificate(person=person, studies=tuple(removals))


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


def _refuse(state: StudyState, persona_id: str, stores: Stores) -> None:
    page = stores.studies.metadata(state.name, TrackerPage)
    if page is not None and page.address and not stores.tracker.keeps_adapters:
        raise ServiceDown(
            f"study {state.name} is tracked by MLflow ({page.address.partition('/#')[0]}), which is not there; start it "
            "(`clusterlora up`), or set MLFLOW_TRACKING_URI"
        )
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
        seconds=train + sum(seconds for phase, seconds in spent.items() if phase not in _ONCE) if state.outcome else 0.0,
    )


def record(adapter: TrainedAdapter) -> AdapterRecord:
    """Return what a certificate says of an adapter."""
    n_personas = len(adapter.spec.persona_ids)
    return AdapterRecord(name=adapter.name, key=adapter.key, weights_sha256=adapter.weights_sha256, n_personas=n_personas)


def without(dataset: Dataset, persona_id: str) -> Dataset:
    """Return the data without a person."""
    return replace(dataset, personas=tuple(persona for persona in dataset.personas if persona.id != persona_id))
