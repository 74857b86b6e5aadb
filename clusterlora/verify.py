"""Compare the study database, the adapter store and the tracker; report what a crash left between them and repair what can be repaired."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from clusterlora.adapters.shards import open_shard
from clusterlora.adapters.stored import TrackerCopies, in_tracker, is_right
from clusterlora.metadata import RegisteredChampion
from clusterlora.planning.study_state import is_busy
from clusterlora.ports.model_registry import ModelVersion
from clusterlora.ports.stores import Stores
from clusterlora.stores.routing_table import other_artifacts
from clusterlora.values import TrainedAdapter

_AGAIN = "run the study again"


@dataclass(frozen=True, slots=True)
class LiveWork:
    """What the orchestrator says is under way: open runs by name, and the attempts (group, number) that some of them are."""

    runs: frozenset[str] = frozenset()
    attempts: frozenset[tuple[str, int]] = frozenset()


class Kind(StrEnum):
    """The kinds of disagreement, as `study verify --json` names them."""

    UPLOAD_LOST = "upload_lost"
    COPY_DAMAGED = "copy_damaged"
    ADAPTER_ELSEWHERE = "adapter_elsewhere"
    WEIGHTS_LOST = "weights_lost"
    DUPLICATE_ANSWERS = "duplicate_answers"
    DUPLICATE_ROWS = "duplicate_rows"
    ATTEMPT_UNKNOWN = "attempt_unknown"
    ATTEMPT_DEAD = "attempt_dead"
    STUDY_DEAD = "study_dead"
    TRACKER_RUN_DEAD = "tracker_run_dead"
    MODEL_INCOMPLETE = "model_incomplete"
    MODEL_CHANGED = "model_changed"
    MODEL_WITH_UNKNOWN_ADAPTERS = "model_with_unknown_adapters"
    CHAMPION_MISSING = "champion_missing"
    HALF_WRITTEN = "half_written"
    ADAPTER_UNRECORDED = "adapter_unrecorded"
    CHECKPOINTS_LEFT = "checkpoints_left"


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement, its fix, and whether that was applied. `study` is None for what an interrupted process left behind."""

    kind: Kind
    study: str | None
    what: str
    fix: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: Kind
    what: str
    fix: str
    repair: Callable[[], object] | None = None


def verify(study_names: Sequence[str], stores: Stores, *, live: Callable[[str], LiveWork | None] | None, repair: bool) -> Iterator[Finding]:
    """Yield the disagreements one by one; with `repair`, those that can be repaired are.

    Args:
        live: what is running of a study; it is None, or returns None, when nobody can be asked. Open attempts, and what may belong to
            them, are then left alone.

    Raises:
        UnknownName: no such study.
    """
    for name in study_names:
        stores.studies.study(name)
        work = live(name) if live else None
        for check in (_adapters, _duplicates, _attempts, _runs, _models):
            # A check sees what the ones before it have repaired.
            for problem in check(name, stores, work):
                yield _finding(name, problem, repair=repair)
    for problem in _leftovers(stores):
        yield _finding(None, problem, repair=repair)


def _finding(study: str | None, problem: _Problem, *, repair: bool) -> Finding:
    if repair and problem.repair is not None:
        problem.repair()
        return Finding(problem.kind, study, problem.what, problem.fix, repaired=True)
    return Finding(problem.kind, study, problem.what, problem.fix)


