"""What a champion was made of, under keys that are the same in every study that uses the thing."""

from dataclasses import replace

from prefect.assets import Asset

from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.results.lineage import LineageNode, lineage
from clusterlora.settings import Study


def by_kind(nodes: tuple[LineageNode, ...]) -> dict[str, LineageNode]:
    return {node.kind if node.kind != "adapters" else node.name: node for node in nodes}


def test_a_champion_leads_back_to_its_data(seven: Study, finished_stores: Stores) -> None:
    state = read_state(seven.name, finished_stores)
    assert state.outcome is not None
    outcome = state.outcome
    state = replace(state, outcome=replace(outcome, champion="cluster"))
    nodes = lineage(state, work_plan(state), "models:/small/1")
    found = by_kind(nodes)
    assert found["champion"].made_of == (found["cluster of small"].key,)
    assert set(found["cluster of small"].made_of) >= {found["clustering"].key, found["split"].key}
    assert found["clustering"].key not in found["unified of small"].made_of
    assert found["clustering"].made_of == (found["split"].key,)
    assert found["split"].made_of == (found["data set"].key,)
    assert found["data set"].facts["people"] == "7"
    assert found["split"].facts["train"] == "21"
    chosen = replace(state, outcome=replace(outcome, champion="selective_routing"))
    routed = by_kind(lineage(chosen, work_plan(state), "models:/small/2"))
    assert routed["champion"].made_of == (routed["selective_routing of small"].key,)
    # Every key is one that Prefect takes, and what something is made of comes before it.
    for number, node in enumerate(nodes):
        assert Asset(key=node.key).key == node.key
        assert all(key in {earlier.key for earlier in nodes[:number]} or key.startswith("clusterlora://base/") for key in node.made_of)


def test_other_splits_of_the_same_data_share_the_data_set_alone(seven: Study, finished_stores: Stores) -> None:
    state = read_state(seven.name, finished_stores)
    assert state.data is not None
    first = state.data.personas[0]
    moved = replace(first, dialogues=tuple(replace(d, split="train") for d in first.dialogues))
    other = replace(state, data=replace(state.data, personas=(moved, *state.data.personas[1:])))
    one, two = by_kind(lineage(state, None, None)), by_kind(lineage(other, None, None))
    assert one["data set"].key == two["data set"].key
    assert one["split"].key != two["split"].key
    assert "champion" not in one
