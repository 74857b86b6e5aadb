"""Retention: what may go of adapters, checkpoints and leftovers, and how much it frees.

An adapter is kept while a registered version holds it, while the plan of any study has it, and while a study that uses it has not ended.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clusterlora.errors import BadSettings, ModelUnavailable, ServiceDown, counted
from clusterlora.metadata import RegisteredChampion, TrackerPage
from clusterlora.planning.study_state import StudyState, is_busy, read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.values import AdapterSpec, TrainedAdapter

ENDED = "finished"
"""The status of a study whose plan will not change: what it has beyond it were tries."""


class What(StrEnum):
    """What can go."""

    TRIAL = "trial"
    """An adapter that was trained to choose a recipe."""
    RUNG = "rung"
    """An adapter of a rung of the gate's ladder that was not decided for."""
    UNPLANNED = "unplanned"
    """An adapter that a finished study planned before its clusters were refined."""
    STUDY = "study"
    """An adapter of a study whose weights are given up."""
    CHECKPOINTS = "checkpoints"
    """Checkpoints of an adapter that is finished, or of any once every study is finished or given up."""
    HALF_WRITTEN = "half-written"
    QUARANTINED = "quarantined"
    SPLIT = "split"
    """Folders of adapters in shards that somebody asked for; they are made again when somebody does."""


@dataclass(frozen=True, slots=True)
class Prunable:
    """Something that may go: what it is, its name, the studies that have it, its bytes on this machine and in the tracker.

    Adapters that one shard holds go together.
    `remove` asks again, and returns False where a study needs it that was not there, or did not, when the list was made.
    """

    what: What
    name: str
    studies: tuple[str, ...]
    bytes_here: int
    bytes_in_tracker: int
    remove: Callable[[], bool]


def prunable(stores: Stores, *, give_up: Collection[str] = ()) -> tuple[Prunable, ...]:
    """Return everything that may go.

    Args:
        give_up: studies of whose adapters only those are kept that registered versions or other studies need; run again, they train anew.

    Raises:
        UnknownName: no such study.
        BadSettings: a study to give up is still under way.
        ServiceDown: versions were registered, and the registry that knows which adapters they need is not there.
    """
    names = [name for name, _, _ in stores.studies.studies()]
    for name in give_up:
        stores.studies.study(name)
    states = [read_state(name, stores) for name in names]
    _refuse_unknown_versions(states, stores)
    for state in states:
        if state.name in give_up and (state.status == "running" or _is_training(state)):
            raise BadSettings(
                f"study {state.name} is running; let it end, or call it failed: clusterlora study verify {state.name} --repair"
            )
    needed = frozenset[str]().union(*(_needed(state, stores, gives_up=state.name in give_up) for state in states))
    return (*_adapters(states, stores, needed, give_up), *_leftovers(states, stores, give_up))


def _refuse_unknown_versions(states: Collection[StudyState], stores: Stores) -> None:
    for state in states:
        registered = stores.studies.metadata(state.name, RegisteredChampion)
        page = stores.studies.metadata(state.name, TrackerPage)
        if not stores.tracker.keeps_adapters and (registered or (page and page.address)):
            raise ServiceDown(
                f"study {state.name} has models in a registry, and without MLflow nobody can say which adapters they need; start it "
                "(`clusterlora up`), or set MLFLOW_TRACKING_URI"
            )


def _is_training(state: StudyState) -> bool:
    return any(attempt.state == "running" for attempt in state.attempts)


def _needed(state: StudyState, stores: Stores, *, gives_up: bool) -> frozenset[str]:
    """Return the keys that a study needs: those of its registered versions, and unless it is given up those it uses or plans."""
    registered = frozenset(key for version in stores.tracker.versions(state.name) for key in version.adapter_keys)
    if gives_up:
        return registered
    linked = frozenset(adapter.key for adapter in state.adapters)
    if state.data is None or state.clustering is None:
        return registered | linked
    try:
        planned = frozenset(work_plan(state).keys.values())
    except (BadSettings, ModelUnavailable):
        # A plan that cannot be made here rules nothing out.
        return registered | linked
    return registered | planned if state.status == ENDED else registered | planned | linked


def _needed_since(listed: Collection[StudyState], stores: Stores, give_up: Collection[str]) -> frozenset[str]:
    """Return the keys that studies need which are under way, or were not there when the list was made."""
    status_then = {state.name: state.status for state in listed}
    keys: frozenset[str] = frozenset()
    for name, status, _ in stores.studies.studies():
        settled = status == status_then.get(name) and (status == ENDED or name in give_up)
        if not settled or any(attempt.state == "running" for attempt in stores.studies.attempts(name)):
            keys |= _needed(read_state(name, stores), stores, gives_up=False)
    return keys