def _adapters(study: str, stores: Stores, _live: LiveWork | None) -> Iterator[_Problem]:
    """Recorded adapters whose weights are lost, damaged, or only here."""
    busy = any(attempt.state == "running" for attempt in stores.studies.attempts(study))
    in_tracker_as_recorded = TrackerCopies(stores)
    uploaded = set[Path]()
    for adapter in stores.studies.adapters(study):
        is_here = stores.adapters.holds(adapter.key)
        is_right_here = is_here and is_right(adapter, stores)
        kept = in_tracker_as_recorded.has(adapter)
        if is_right_here and kept is False:
            what = f"the tracker does not hold adapter {adapter.name} ({adapter.key}) as recorded; only this machine does"
            yield _Problem(Kind.UPLOAD_LOST, what, "upload it again", lambda a=adapter: _upload(study, a, stores, uploaded))
        if is_right_here or (not is_here and kept):
            continue
        if kept:
            what = f"the copy of adapter {adapter.name} ({adapter.key}) on this machine is not what was recorded"
            yield _Problem(
                Kind.COPY_DAMAGED, what, "quarantine it and fetch the one in the tracker", lambda k=adapter.key: _fetch_again(k, stores)
            )
        elif kept is None and in_tracker(adapter):
            yield _Problem(
                Kind.ADAPTER_ELSEWHERE,
                f"adapter {adapter.name} ({adapter.key}) is not on this machine",
                "set MLFLOW_TRACKING_URI to look further",
            )
        else:
            state = "damaged" if is_here else "missing"
            what = f"the weights of adapter {adapter.name} ({adapter.key}) are {state} here, and no tracker has a right copy"
            fix = f"verify where it was trained; or forget it with --repair, then {_AGAIN} to train it"
            # An upload may still be under way.
            yield _Problem(Kind.WEIGHTS_LOST, what, fix, None if busy else lambda k=adapter.key: _forget(k, stores))


def _upload(study: str, adapter: TrainedAdapter, stores: Stores, uploaded: set[Path]) -> None:
    """Upload an adapter again: with its whole shard, if all of that is the study's and right here, and by itself otherwise.

    Args:
        uploaded: the shards that were uploaded with other adapters.
    """
    shard = stores.adapters.shard(adapter.key)
    if shard in uploaded:
        return
    of_study = {one.key: one for one in stores.studies.adapters(study)}
    keys = open_shard(shard).keys if shard else ()
    # What is damaged here may be right there, under the same name.
    if shard and all(key in of_study and is_right(of_study[key], stores) for key in keys):
        uploaded.add(shard)
        what, path = shard, f"adapters/{shard.name}"
    else:
        what, path, keys = stores.adapters.path(adapter.key), f"adapters/{adapter.name}", (adapter.key,)
    assert what is not None, f"adapter {adapter.key} was here a moment ago"
    run_id, uri = stores.tracker.upload(study, what, path, run_id=adapter.run_id)
    for key in keys:
        stores.studies.move_adapter(key, run_id=run_id, uri=uri)


def _fetch_again(key: str, stores: Stores) -> None:
    stores.adapters.quarantine(key)
    stores.adapters.bring(key)


def _forget(key: str, stores: Stores) -> None:
    if stores.adapters.holds(key):
        stores.adapters.quarantine(key)
    stores.studies.forget_adapter(key)


def _duplicates(study: str, stores: Stores, _live: LiveWork | None) -> Iterator[_Problem]:
    for rows in stores.studies.duplicates(study):
        if rows.rows == "answers":
            drop = partial(stores.studies.drop_duplicate_answers, study)
            yield _Problem(Kind.DUPLICATE_ANSWERS, str(rows), "keep one of each", drop)
        else:
            fix = "the rows were not written by clusterlora; restore the database, or use another study name"
            yield _Problem(Kind.DUPLICATE_ROWS, str(rows), fix)


def _attempts(study: str, stores: Stores, live: LiveWork | None) -> Iterator[_Problem]:
    """Open attempts without a live run."""
    for attempt in stores.studies.attempts(study):
        if attempt.state != "running" or (live is not None and _lives(live, attempt.group, attempt.number)):
            continue
        what = f"attempt {attempt.number} at {attempt.group} is open"
        if live is None:
            yield _Problem(
                Kind.ATTEMPT_UNKNOWN,
                f"{what}, and no Prefect server can be asked about its run",
                "start it: clusterlora up, or set PREFECT_API_URL",
            )
            continue

        def close(group: str = attempt.group, number: int = attempt.number) -> None:
            stores.studies.close_attempt(study, group, number, state="lost", detail="its run is gone")

        yield _Problem(Kind.ATTEMPT_DEAD, f"{what}, but its run is gone", "close it", close)


def _lives(live: LiveWork, group: str, number: int) -> bool:
    return (group, number) in live.attempts or group in live.runs


