"""The weights of trained adapters as they were recorded: checked before they are used, and fetched again where they are damaged here."""

import logging
import tempfile
from pathlib import Path

from clusterlora.adapters.weights import refuse_other_weights
from clusterlora.errors import BadData
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.values import TrainedAdapter

log = logging.getLogger(__name__)


def stored_folder(stores: Stores, key: str) -> Path:
    """Return the PEFT folder of a trained adapter as it was recorded, brought here if it was trained elsewhere or is damaged here.

    Raises:
        BadData: it is recorded, but its weights are neither here nor in the tracker.
    """
    adapter = stores.studies.adapter(key)
    if adapter is not None:
        replace_if_damaged(adapter, stores)
    folder = stores.adapters.path(key)
    if folder is not None:
        return folder
    if adapter is not None and stores.studies.adapter(key) is None:
        raise BadData(f"adapter {adapter.name} ({key}) was damaged here, and nobody has another copy; run the study again to train it")
    where = adapter.uri if adapter and adapter.uri else "the machine that trained it"
    raise BadData(
        f"adapter {key} is recorded as trained, but its weights are not here and not at {where}; "
        "set MLFLOW_TRACKING_URI to where it was trained, or forget it with `clusterlora study verify --repair`"
    )


def folder_if_any(stores: Stores, key: str) -> Path | None:
    """Return the PEFT folder of a trained adapter as it was recorded; None when nobody has it, or only a damaged one."""
    try:
        return stored_folder(stores, key)
    except BadData as problem:
        log.warning("%s", problem)
        return None


def replace_damaged(study_name: str, stores: Stores, run_log: RunLog) -> None:
    """Quarantine the damaged local copies of a study's adapters. It is fetched, or forgotten and thereby trained again.

    Raises:
        BadData: the recorded weights are in a tracker, and there is none to ask.
    """
    for adapter in stores.studies.adapters(study_name):
        if said := replace_if_damaged(adapter, stores):
            run_log.note(said)


def replace_if_damaged(adapter: TrainedAdapter, stores: Stores) -> str:
    """Quarantine the local copy of an adapter unless it matches what was recorded; return what was done, empty when nothing was."""
    folder = stores.adapters.local(adapter.key)
    if folder is None or is_right(adapter, folder):
        return ""
    # Asked before anything is touched: a tracker that does not answer leaves everything as it is.
    kept = is_kept(adapter, stores)
    what = f"the copy of adapter {adapter.name} ({adapter.key}) on this machine is not what was recorded"
    if kept is None and in_tracker(adapter):
        raise BadData(f"{what}; set MLFLOW_TRACKING_URI to fetch the right one")
    try:
        quarantined = stores.adapters.quarantine(adapter.key)
    except FileNotFoundError:
        return ""  # somebody else saw it, too
    if kept:
        stores.adapters.path(adapter.key)
    else:
        stores.studies.forget_adapter(adapter.key)
    message = f"{what}; it is quarantined in {quarantined}, and {'fetched again' if kept else 'has to be trained again'}"
    log.warning("%s", message)
    return message


def is_right(adapter: TrainedAdapter, folder: Path) -> bool:
    """Return whether a folder holds what was recorded."""
    try:
        refuse_other_weights(adapter.key, adapter.weights_sha256, folder)
    except BadData:
        return False
    return True


def is_kept(adapter: TrainedAdapter, stores: Stores) -> bool | None:
    """Return whether the tracker has the recorded weights; None when there is no tracker to ask."""
    if not stores.tracker.keeps_adapters:
        return None
    if adapter.uri is None:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        return stores.tracker.download(adapter.uri, Path(temporary)) and is_right(adapter, Path(temporary))


def in_tracker(adapter: TrainedAdapter) -> bool:
    """Return whether the record says that a tracker has the weights."""
    return adapter.uri is not None and adapter.uri.startswith("runs:/")