def _adapters(states: Collection[StudyState], stores: Stores, needed: frozenset[str], give_up: Collection[str]) -> Iterator[Prunable]:
    adapters = {adapter.key: adapter for state in states for adapter in state.adapters}
    keys_of = {state.name: {adapter.key for adapter in state.adapters} for state in states}
    # An adapter planned before refinement and the one that replaced it have one name, and so one folder.
    kept = {stores.exposed(state.name, adapter.spec) for state in states for adapter in state.adapters if adapter.key in needed}
    still_used = {adapter.uri for key, adapter in adapters.items() if key in needed}
    groups: dict[tuple[What, tuple[str, ...], str | Path], list[TrainedAdapter]] = {}
    for key, adapter in sorted(adapters.items(), key=lambda pair: (pair[1].name, pair[0])):
        if key in needed:
            continue
        having = tuple(state.name for state in states if key in keys_of[state.name])
        what = What.STUDY if set(having) & set(give_up) else _kind(adapter.spec)
        # A shard is rewritten once for all that leaves it.
        groups.setdefault((what, having, stores.adapters.shard(key) or key), []).append(adapter)
    for (what, having, _), going in groups.items():
        exposed = dict.fromkeys(stores.exposed(name, adapter.spec) for adapter in going for name in having)
        copies = [folder for folder in exposed if folder.is_dir() and folder not in kept]
        bytes_here = sum(stores.adapters.n_bytes(adapter.key) for adapter in going) + sum(_size(folder) for folder in copies)
        # What shares a folder counts it once.
        kept.update(copies)

        def remove(going: Sequence[TrainedAdapter] = going, having: Collection[str] = having, copies: Collection[Path] = copies) -> bool:
            since = _needed_since(states, stores, give_up)
            # The row first: what is interrupted after it is a leftover, which nobody needs and `study verify` finds.
            gone = [one for one in going if one.key not in since and stores.studies.forget_adapter(one.key, only_of=having)]
            for uri in {one.uri for one in gone if one.uri is not None}:
                if not stores.studies.is_uri_used(uri):
                    stores.tracker.discard(uri)
            stores.adapters.drop([one.key for one in gone])
            if len(gone) == len(going):
                for folder in copies:
                    shutil.rmtree(folder, ignore_errors=True)
            return len(gone) == len(going)

        # What is uploaded with others stays as long as one of them does.
        freed = [one.n_bytes for one in going if one.uri is not None and one.uri not in still_used]
        in_tracker = sum(freed) if stores.tracker.keeps_adapters else 0
        others = f" and {len(going) - 1} more" if len(going) > 1 else ""
        yield Prunable(what, f"{going[0].name} ({going[0].key}){others}", having, bytes_here, in_tracker, remove)


def _kind(spec: AdapterSpec) -> What:
    return What.TRIAL if spec.is_trial else What.RUNG if spec.rung is not None else What.UNPLANNED


def _leftovers(states: Collection[StudyState], stores: Stores, give_up: Collection[str]) -> Iterator[Prunable]:
    """Yield files that no process needs; none while a study runs or anything trains, for they may be its own."""
    if is_busy(stores):
        return
    store = stores.adapters
    # Which trainings an unfinished study will go on with, its plan of today does not say: recipes are tried, and people clustered.
    ended = all(state.status == ENDED or state.name in give_up for state in states)

    def unless_busy(remove: Callable[[], object]) -> Callable[[], bool]:
        def removed() -> bool:
            if is_busy(stores):
                return False
            remove()
            return True

        return removed

    for key in store.scratch_keys():
        if ended or stores.studies.adapter(key) is not None:
            yield Prunable(What.CHECKPOINTS, key, (), _size(store.scratch(key)), 0, unless_busy(lambda k=key: store.drop_scratch(k)))
    for what, folders in ((What.HALF_WRITTEN, store.half_written()), (What.QUARANTINED, store.quarantined())):
        for folder in folders:
            remove = unless_busy(lambda f=folder: shutil.rmtree(f, ignore_errors=True))
            yield Prunable(what, folder.name, (), _size(folder), 0, remove)
    if split := store.split():
        remove = unless_busy(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in split])
        yield Prunable(What.SPLIT, counted(len(split), "folder"), (), sum(map(_size, split)), 0, remove)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
