"""Merge a study's personal adapters per cluster with other settings than the study's, and register the merged adapters."""

from dataclasses import replace

from clusterlora.adapters.merging import density_of
from clusterlora.errors import BadData
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.requests import MergeRequest, TrainingGroup
from clusterlora.stages.register import register_adapter
from clusterlora.stages.train import merge_adapters


def merge(request: MergeRequest, stores: Stores, log: RunLog) -> tuple[str, ...]:
    """Return the names of the merged adapters, one per cluster; those that exist already are not made again.

    Raises:
        BadData: personal adapters are missing.
        BadSettings: the personas are not clustered yet.
    """
    study_name, merging = request.study_name, request.merging
    state = read_state(study_name, stores)
    compared = state.settings
    state = replace(state, settings=replace(compared, methods=("merge",), seeds=1, merging=merging))
    plan = work_plan(state)
    trained = trained_adapters(state, plan)
    personal = [spec.name for spec in plan.specs.values() if not spec.merge_of]
    if missing := [name for name in personal if name not in trained]:
        raise BadData(
            f"study {study_name} has {len(personal) - len(missing)} of {len(personal)} personal adapters, {missing[0]} is missing; "
            f"train them: clusterlora train --name {study_name} with per_persona or merge among its methods"
        )
    density = density_of(merging)
    suffix = merging.kind if density == 1 else f"{merging.kind}-{density:g}"
    new = {spec.name: f"{spec.name}+{suffix}" for spec in plan.specs.values() if spec.merge_of and spec.name not in trained}
    specs = [replace(plan.specs[name], name=new[name]) for name in new]
    plan = replace(plan, keys={**plan.keys, **{new[name]: plan.keys[name] for name in new}})
    if specs:
        group = TrainingGroup(f"merge-{suffix}", f"merge clusters by {suffix}", tuple(new.values()))
        with timed(stores, study_name, "merge", suffix):
            merge_adapters(
                state,
                plan,
                group,
                specs,
                tags={"study": study_name, "method": "merge", "training_group": group.name},
                stores=stores,
                log=log,
            )
    adapters = {adapter.key: adapter for adapter in stores.studies.adapters(study_name)}
    merged = {spec: adapters[plan.keys[spec.name]] for spec in plan.specs.values() if spec.merge_of}
    # The comparison's result is about the study's own merge, not about another one.
    method = "merge" if "merge" in compared.methods and compared.merging == merging else f"merge by {suffix}"
    for spec, adapter in merged.items():
        model = adapter.name.replace("+", "-")
        register_adapter(state, adapter, stores, model=model, method=method, n_personas=len(spec.persona_ids))
    return tuple(adapter.name for adapter in merged.values())
