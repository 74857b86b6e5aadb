"""The weights of trained adapters as they were recorded: checked before they are used, and fetched again where they are damaged here."""

import json
import logging
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.adapters.shards import SUFFIX, open_shard, shard_in, write_shard
from clusterlora.adapters.weights import refuse_other_weights, weights_sha256
from clusterlora.errors import BadData
from clusterlora.ports.adapter_store import CONFIG, WEIGHTS, AdapterFiles
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.study_store import StudyStore
from clusterlora.values import TrainedAdapter

if TYPE_CHECKING:
    from clusterlora.engine.stacked import Weights

log = logging.getLogger(__name__)


def stored_folder(stores: Stores, key: str) -> Path:
    """Return the PEFT folder of a trained adapter as it was recorded, brought here if it was trained elsewhere or is damaged here.

    Raises:
        BadData: it is recorded, but its weights are neither here nor in the tracker.
    """
    bring(stores, key)
    folder = stores.adapters.path(key)
    assert folder is not None, f"adapter {key} was here a moment ago"
    return folder


def bring(stores: Stores, key: str) -> None:
    """Bring a trained adapter here, if it was trained elsewhere or is damaged here. Raises BadData as `stored_folder`."""
    adapter = stores.studies.adapter(key)
    if adapter is not None:
        replace_if_damaged(adapter, stores)
    if stores.adapters.bring(key):
        return
    if adapter is not None and stores.studies.adapter(key) is None:
        raise BadData(f"adapter {adapter.name} ({key}) was damaged here, and nobody has another copy; run the study again to train it")
    where = adapter.uri if adapter and adapter.uri else "the machine that trained it"
    raise BadData(
        f"adapter {key} is recorded as trained, but its weights are not here and not at {where}; "
        "set MLFLOW_TRACKING_URI to where it was trained, or forget it with `clusterlora study verify --repair`"
    )


def stored_weights(stores: Stores, key: str) -> "Weights":
    """Return the factors of a trained adapter as it was recorded, read from where it is: its folder, or its row of a shard.

    Raises:
        BadData: as `stored_folder`.
    """
    bring(stores, key)
    files = stores.adapters.from_shard(key)
    weights = _weights(files, key) if files is not None else _of_folder(stored_folder(stores, key))
    return _for_peft(stored_folder(stores, key)) if weights is None else weights


def _weights(files: AdapterFiles, key: str) -> "Weights | None":
    from safetensors.torch import load

    from clusterlora.engine.kinds import weights_of

    return weights_of(json.loads(files.config), load(files.weights), name=key)


@lru_cache(maxsize=256)
def _of_folder(folder: Path) -> "Weights | None":
    # Read whole: of a file that is mapped and then cut short, not even a page can be read any more.
    return _weights(AdapterFiles((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()), folder.name)


def _for_peft(folder: Path) -> "Weights":
    from clusterlora.engine.stacked import Weights

    return Weights(peft_folder=folder)


def stored_config(stores: Stores, key: str) -> dict[str, Any]:
    """Return PEFT's configuration of a trained adapter. Raises BadData as `stored_folder`."""
    bring(stores, key)
    if (files := stores.adapters.from_shard(key)) is not None:
        return json.loads(files.config)
    return json.loads((stored_folder(stores, key) / CONFIG).read_bytes())


def is_stored(stores: Stores, key: str) -> bool:
    """Return whether the weights of a trained adapter are here as they were recorded, or were brought here."""
    try:
        bring(stores, key)
    except BadData as problem:
        log.warning("%s", problem)
        return False
    return True


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
    if not stores.adapters.holds(adapter.key) or is_right(adapter, stores):
        return ""
    # Asked before anything is touched: a tracker that does not answer leaves everything as it is.
    kept = TrackerCopies(stores).has(adapter)
    what = f"the copy of adapter {adapter.name} ({adapter.key}) on this machine is not what was recorded"
    if kept is None and in_tracker(adapter):
        raise BadData(f"{what}; set MLFLOW_TRACKING_URI to fetch the right one")
    try:
        quarantined = stores.adapters.quarantine(adapter.key)
    except FileNotFoundError:
        return ""  # somebody else saw it, too
    if kept:
        stores.adapters.bring(adapter.key)
    else:
        stores.studies.forget_adapter(adapter.key)
    message = f"{what}; it is quarantined in {quarantined}, and {'fetched again' if kept else 'has to be trained again'}"
    log.warning("%s", message)
    return message


def is_right(adapter: TrainedAdapter, stores: Stores) -> bool:
    """Return whether the adapter on this machine is what was recorded."""
    try:
        refuse_other_weights(adapter.key, adapter.weights_sha256, stores.adapters.sha256(adapter.key))
    except BadData:
        return False
    return True


class TrackerCopies:
    """What the tracker has of adapters; a shard is downloaded once for all that it holds."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._sha256_by_shard: dict[str, dict[str, str]] = {}

    def has(self, adapter: TrainedAdapter) -> bool | None:
        """Return whether the tracker has the recorded weights; None when there is no tracker to ask."""
        if not self._stores.tracker.keeps_adapters:
            return None
        if adapter.uri is None:
            return False
        if adapter.uri in self._sha256_by_shard:
            found = self._sha256_by_shard[adapter.uri].get(adapter.key)
        else:
            found = self._downloaded_sha256(adapter.uri, adapter.key)
        return found is not None and adapter.weights_sha256 in (None, found)

    def _downloaded_sha256(self, uri: str, key: str) -> str | None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if not self._stores.tracker.download(uri, folder):
                return None
            if (file := shard_in(folder)) is None:
                try:
                    return weights_sha256(folder)
                except BadData:
                    return None
            # One that is damaged there is damaged for all that it held.
            self._sha256_by_shard[uri] = {}
            try:
                shard = open_shard(file)
                self._sha256_by_shard[uri] = {one: shard.read(one).sha256 for one in shard.keys}
            except BadData as problem:
                log.warning("%s in the tracker: %s", uri, problem)
        return self._sha256_by_shard[uri].get(key)


def keep_recorded(folder: Path, studies: StudyStore) -> None:
    """Leave of a shard that was downloaded into a folder what is recorded, as it was recorded: others may have been pruned since."""
    if (file := shard_in(folder)) is None:
        return
    shard = open_shard(file)
    found = shard.read_all()
    recorded = {key: adapter.weights_sha256 for key in found if (adapter := studies.adapter(key)) is not None}
    right = {key: found[key] for key, sha256 in recorded.items() if sha256 in (None, found[key].sha256)}
    if len(right) < len(found):
        file.unlink()
        write_shard(folder / f"recorded{SUFFIX}", right)


def in_tracker(adapter: TrainedAdapter) -> bool:
    """Return whether the record says that a tracker has the weights."""
    return adapter.uri is not None and adapter.uri.startswith("runs:/")
