"""Import the outputs of older scripts: their splits and clusters become the study's, their adapters methods, their scores a table."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clusterlora.adapters.import_checks import check_imported
from clusterlora.data.legacy_import import cluster_number, persona_resolver, read_clusters, read_folder_map, read_results
from clusterlora.data.load import load
from clusterlora.engine.kinds import kind_of
from clusterlora.errors import BadData, BadSettings, counted
from clusterlora.metadata import ImportedAdapters, ImportedScores
from clusterlora.models.model_cache import base_model
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.results.report import write_map
from clusterlora.settings import PreparedStudy, Study
from clusterlora.stages.forgotten import who_left
from clusterlora.stages.keep import Keeper
from clusterlora.stages.prepare import as_prepared, prepare_study
from clusterlora.values import AdapterSpec, Clustering, Dataset, TrainedAdapter

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_N_NAMED = 5
"""How many of the personas without an adapter are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OlderOutputs:
    """Where the older scripts' outputs are; the splits are named by `data.splits` of the study.

    `adapters` holds a PEFT folder per cluster, `personal` one per persona, `unified` is one itself. Personal folders are recognised by the
    persona's id or number, or by `personal_map`, a JSON object from persona to folder name. With `any_base`, the base that the adapters
    name need not be the study's.
    """

    clusters: Path
    adapters: Path | None = None
    unified: Path | None = None
    personal: Path | None = None
    personal_map: Path | None = None
    results: Path | None = None
    any_base: bool = False

    @property
    def has_adapters(self) -> bool:
        """Whether any adapters are among them."""
        return any(part is not None for part in (self.adapters, self.unified, self.personal))


@dataclass(frozen=True, slots=True)
class Imported:
    """How many of each were imported, and who has no personal adapter although others have."""

    personas: int
    clusters: int
    adapters: int
    results: int
    without_personal: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Folders:
    """The PEFT folders to import."""

    by_cluster: Mapping[int, Path]
    by_persona: Mapping[str, Path]
    unified: Path | None

    def all(self) -> tuple[Path, ...]:
        return (*((self.unified,) if self.unified else ()), *self.by_cluster.values(), *self.by_persona.values())

    def hashes(self) -> ImportedAdapters:
        return ImportedAdapters(
            tuple((cluster, _weights_hash(folder)) for cluster, folder in sorted(self.by_cluster.items())),
            _weights_hash(self.unified) if self.unified else None,
            tuple((persona_id, _weights_hash(folder)) for persona_id, folder in sorted(self.by_persona.items())),
        )

    def of(self, spec: AdapterSpec) -> Path:
        """Return the folder of an imported adapter."""
        if spec.cluster is not None:
            return self.by_cluster[spec.cluster]
        if spec.scope == "person":
            return self.by_persona[spec.persona_ids[0]]
        assert self.unified is not None, f"{spec.name} is imported from nowhere"
        return self.unified


def settings_for_import(study: Study, older: OlderOutputs) -> Study:
    """Return the study with the settings that the older outputs need: their number of clusters, and their adapters as methods.

    Personal adapters answer as `imported_per_persona` and, where all of them are sums of updates, merged per cluster as `imported_merge`.

    Raises:
        BadSettings: adapters without the splits they were trained on, or clusters that refinement would change.
    """
    if older.has_adapters and study.data.splits is None:
        raise BadSettings("adapters without the splits they were trained on may have seen the test items; give --splits edgesplits.json")
    if older.personal_map is not None and older.personal is None:
        raise BadSettings(f"--personal-map {older.personal_map} maps personas to folders of --personal, which is missing; give both")
    if study.clustering.refinement_rounds:
        raise BadSettings(
            "clustering.refinement_rounds: imported clusters do not move, or their adapters would be somebody else's; set it to 0"
        )
    added = {
        "imported_unified": older.unified,
        "imported_cluster": older.adapters,
        "imported_per_persona": older.personal,
        "imported_merge": older.personal if older.personal is not None and _unmergeable(older.personal) is None else None,
    }
    methods = dict.fromkeys([*study.methods, *(name for name, given in added.items() if given is not None)])
    return replace(study, methods=tuple(methods), clustering=replace(study.clustering, sizes=None))


def import_outputs(study: Study, older: OlderOutputs, stores: Stores, log: RunLog) -> Imported:
    """Import older outputs into a study. Everything is checked before anything is written, and repeating it changes nothing.

    Raises:
        BadData: a malformed file, an adapter that is not a plain LoRA on the study's base, or a study with other clusters.
    """
    ids = load(study.data).ids
    left = who_left(study, stores)
    if n_left := sum(map(left, ids)):
        raise BadData(
            f"{counted(n_left, 'persona')} of the data left (`clusterlora persona forget`), and what was made elsewhere may have learned "
            "from them; take them out of the data, and import what was made without them"
        )
    members = read_clusters(older.clusters, ids)
    folders = _Folders(
        _cluster_folders(older.adapters, len(members)) if older.adapters is not None else {},
        _personal_folders(older.personal, older.personal_map, ids) if older.personal is not None else {},
        _peft_folder(older.unified) if older.unified is not None else None,
    )
    if not (unmergeable := _unmergeable(older.personal) if older.personal is not None else None):
        _check_merges(members, folders)
    if folders.all():
        _check_adapters(as_prepared(study, stores)[0], folders, log, any_base=older.any_base)
    results = {file.stem: read_results(file, ids) for file in _result_files(older.results)} if older.results is not None else {}

    dataset = prepare_study(study, stores, log, running=False)
    _group(study, members, dataset, stores)
    if results:
        stores.studies.save_metadata(study.name, ImportedScores(results))
    if folders.all():
        stores.studies.save_metadata(study.name, folders.hashes())
        _save_adapters(read_state(study.name, stores), folders, stores, log)
    if unmergeable:
        log.note(
            f"the personal adapters are not merged: {unmergeable.name} is of a kind that is no sum of updates; imported_merge is left out"
        )
    without = tuple(p for p in ids if p not in folders.by_persona) if folders.by_persona else ()
    if without:
        more = f" and {len(without) - _N_NAMED} more" if len(without) > _N_NAMED else ""
        log.note(
            f"{len(without)} of {len(ids)} personas have no personal adapter to import ({', '.join(without[:_N_NAMED])}{more}): "
            "imported_per_persona answers them by adapters that the study trains"
            + ("" if unmergeable else ", imported_merge by their cluster's other members")
        )
    return Imported(len(ids), len(members), len(folders.all()), len(results), without)


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


