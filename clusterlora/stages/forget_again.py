"""Backups and people who leave: which have somebody who is forgotten, and who is forgotten again in one that was restored."""

from collections.abc import Collection, Iterator
from pathlib import Path

from clusterlora.errors import UnknownName
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.stages.forget import forget, read_certificate
from clusterlora.stages.forgotten import UNFINISHED
from clusterlora.stores.departures import TO_FORGET, Departures
from clusterlora.stores.json_codec import from_json


def is_restored(home: Path) -> bool:
    """Return whether people have to be forgotten again in what was restored."""
    return (home / TO_FORGET).is_file()


def forget_again(stores: Stores, log: RunLog, *, services: Path | None = None) -> tuple[Path, ...]:
    """Forget everybody who left after the backup that was restored was made; return the certificates.

    What was under way when the backup was made is finished first. Until all of it is done, no other command uses the installation.

    Raises:
        BadData, BadSettings, ServiceDown: as `forget.forget`.
    """
    pending = stores.home / TO_FORGET
    _stop_what_ran(stores)
    for file in sorted((stores.home / UNFINISHED).glob("*.json")):
        begun = read_certificate(file)
        forget(begun.person, stores, log, only=begun.scope, services=services)
    files = [
        file
        for one in from_json(Departures, pending.read_text(encoding="utf-8")).people
        for file in _forgotten(one.person, one.scope, stores, log, services)
    ]
    pending.unlink()
    return tuple(files)


def _stop_what_ran(stores: Stores) -> None:
    """Record that nothing runs: what did when the backup was made is gone, and nothing else has used what was restored."""
    for name, status, _ in stores.studies.studies():
        for attempt in stores.studies.attempts(name):
            if attempt.state == "running":
                stores.studies.close_attempt(name, attempt.group, attempt.number, state="lost", detail="it was under way in a backup")
        if status == "running":
            stores.studies.set_status(name, "stopped")


def _forgotten(person: str, scope: Collection[str], stores: Stores, log: RunLog, services: Path | None) -> Iterator[Path]:
    there = {name for name, *_ in stores.studies.studies()}
    only = [name for name in scope if name in there]
    if scope and not only:
        return
    try:
        yield forget(person, stores, log, only=only, services=services)
    except UnknownName:
        return  # the backup does not have them
