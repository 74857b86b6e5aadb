"""Import the outputs of older scripts: their splits and clusters become the study's, their adapters a method, their scores a table."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from clusterlora.data.legacy_import import cluster_number, read_clusters, read_results
from clusterlora.data.load import load
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import ImportedAdapters, ImportedScores
from clusterlora.models.model_cache import base_model
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import IMPORTED, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.results.report import write_map
from clusterlora.settings import PreparedStudy, Study
from clusterlora.stages.prepare import as_prepared, prepare
from clusterlora.stages.train import keep
from clusterlora.values import Clustering, Dataset, TrainedAdapter

_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class OlderOutputs:
    """Where the older scripts' outputs are; the splits are named by `data.splits` of the study."""

    clusters: Path
    adapters: Path | None = None
    results: Path | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """How many of each were imported."""

    personas: int
    clusters: int
    adapters: int
    results: int


def settings_for_import(study: Study, older: OlderOutputs) -> Study:
    """Return the study with the settings that the older outputs need: their number of clusters, and their adapters as a method.

    Raises:
        BadSettings: adapters without the splits they were trained on, or clusters that refinement would change.
    """
    if older.adapters is not None and study.data.splits is None:
        raise BadSettings("adapters without the splits they were trained on may have seen the test items; give --splits edgesplits.json")
    if study.clustering.refinement_rounds:
        raise BadSettings(
            "clustering.refinement_rounds: imported clusters do not move, or their adapters would be somebody else's; set it to 0"
        )
    methods = dict.fromkeys(study.methods)
    if older.adapters is not None:
        methods[IMPORTED] = None
    return replace(study, methods=tuple(methods), clustering=replace(study.clustering, sizes=None))


def import_outputs(study: Study, older: OlderOutputs, stores: Stores, log: RunLog) -> Imported:
    """Import older outputs into a study. Everything is checked before anything is written, and repeating it changes nothing.

    Raises:
        BadData: a malformed file, an adapter that is not a plain LoRA on the study's base, or a study with other clusters.
    """
    ids = load(study.data).ids
    members = read_clusters(older.clusters, ids)
    folders = _adapter_folders(older.adapters, len(members)) if older.adapters is not None else {}
    if folders:
        _check_base(as_prepared(study, stores)[0], folders)
    results = {file.stem: read_results(file, ids) for file in _result_files(older.results)} if older.results is not None else {}

    dataset = prepare(study, stores, log, running=False)
    _group(study, members, dataset, stores)
    if results:
        stores.studies.save_metadata(study.name, ImportedScores(results))
    if folders:
        hashes = tuple((cluster, _weights_hash(folder)) for cluster, folder in sorted(folders.items()))
        stores.studies.save_metadata(study.name, ImportedAdapters(hashes))
        _save_adapters(read_state(study.name, stores), folders, stores, log)
    return Imported(len(ids), len(members), len(folders), len(results))


def _group(study: Study, members: tuple[tuple[str, ...], ...], dataset: Dataset, stores: Stores) -> None:
    clustering = stores.studies.clustering(study.name)
    if clustering is None:
        clustering = Clustering("imported", members)
        stores.studies.save_clustering(study.name, clustering)
        write_map(study.name, stores, clustering)
    elif clustering.members != members:
        raise BadData(
            f"study {study.name} has {len(clustering.members)} clusters by {clustering.algorithm} already, other than the file's; "
            "give another --name"
        )
    assert set(dataset.ids) == {p for ids in members for p in ids}, "the cluster map was checked against other personas"


def _adapter_folders(root: Path, n_clusters: int) -> dict[int, Path]:
    """Return the PEFT folders by cluster: `root` itself when it is one, else its subfolders whose names end in a number."""
    if not root.is_dir():
        raise BadData(f"{root}: no such folder; give the one that holds cluster_00, cluster_01, ...")
    candidates = [root] if (root / _FILES[0]).is_file() else sorted(folder for folder in root.iterdir() if folder.is_dir())
    folders: dict[int, Path] = {}
    for folder in candidates:
        number = cluster_number(folder.name)
        if number is None:
            continue
        if number >= n_clusters:
            raise BadData(f"{folder}: there is no cluster {number}; the cluster map has 0 to {n_clusters - 1}")
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise BadData(f"{folder}: has no {' and no '.join(missing)}; only PEFT folders with safetensors are imported, never pickles")
        if number in folders:
            raise BadData(f"{folder}: cluster {number} has another adapter in {folders[number].name}; keep one")
        folders[number] = folder
    if not folders:
        raise BadData(f"{root}: holds no PEFT folder whose name ends in a cluster's number, such as cluster_00")
    return folders


def _check_base(study: PreparedStudy, folders: dict[int, Path]) -> None:
    """Raise BadData unless every adapter is a plain LoRA whose layers the base has."""
    stacked = StackedModel(base_model(study.model).model)
    for folder in folders.values():
        try:
            stacked.load([Weights(read_adapter(folder))])
        except (BadData, KeyError, ValueError) as problem:
            base = json.loads((folder / _FILES[0]).read_text(encoding="utf-8")).get("base_model_name_or_path")
            fix = f"it was made for {base!r}; give that as --base-model"
            raise BadData(f"{folder}: does not fit base model {study.model.base!r} ({problem}); {fix}") from problem
        finally:
            stacked.close()


def _save_adapters(state: StudyState, folders: dict[int, Path], stores: Stores, log: RunLog) -> None:
    study, plan = state.settings, work_plan(state)
    tags = {"study": study.name, "method": IMPORTED, "training_group": IMPORTED}
    log.phase("import adapters", total=len(folders), unit="adapters")
    with stores.tracker.adapter_run(study.name, name="import clusters", params={"adapters": len(folders)}, tags=tags) as run:
        for number, folder in folders.items():
            spec = plan.specs[f"imported-{number:02d}"]
            clean = stores.adapters.scratch(plan.keys[spec.name]) / "adapter"
            clean.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                (clean / name).write_bytes((folder / name).read_bytes())
            # Trained elsewhere: no steps, no tokens, no loss of ours.
            keep(study, TrainedAdapter(plan.keys[spec.name], spec.name, spec, 0, 0, 0.0, math.nan, math.nan, 0), clean, run, stores)
            log.advance(1)


def _weights_hash(folder: Path) -> str:
    """Return the hash of an adapter's configuration and weights, which determine its answers."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _FILES)).hexdigest()[:16]


def _result_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    files = tuple(sorted(path.glob("*.json"))) if path.is_dir() else ()
    if not files:
        raise BadData(f"{path}: neither a JSON file nor a folder of them")
    return files