def _cluster_folders(root: Path, n_clusters: int) -> dict[int, Path]:
    """Return the PEFT folders by cluster: `root` itself when it is one, else its subfolders whose names end in a number."""
    folders: dict[int, Path] = {}
    for folder in _candidates(root, "cluster_00, cluster_01, ..."):
        number = cluster_number(folder.name)
        if number is None:
            continue
        if number >= n_clusters:
            raise BadData(f"{folder}: there is no cluster {number}; the cluster map has 0 to {n_clusters - 1}")
        if number in folders:
            raise BadData(f"{folder}: cluster {number} has another adapter in {folders[number].name}; keep one")
        folders[number] = _peft_folder(folder)
    if not folders:
        raise BadData(f"{root}: holds no PEFT folder whose name ends in a cluster's number, such as cluster_00")
    return folders


def _personal_folders(root: Path, folder_map: Path | None, ids: tuple[str, ...]) -> dict[str, Path]:
    """Return the PEFT folders by persona, by the map if there is one, else by the persona's id or number in the folder's name."""
    candidates = {folder.name: folder for folder in _candidates(root, "one folder per persona")}
    if folder_map is not None:
        names = read_folder_map(folder_map, ids)
        if missing := [name for name in names.values() if name not in candidates]:
            raise BadData(f"{folder_map}: {root} has no folder {missing[0]!r} ({len(missing)} of {len(names)} are missing)")
        return {persona_id: _peft_folder(candidates[name]) for persona_id, name in names.items()}
    resolve = persona_resolver(ids)
    folders: dict[str, Path] = {}
    for name, folder in candidates.items():
        persona_id = resolve(name)
        if persona_id is None:
            raise BadData(
                f"{folder}: its name is no persona of the data (first ids: {', '.join(ids[:3])}); give --personal-map FILE, or move it"
            )
        if persona_id in folders:
            raise BadData(f"{folder}: persona {persona_id!r} has another adapter in {folders[persona_id].name}; keep one")
        folders[persona_id] = _peft_folder(folder)
    if not folders:
        raise BadData(f"{root}: holds no PEFT folders; give the one that holds a folder per persona")
    return folders


def _candidates(root: Path, holds: str) -> list[Path]:
    if not root.is_dir():
        raise BadData(f"{root}: no such folder; give the one that holds {holds}")
    return [root] if (root / _FILES[0]).is_file() else sorted(folder for folder in root.iterdir() if folder.is_dir())


def _peft_folder(folder: Path) -> Path:
    """Return the folder. Raises BadData unless it holds settings and safetensors."""
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise BadData(f"{folder}: has no {' and no '.join(missing)}; only PEFT folders with safetensors are imported, never pickles")
    return folder


def _unmergeable(root: Path) -> Path | None:
    """Return the first folder whose adapter is no sum of updates, as a DoRA is none; None if all can be merged or cannot be read."""
    folders = (folder for folder in _candidates(root, "one folder per persona") if (folder / _FILES[0]).is_file())
    return next((folder for folder in folders if not kind_of(folder).is_additive), None)


def _check_merges(members: tuple[tuple[str, ...], ...], folders: _Folders) -> None:
    """Raise BadData if there are personal adapters, but none for a whole cluster."""
    for number, ids in enumerate(members):
        if folders.by_persona and not any(p in folders.by_persona for p in ids):
            raise BadData(
                f"none of the {len(ids)} personas of cluster {number} has a personal adapter, so there is nothing to merge for them"
            )


def _check_adapters(study: PreparedStudy, folders: _Folders, log: RunLog, *, any_base: bool) -> None:
    base = base_model(study.model)
    log.phase("check adapters", total=len(folders.all()), unit="adapters")
    for folder in folders.all():
        check_imported(folder, base, any_base=any_base)
        log.advance(1)


def _save_adapters(state: StudyState, folders: _Folders, stores: Stores, log: RunLog) -> None:
    study, plan = state.settings, work_plan(state)
    specs = [spec for spec in plan.specs.values() if spec.imported and not spec.seed]
    log.phase("import adapters", total=len(specs), unit="adapters")
    tags = {"study": study.name, "method": "imported", "training_group": "imported"}
    params = {"adapters": len(specs)}
    with (
        stores.tracker.adapter_run(study.name, name="import adapters", params=params, tags=tags) as run,
        Keeper(study, run, stores) as keeper,
    ):
        for spec in specs:
            clean = stores.adapters.scratch(plan.keys[spec.name]) / "adapter"
            clean.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                (clean / name).write_bytes((folders.of(spec) / name).read_bytes())
            # Trained elsewhere: no steps, no tokens, no loss of ours.
            keeper.keep(TrainedAdapter(plan.keys[spec.name], spec.name, spec, 0, 0, 0.0, math.nan, math.nan, 0), clean)
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
