"""A person leaves: what is theirs is deleted, what learned from them is trained again without them, and a certificate says so.

Nobody else's groups change: the clusters are those that were, without the person, so that adapters of people who never shared one with
them keep their keys and are not trained again. In a family of refreshes, a shared adapter goes on from the last one of the family that
never saw the person; where there is none, from the base model.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

from clusterlora.adapters.stored import stored_folder
from clusterlora.durable import write_durably
from clusterlora.errors import UnknownName
from clusterlora.metadata import ComparisonSummary
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.stages.erase import bring_home, erase_from_study, go_on_from, track_again
from clusterlora.stages.forget_plan import Certificate, Removal, plan_removal, record
from clusterlora.stages.forget_words import markdown
from clusterlora.stages.remaining import run_remaining
from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.stores.server_databases import empty_logs, purge_mlflow, purge_prefect

CERTIFICATES = ".forgotten"
"""In the folder of the results: two files per certificate, named by the first digits of the keyed digest of the id and the moment."""
UNFINISHED = ".forgetting"
"""The same while it is under way: what a command that was killed had set out to remove."""
_DIGITS = 32


def what_to_forget(person: str, stores: Stores, *, only: Collection[str] = ()) -> Certificate:
    """Return what `forget` would remove, or was removing when it was interrupted; nothing is changed. Errors as `plan_removal`."""
    unfinished = _unfinished(person, stores)
    if unfinished.is_file():
        return from_json(Certificate, unfinished.read_text(encoding="utf-8"))
    try:
        return plan_removal(person, stores, only)
    except UnknownName as problem:
        if files := certificates(person, stores):
            raise UnknownName(f"{problem}; they were forgotten before: {files[-1]}") from None
        raise


def forget(person: str, stores: Stores, log: RunLog, *, only: Collection[str] = (), services: Path | None = None) -> Path:
    """Remove a person from every study, train again what learned from them, compare anew; return the certificate's file, `.json`.

    The same page beside it is Markdown. A command that was killed goes on where it was.

    Args:
        person: pseudonym of the id (`pseudonyms.pseudonym`).
        only: studies to which it is limited, each with its family of refreshes.
        services: folder of the servers of this machine, whose databases are cleared of what their interfaces keep.

    Raises:
        BadData, BadSettings, ServiceDown, UnknownName: as `plan_removal`; nothing has been changed then.
        ServiceDown: a server or database is away or in use.
    """
    plan = what_to_forget(person, stores, only=only)
    unfinished = _unfinished(person, stores)
    write_durably(unfinished, to_json(plan).encode(), mode=0o600)
    if not plan.erased:
        plan = replace(plan, left=_erase(plan, stores, log, services), erased=_now())
        write_durably(unfinished, to_json(plan).encode(), mode=0o600)
    done: list[Removal] = []
    names = {removal.study for removal in plan.studies}
    for removal in plan.studies:
        if stores.studies.study(removal.study).refresh.champion in names:
            go_on_from(removal.study, stores)
        if removal.ended:
            stores.studies.set_status(removal.study, "running")
            run_remaining(removal.study, stores, log)
        done.append(_with_outcome(removal, stores))
    certificate = replace(plan, studies=tuple(done), at=_now())
    file = stores.home / CERTIFICATES / f"{person[:_DIGITS]}-{certificate.at[:19].replace(':', '')}.json"
    write_durably(file.with_suffix(".md"), markdown(certificate).encode(), mode=0o600)
    write_durably(file, to_json(certificate).encode(), mode=0o600)
    unfinished.unlink()
    return file


def certificates(person: str, stores: Stores) -> tuple[Path, ...]:
    """Return the certificates of a person, oldest first."""
    return tuple(sorted((stores.home / CERTIFICATES).glob(f"{person[:_DIGITS]}-*.json")))


def read_certificate(file: Path) -> Certificate:
    """Return what a certificate says."""
    return from_json(Certificate, file.read_text(encoding="utf-8"))


def _erase(plan: Certificate, stores: Stores, log: RunLog, services: Path | None) -> tuple[str, ...]:
    """Remove everything; return sentences about what is out of reach."""
    names = [removal.study for removal in plan.studies]
    bring_home(names, [one.key for removal in plan.studies for one in removal.removed], stores)
    for removal in plan.studies:
        log.note(f"{removal.study}: {removal.n_dialogues} dialogues, {len(removal.removed)} adapters and all answers are removed")
        erase_from_study(removal, plan.person, stores, names)
    # Nothing runs: checkpoints and damaged copies may be of adapters that nobody has recorded.
    stores.adapters.delete_leftovers()
    for folder in stores.home.glob(".restoring-*"):
        rmtree(folder)
    experiments = [one for name in names for one in stores.tracker.forget_study(name)]
    address = stores.tracker.address
    if services is not None and address is not None:
        experiments = list(purge_mlflow(services, experiments, address))
    knows_prefect = services is not None and purge_prefect(services, names)
    if services is not None:
        empty_logs(services)
    stores.studies.scrub()
    track_again(names, stores)
    return _left(names, experiments, stores, knows_prefect=knows_prefect)


def _with_outcome(removal: Removal, stores: Stores) -> Removal:
    """Return the removal with what was trained in the place of what was removed, its weights checked, and the champion."""
    state = read_state(removal.study, stores)
    retrained = [adapter for adapter in state.adapters if adapter.key not in removal.kept]
    for adapter in retrained:
        stored_folder(stores, adapter.key)
    outcome = stores.studies.metadata(removal.study, ComparisonSummary)
    return replace(
        removal,
        data_digest_after=stores.studies.dataset(removal.study).digest,
        retrained=tuple(map(record, retrained)),
        champion_after=outcome.champion if outcome else None,
    )


def _left(names: Sequence[str], experiments: Sequence[str], stores: Stores, *, knows_prefect: bool) -> tuple[str, ...]:
    """Return what is out of this program's reach, a sentence each with what to do."""
    paths = dict.fromkeys(path for name in names if (path := stores.studies.study(name).data.path))
    sentences = [f"the file {path} that was read may still have the person: take them out of it" for path in paths]
    if experiments:
        sentences.append(
            f"MLflow runs elsewhere and has marked {', '.join(experiments)} as deleted: run `mlflow gc` there, and rewrite its database"
        )
    if not knows_prefect:
        sentences += [f"no Prefect server of this machine is known: delete runs with the tag study:{name} where it is" for name in names]
    archives = sorted(str(file.relative_to(stores.home)) for file in stores.home.rglob("*.tar"))
    sentences += [f"{file} among the results may be a backup that has the person: delete it" for file in archives]
    sentences += [
        "backups from before this, folders that `registry export` wrote, and copies elsewhere are not known here: delete those",
        "a `clusterlora serve` that runs answers with what it has loaded until the alias is at another version: restart it",
    ]
    return tuple(sentences)


def _unfinished(person: str, stores: Stores) -> Path:
    return stores.home / UNFINISHED / f"{person[:_DIGITS]}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
