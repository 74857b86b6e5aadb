"""A person leaves: what is theirs is deleted, what learned from them is trained again without them, and a certificate says so.

Nobody else's groups change: the clusters are those that were, without the person, so that adapters of people who never shared one with
them keep their keys and are not trained again. In a family of refreshes, a shared adapter goes on from the last one of the family that
never saw the person; where there is none, from the base model.
"""

import fcntl
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

from clusterlora.adapters.stored import stored_folder
from clusterlora.durable import make_folder, write_durably
from clusterlora.errors import BadData, BadSettings, UnknownName, counted
from clusterlora.metadata import ComparisonSummary
from clusterlora.planning.family import family
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.stages.erase import bring_home, erase_from_study, go_on_from, track_again
from clusterlora.stages.forget_plan import (
    Certificate,
    Removal,
    id_of,
    plan_removal,
    record,
    refuse_while_busy,
    studies_with,
    with_others,
)
from clusterlora.stages.forget_words import markdown
from clusterlora.stages.forgotten import CERTIFICATES, DIGITS, UNFINISHED
from clusterlora.stages.remaining import run_remaining
from clusterlora.stores.departures import (
    BACKUPS,
    DEPARTED,
    DEPARTED_OUTSIDE,
    Departure,
    KnownBackup,
    drop_backup,
    installation,
    keep_key,
    known_backups,
    note_departure,
)
from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.stores.server_databases import empty_logs, purge_mlflow, purge_prefect

LOCK = ".forgetting.lock"


def what_to_forget(person: str, stores: Stores, *, only: Collection[str] = ()) -> Certificate:
    """Return what `forget` would remove, or was removing when it was interrupted; nothing is changed. Errors as `plan_removal`."""
    unfinished = _unfinished(person, stores)
    if unfinished.is_file():
        return read_certificate(unfinished)
    try:
        return plan_removal(person, stores, only)
    except UnknownName as problem:
        if files := certificates(person, stores):
            raise UnknownName(f"{problem}; they were forgotten before: {files[-1]}") from None
        raise


def forget(
    person: str,
    stores: Stores,
    log: RunLog,
    *,
    only: Collection[str] = (),
    services: Path | None = None,
    remove_backups: bool = False,
) -> Path:
    """Remove a person from every study, train again what learned from them, compare anew; return the certificate's file, `.json`.

    The same page beside it is Markdown. A command that was killed goes on where it was; what has the person beyond that, or beyond the
    studies that it was asked for, is removed after it, with a certificate of its own.

    Args:
        person: pseudonym of the id (`pseudonyms.pseudonym`).
        only: studies to which it is limited, each with its family of refreshes.
        services: folder of the servers of this machine, whose databases are cleared of what their interfaces keep.
        remove_backups: whether the backups known here that have the person are deleted, too; also where nothing else has them any more.

    Raises:
        BadData, BadSettings, ServiceDown, UnknownName: as `plan_removal`; nothing has been changed then.
        BadSettings: another person's removal is under way or was interrupted.
        ServiceDown: a server or database is away or in use.
    """
    with _alone(stores):
        _refuse_others(person, stores)
        try:
            plan = what_to_forget(person, stores, only=only)
        except UnknownName:
            if not (remove_backups and certificates(person, stores) and backups_with(person, only, stores)):
                raise
            asked = Certificate(person=person, studies=(), scope=tuple(sorted(only)), erased=_now(), at=_now())
            gone, left = _purge_backups(asked, stores, remove=True)
            return _write(replace(asked, backups=gone, left=left), stores)
        while True:
            file = _carry_out(plan, stores, log, services, remove_backups=remove_backups)
            try:
                plan = plan_removal(person, stores, only)
            except UnknownName:
                return file
            log.note(f"certificate {file.with_suffix('.md')}; other studies have the person, too")


