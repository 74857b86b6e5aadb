"""A study's lineage as Prefect assets, and as a table that every server shows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import create_table_artifact
from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.states import Completed

from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task

if TYPE_CHECKING:
    from clusterlora.results.lineage import LineageNode

MADE_BY = "clusterlora"


@study_task("lineage · {study_name}")
def show_lineage(context: TaskContext, study_name: str) -> int:
    """Send every asset with what it was made of as Prefect's materialisation events; return how many there are.

    A self-hosted server keeps the events and has no page of assets, so the artifact `lineage-NAME` shows the same.
    """
    from clusterlora.metadata import RegisteredChampion
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.work_plan import work_plan
    from clusterlora.results.lineage import lineage

    state = read_state(study_name, context.stores)
    registered = context.stores.studies.metadata(study_name, RegisteredChampion)
    nodes = lineage(state, work_plan(state) if state.clustering else None, registered.uri if registered else None)
    emit(study_name, nodes)
    table = [
        {"what": node.kind, "name": node.name, "key": node.key, "made of": ", ".join(node.made_of) or "-", "facts": _words(node.facts)}
        for node in nodes
    ]
    create_table_artifact(table, key=artifact_key("lineage", study_name), description="what the champion was made of")
    return len(nodes)


def emit(study_name: str, nodes: "Sequence[LineageNode]") -> None:
    """Send a materialisation event for every node, and one for each thing that it was made of."""
    for node in nodes:
        asset = Asset(key=node.key, properties=AssetProperties(name=node.name, description=node.kind))
        AssetContext(
            direct_asset_dependencies={Asset(key=key) for key in node.made_of},
            downstream_assets={asset},
            materialized_by=MADE_BY,
            materialization_metadata={node.key: {"study": study_name, **node.facts}},
        ).emit_events(Completed())


def _words(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