def _runs(study: str, stores: Stores, live: LiveWork | None) -> Iterator[_Problem]:
    """A study recorded as running without a live run, and open runs of the tracker without one."""
    if live is None:
        return
    if stores.studies.status(study) == "running" and not live.runs:
        yield _Problem(
            Kind.STUDY_DEAD,
            "the study says it is running, and no run of it is",
            f"call it failed; then {_AGAIN}",
            lambda: _end(study, stores),
        )
    for run in stores.tracker.open_runs(study):
        lives = _lives(live, run.group, run.attempt) if run.group is not None and run.attempt is not None else bool(live.runs)
        if not lives:
            what = f"MLflow run {run.name!r} ({run.run_id}) is RUNNING, and nobody will end it"
            yield _Problem(Kind.TRACKER_RUN_DEAD, what, "end it as KILLED", lambda r=run.run_id: stores.tracker.kill_run(r))


def _end(study: str, stores: Stores) -> None:
    stores.studies.set_status(study, "failed")
    stores.tracker.end_study(study, status="failed")


def _models(study: str, stores: Stores, _live: LiveWork | None) -> Iterator[_Problem]:
    """Registered models with missing or changed artifacts or with unrecorded adapters, and a missing champion."""
    versions = stores.tracker.versions(study)
    registered = stores.studies.metadata(study, RegisteredChampion)
    champion = registered.uri if registered else None
    for version in versions:
        is_champion = champion == f"models:/{version.name}/{version.version}"
        name = f"model {version.name}, version {version.version}{' (the champion)' if is_champion else ''},"

        def drop(model: str = version.name, number: str = version.version) -> None:
            stores.tracker.drop_version(model, number)

        if not version.whole:
            yield _Problem(
                Kind.MODEL_INCOMPLETE,
                f"{name} lacks files in the artifact store",
                f"remove the version; then {_AGAIN} to register it anew",
                drop,
            )
        elif problem := _other_artifacts(version, stores):
            yield _Problem(
                Kind.MODEL_CHANGED,
                f"{name} is not what was registered: {problem}",
                f"remove the version; then {_AGAIN} to register it anew",
                drop,
            )
        elif unknown := [key for key in version.adapter_keys if stores.studies.adapter(key) is None]:
            what = f"{name} holds {len(unknown)} adapters that the database does not know, for example {unknown[0]}"
            yield _Problem(Kind.MODEL_WITH_UNKNOWN_ADAPTERS, what, f"{_AGAIN}: what it still needs is trained and registered")
    if stores.tracker.keeps_adapters and champion and champion not in {f"models:/{v.name}/{v.version}" for v in versions}:
        yield _Problem(
            Kind.CHAMPION_MISSING, f"the champion {champion} is not in the registry", f"{_AGAIN}: it registers its champion anew"
        )


def _other_artifacts(version: ModelVersion, stores: Stores) -> str:
    """Return what of a version's routes and weights is not as registered; empty when everything is."""
    recorded = {key: adapter.weights_sha256 for key in version.adapter_keys if (adapter := stores.studies.adapter(key)) is not None}
    with tempfile.TemporaryDirectory() as temporary:
        if not stores.tracker.download(version.uri, Path(temporary)):
            return "its files are gone"
        return other_artifacts(Path(temporary), version.content, {key: sha256 for key, sha256 in recorded.items() if sha256})


def _leftovers(stores: Stores) -> Iterator[_Problem]:
    """Files that an interrupted process left; none are judged while a study runs or an attempt is open, for they may be its own."""
    if is_busy(stores):
        return
    names = [name for name, _, _ in stores.studies.studies()]
    store = stores.adapters
    for folder in store.half_written():
        yield _Problem(Kind.HALF_WRITTEN, f"half-written copy {folder}", "remove it", lambda f=folder: shutil.rmtree(f, ignore_errors=True))
    for file in sorted(file for name in names for file in stores.folder(name).rglob(".*.partial")):
        yield _Problem(Kind.HALF_WRITTEN, f"half-written file {file}", "remove it", lambda f=file: f.unlink(missing_ok=True))
    for key in store.local_keys():
        if stores.studies.adapter(key) is None:
            yield _Problem(
                Kind.ADAPTER_UNRECORDED,
                f"adapter {key} is in the store and nobody recorded it",
                "quarantine it",
                lambda k=key: store.quarantine(k),
            )
    for key in store.scratch_keys():
        if stores.studies.adapter(key) is not None:
            yield _Problem(
                Kind.CHECKPOINTS_LEFT,
                f"checkpoints of adapter {key}, which is finished",
                "remove them",
                lambda k=key: store.drop_scratch(k),
            )