@contextmanager
def _alone(stores: Stores) -> Generator[None]:
    make_folder(stores.home)
    with (stores.home / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadSettings("`clusterlora persona forget` is running here; run this one when that has ended") from None
        yield


def _refuse_others(person: str, stores: Stores) -> None:
    for file in sorted((stores.home / UNFINISHED).glob("*.json")):
        if file != _unfinished(person, stores):
            other = read_certificate(file)
            scope = "".join(f" --study {name}" for name in other.scope)
            raise BadSettings(f"the removal of another person is not finished: clusterlora persona forget --digest {other.person}{scope}")


def backups_with(person: str, only: Collection[str], stores: Stores) -> tuple[KnownBackup, ...]:
    """Return the backups known here that have a person, the oldest first; with `only`, in the families of these studies."""
    names = {name for name, *_ in stores.studies.studies()}
    studies = {*only}.union(*(family(stores.studies.study(name).refresh.root or name, stores) for name in names & set(only)))
    return tuple(one for one in known_backups(stores.home / BACKUPS) if one.has(person, studies))


def _carry_out(plan: Certificate, stores: Stores, log: RunLog, services: Path | None, *, remove_backups: bool) -> Path:
    unfinished = _unfinished(plan.person, stores)
    if not plan.erased:
        refuse_while_busy(stores)
        # Before anything else: a backup that is restored after a crash must not bring the person back.
        _note_departure(plan, stores, services)
        write_durably(unfinished, to_json(plan).encode(), mode=0o600)
        plan = replace(plan, left=_erase(plan, stores, log, services), erased=_now())
        write_durably(unfinished, to_json(plan).encode(), mode=0o600)
    names = [removal.study for removal in plan.studies]
    for removal in (one for one in plan.studies if not one.whole):
        if stores.studies.study(removal.study).refresh.champion in names:
            go_on_from(removal.study, stores)
        if removal.ended:
            stores.studies.set_status(removal.study, "running")
            run_remaining(removal.study, stores, log)
    _refuse_who_came_back(plan, stores)
    gone, still = _purge_backups(plan, stores, remove=remove_backups)
    others = studies_with([adapter for removal in plan.studies for adapter in removal.removed], names, stores)
    done = tuple(_with_outcome(removal, others, stores) for removal in plan.studies)
    left = (*plan.left, *still, *_elsewhere(plan.person, names, done, stores))
    certificate = replace(plan, studies=done, left=left, backups=gone, at=_now())
    file = _write(certificate, stores)
    unfinished.unlink()
    return file


def _note_departure(plan: Certificate, stores: Stores, services: Path | None) -> None:
    """Remember that somebody leaves: with the results, and in the servers' folder, which has the key by which they are told."""
    there = {name for name, *_ in stores.studies.studies()}
    # A backup may be older than the refresh that was named, and have the study that it goes on from.
    roots = {stores.studies.study(name).refresh.root or name for name in plan.scope if name in there}
    scope = tuple(sorted({*plan.scope, *roots}))
    departure = Departure(person=plan.person, scope=scope, at=_now(), installation=str(installation(stores.home)))
    note_departure(stores.home / DEPARTED, departure)
    if services is not None:
        keep_key(stores.home, services / DEPARTED_OUTSIDE)
        note_departure(services / DEPARTED_OUTSIDE, departure)


def _write(certificate: Certificate, stores: Stores) -> Path:
    # Rounds of the same second are different removals.
    n_before = len(certificates(certificate.person, stores))
    file = stores.home / CERTIFICATES / f"{certificate.person[:DIGITS]}-{certificate.at[:19].replace(':', '')}-{n_before + 1}.json"
    write_durably(file.with_suffix(".md"), markdown(certificate).encode(), mode=0o600)
    write_durably(file, to_json(certificate).encode(), mode=0o600)
    return file


def _purge_backups(plan: Certificate, stores: Stores, *, remove: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files of the backups with the person that were removed, and sentences about the others."""
    found = backups_with(plan.person, plan.scope, stores)
    there, away = [one for one in found if one.is_there], [one for one in found if not one.is_there]
    left = [
        f"the backup {one.file} of {one.made} has the person: the same command with --remove-backups removes it; make another first"
        for one in there
        if not remove
    ]
    if away:
        last = away[-1]
        left.append(
            f"{counted(len(away), 'backup')} with the person, the last of {last.made} written to {last.file}, where it is not any more, or "
            "not as it was: delete it and copies of it"
        )
    gone: list[str] = []
    for one in there if remove else ():
        try:
            drop_backup(stores.home, one)
            gone.append(one.file)
        except OSError as problem:
            left.append(f"the backup {one.file} of {one.made} has the person and cannot be removed ({problem.strerror}): delete it")
    return tuple(gone), tuple(left)


def _refuse_who_came_back(plan: Certificate, stores: Stores) -> None:
    for removal in plan.studies:
        if id_of(plan.person, removal.study, stores) is not None:
            # What is there is planned anew.
            _unfinished(plan.person, stores).unlink()
            raise BadData(f"study {removal.study} has the person again: something else wrote to it meanwhile; run the same command again")


def certificates(person: str, stores: Stores) -> tuple[Path, ...]:
    """Return the certificates of a person, oldest first."""
    return tuple(sorted((stores.home / CERTIFICATES).glob(f"{person[:DIGITS]}-*.json")))


def read_certificate(file: Path) -> Certificate:
    """Return what a certificate says."""
    return from_json(Certificate, file.read_text(encoding="utf-8"))


def _erase(plan: Certificate, stores: Stores, log: RunLog, services: Path | None) -> tuple[str, ...]:
    """Remove everything; return sentences about what is out of reach."""
    names = [removal.study for removal in plan.studies]
    staying = [removal.study for removal in plan.studies if not removal.whole]
    bring_home(names, [one.key for removal in plan.studies for one in removal.removed], stores)
    for removal in plan.studies:
        log.note(f"{removal.study}: {removal.n_dialogues} dialogues, {len(removal.removed)} adapters and all answers are removed")
        erase_from_study(removal, plan.person, stores, names)
    # Nothing runs: checkpoints and damaged copies may be of adapters that nobody has recorded.
    stores.adapters.delete_leftovers()
    for folder in stores.home.glob(".restoring-*"):
        rmtree(folder)
    experiments = list(stores.tracker.forget_studies(names))
    address = stores.tracker.address
    if services is not None and address is not None:
        experiments = list(purge_mlflow(services, experiments, address))
    knows_prefect = services is not None and purge_prefect(services, names)
    if services is not None:
        empty_logs(services)
    stores.studies.scrub()
    track_again(staying, stores)
    return _left(plan, experiments, stores, knows_prefect=knows_prefect)


def _with_outcome(removal: Removal, others: Mapping[str, tuple[str, ...]], stores: Stores) -> Removal:
    """Return the removal with what was trained in the place of what was removed, its weights checked, and the champion."""
    removed = tuple(with_others(adapter, others) for adapter in removal.removed)
    if removal.whole:
        return replace(removal, removed=removed)
    state = read_state(removal.study, stores)
    retrained = [adapter for adapter in state.adapters if adapter.key not in removal.kept]
    for adapter in retrained:
        stored_folder(stores, adapter.key)
    outcome = stores.studies.metadata(removal.study, ComparisonSummary)
    return replace(
        removal,
        removed=removed,
        kept=tuple(adapter.key for adapter in state.adapters if adapter.key in removal.kept),
        data_digest_after=stores.studies.dataset(removal.study).digest,
        retrained=tuple(map(record, retrained)),
        champion_after=outcome.champion if outcome else None,
    )


def _elsewhere(person: str, names: Sequence[str], done: Sequence[Removal], stores: Stores) -> Iterator[str]:
    """Yield which other studies have the person, or adapters that learned from them, a sentence each."""
    for study in (name for name, *_ in stores.studies.studies() if name not in names):
        here = id_of(person, study, stores) is not None
        having = sorted({one.name for removal in done for one in removal.removed if study in one.still_in})
        if here or having:
            what = ["the person"] if here else []
            what += [f"the weights of {', '.join(having)}, which learned from them"] if having else []
            how = "run the command for it, too" if here else "they were imported: remove them there, and where they came from"
            yield f"study {study} still has {' and '.join(what)}: {how}"


def _left(plan: Certificate, experiments: Sequence[str], stores: Stores, *, knows_prefect: bool) -> tuple[str, ...]:
    """Return what is out of this program's reach, a sentence each with what to do."""
    names = [removal.study for removal in plan.studies]
    paths = dict.fromkeys(removal.data_path for removal in plan.studies if removal.data_path)
    sentences = [f"the file {path} that was read may still have the person: take them out of it" for path in paths]
    if experiments:
        sentences.append(
            f"MLflow runs elsewhere and has marked {', '.join(experiments)} as deleted: run `mlflow gc --backend-store-uri DATABASE` "
            "there, with the address of its database, and rewrite that (VACUUM)"
        )
    if not knows_prefect:
        sentences += [f"no Prefect server of this machine is known: delete runs with the tag study:{name} where it is" for name in names]
    archives = sorted(str(file.relative_to(stores.home)) for file in stores.home.rglob("*.tar"))
    sentences += [f"{file} among the results may be a backup that has the person: delete it" for file in archives]
    sentences += [
        "copies of backups, folders that `registry export` wrote, and copies elsewhere are not known here: delete those",
        "a `clusterlora serve` that runs answers with what it has loaded until the alias is at another version: restart it",
    ]
    return tuple(sentences)


def _unfinished(person: str, stores: Stores) -> Path:
    return stores.home / UNFINISHED / f"{person[:DIGITS]}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
