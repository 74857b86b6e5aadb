"""A study in whose people no clusters are found goes on without the methods that need them, and says so beside its results."""

from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.planning.study_state import read_state
from clusterlora.settings import ClusteringSettings
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import LOG, run_gate, run_rest, study_of_five
from tests.fixtures.studies import memory_stores

WHY = (
    "No clusters: 5 people are too few for two of clustering.min_size, or their answers give nothing to divide them by. "
    "Methods that need clusters are left out."
)


@pytest.mark.whole
def test_what_is_left_out_for_want_of_clusters_is_said_beside_the_results(tiny_base_folder: Path, tmp_path: Path) -> None:
    stores = memory_stores(tmp_path)
    of_two = study_of_five(tiny_base_folder, memory_stores(tmp_path / "of_two"))
    asked = replace(of_two, name="alone", methods=("unified", "cluster", "per_persona"), clustering=ClusteringSettings(min_size=3))
    prepare_study(asked, stores, LOG)
    cluster_study(asked.name, stores, LOG)
    study = read_state(asked.name, stores).settings
    run_gate(study, stores)
    run_rest(study, stores)
    comparison = compare_study(study.name, stores, LOG)
    assert {result.method for result in comparison.methods} == {"unified", "per_persona"}
    assert WHY in (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
