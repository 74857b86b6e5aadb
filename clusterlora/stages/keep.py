"""Save adapters as they are finished: weights first, then the tracker's copy, and their database rows last."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from clusterlora.adapters.shards import MOST_ADAPTERS, MOST_BYTES
from clusterlora.adapters.stored import in_tracker, is_stored
from clusterlora.adapters.weights import weight_files
from clusterlora.durable import write_durably
from clusterlora.ports.stores import Stores
from clusterlora.ports.tracker import AdapterRun
from clusterlora.settings import Study
from clusterlora.values import AdapterSpec, LearningCurve, TrainedAdapter


@dataclass(frozen=True, slots=True)
class _Finished:
    adapter: TrainedAdapter
    folder: Path
    curves: Sequence[LearningCurve]


class Keeper:
    """Saves the adapters of one run of the tracker.

    Adapters of a cluster or of everybody are saved at once, in a folder each. Those of single people are saved together in shards, at the
    latest when the block ends, however it ends. If the process is killed before, they are still where the engine wrote them, and whoever
    trains them again takes them over.
    """

    def __init__(self, study: Study, run: AdapterRun, stores: Stores) -> None:
        self._study, self._run, self._stores = study, run, stores
        self._together: list[_Finished] = []
        self._n_bytes = 0

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._save_together()

    def keep(self, adapter: TrainedAdapter, folder: Path, *, curves: Sequence[LearningCurve] = ()) -> None:
        """Save a finished adapter, or soon."""
        n_bytes = sum(file.stat().st_size for file in weight_files(folder))
        finished = _Finished(replace(adapter, n_bytes=n_bytes, run_id=self._run.run_id), folder, curves)
        if not adapter.spec.is_one_of_many:
            self._save(finished)
            return
        self._together.append(finished)
        self._n_bytes += n_bytes
        if len(self._together) == MOST_ADAPTERS or self._n_bytes >= MOST_BYTES:
            self._save_together()

    def _save(self, finished: _Finished) -> None:
        key, adapters = finished.adapter.key, self._stores.adapters
        lost = lost_record(key, self._stores)
        stored = adapters.save(key, finished.folder)
        uri = self._run.artifacts(stored, f"adapters/{finished.adapter.name}")
        expose(self._stores, self._study.name, finished.adapter.spec, stored)
        self._record(finished, uri, lost)
        adapters.drop_scratch(key)

    def _save_together(self) -> None:
        finished, self._together, self._n_bytes = {one.adapter.key: one for one in self._together}, [], 0
        lost = {key: record for key in finished if (record := lost_record(key, self._stores)) is not None}
        saved = self._stores.adapters.save_together({key: one.folder for key, one in finished.items()})
        # One that has a folder here keeps it: it was saved alone, and its process ended before it was recorded.
        together = {key for keys in saved.values() for key in keys}
        for one in (one for key, one in finished.items() if key not in together):
            self._save(one)
        for file, keys in saved.items():
            uri = self._run.artifacts(file, f"adapters/{file.name}")
            new = [self._recorded(finished[key], uri) for key in keys if key not in lost]
            curves = {key: finished[key].curves for key in keys if key not in lost}
            self._stores.studies.save_adapters(self._study.name, new, curves)
            for key in lost.keys() & set(keys):
                self._record(finished[key], uri, lost[key])
            for key in keys:
                self._stores.adapters.drop_scratch(key)

    def _record(self, finished: _Finished, uri: str, lost: TrainedAdapter | None) -> None:
        recorded = self._recorded(finished, uri)
        self._stores.studies.save_adapter(self._study.name, recorded, curves=finished.curves, instead_of=lost)

    def _recorded(self, finished: _Finished, uri: str) -> TrainedAdapter:
        return replace(finished.adapter, uri=uri, weights_sha256=self._stores.adapters.sha256(finished.adapter.key))


def lost_record(key: str, stores: Stores) -> TrainedAdapter | None:
    """Return the record of an adapter whose weights are lost; None when there is no record, or the tracker may have the weights."""
    recorded = stores.studies.adapter(key)
    if recorded is None or is_stored(stores, key):
        return None
    return recorded if stores.tracker.keeps_adapters or not in_tracker(recorded) else None


def expose(stores: Stores, study_name: str, spec: AdapterSpec, stored: Path) -> Path:
    """Copy an adapter to where people find it, `Stores.exposed`."""
    target = stores.exposed(study_name, spec)
    for file in weight_files(stored):
        write_durably(target / file.name, file.read_bytes())
    return target
