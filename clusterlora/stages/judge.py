"""A cluster's verdict under one rung, from val answers alone: the ladder chooses by it, so test items must not be seen here."""

from dataclasses import replace

import numpy as np

from clusterlora.gate.judge import judge as judge_trial
from clusterlora.gate.power import Power, gate_power
from clusterlora.planning.ladder import rung_by_name
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import judged_adapters, work_plan
from clusterlora.ports import Stores
from clusterlora.stages.evaluate import scores_of
from clusterlora.values import AdapterComposition, Verdict, WeightedAdapter


def judge(study_name: str, rung: str, stores: Stores) -> Verdict:
    """Return the gate's verdict: on cluster 0 as this rung trained it, now recorded in the study and in the tracker."""
    state = read_state(study_name, stores)
    verdict = verdict_on(state, rung, 0, stores)
    if state.power:
        verdict = replace(verdict, notes=(state.power.sentence, *state.power.warnings))
    stores.studies.save_verdict(study_name, verdict)
    stores.tracker.log_verdict(study_name, verdict)
    return verdict


def estimate_power(study_name: str, stores: Stores) -> Power:
    """Return the gate's power, from the base model's answers to the val items of cluster 0; it is recorded with the study."""
    state = read_state(study_name, stores)
    study, plan = state.settings, work_plan(state)
    persona_ids = plan.specs[judged_adapters(plan)[0]].persona_ids
    bare = AdapterComposition()
    scores = scores_of(
        state, stores, {bare: plan.composition_key(bare)}, [(p, bare) for p in persona_ids], "val", study.evaluation.headline
    )
    power = gate_power({p: scores[p, bare] for p in persona_ids}, study.gate, np.random.default_rng(0))
    stores.studies.save_metadata(study_name, power)
    return power


def verdict_on(state: StudyState, rung: str, cluster: int, stores: Stores) -> Verdict:
    """Return the gate's criteria applied to any cluster whose val items are answered; nothing is recorded."""
    study, plan = state.settings, work_plan(state, rung_by_name(state, rung))
    candidate, reference = (AdapterComposition((WeightedAdapter(name),)) for name in judged_adapters(plan, cluster))
    persona_ids = plan.specs[candidate.adapter_names[0]].persona_ids
    pairs = [(p, composition) for p in persona_ids for composition in (candidate, reference)]
    keys = {composition: plan.composition_key(composition) for composition in (candidate, reference)}
    scores = scores_of(state, stores, keys, pairs, "val", study.evaluation.headline)
    return judge_trial(
        {p: scores[p, candidate] for p in persona_ids},
        {p: scores[p, reference] for p in persona_ids},
        study.gate,
        rung=rung,
        adapter=candidate.adapter_names[0],
        rng=np.random.default_rng(0),
    )
