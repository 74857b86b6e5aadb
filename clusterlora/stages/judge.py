"""A cluster's verdict under one rung, from val answers only: the ladder chooses by it, so it must not depend on test items."""

from dataclasses import replace

import numpy as np

from clusterlora.comparison.power import StudyPower, study_power
from clusterlora.gate.judge import judge as judge_trial
from clusterlora.gate.power import Power, gate_power
from clusterlora.gate.required_share import required_share
from clusterlora.planning.ladder import REFERENCE, rung_by_name, rungs
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import judged_adapters, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.stages.evaluate import scores_of
from clusterlora.values import AdapterComposition, Verdict, WeightedAdapter


def judge(study_name: str, rung: str, stores: Stores) -> Verdict:
    """Return the gate's verdict on cluster 0 as this rung trained it, and record it in the study and in the tracker."""
    state = read_state(study_name, stores)
    verdict = verdict_on(state, rung, 0, stores)
    if state.power:
        comparison = power_of_study(state)
        notes = (*verdict.notes, state.power.sentence, *state.power.warnings, *([comparison.sentence] if comparison else []))
        verdict = replace(verdict, notes=notes)
    stores.studies.save_verdict(study_name, verdict)
    stores.tracker.log_verdict(study_name, verdict)
    return verdict


def estimate_power(study_name: str, stores: Stores) -> Power:
    """Return the gate's power, from the base model's answers to the val items of cluster 0, and record it with the study."""
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


def power_of_study(state: StudyState) -> StudyPower | None:
    """Return the power of the study's comparison on test items, in points once the gate's power is known; None when it compares nothing."""
    n_items = [sum(turn.role == "assistant" for dialogue in p.of_split("test") for turn in dialogue.turns) for p in state.dataset.personas]
    tested = [n for n in n_items if n]
    # The variance of people's means is proportional to the mean of 1 / n over people.
    sd = state.power.gain_sd(1 / float(np.mean([1 / n for n in tested]))) if state.power and tested else None
    return study_power(state.settings.methods, REFERENCE, len(tested), sd=sd)


def verdict_on(state: StudyState, rung: str, cluster: int, stores: Stores) -> Verdict:
    """Return the gate's criteria applied to any cluster whose val items are answered; nothing is recorded."""
    study, plan = state.settings, work_plan(state, rung_by_name(state, rung))
    candidate, reference = (AdapterComposition((WeightedAdapter(name),)) for name in judged_adapters(plan, cluster))
    persona_ids = plan.specs[candidate.adapter_names[0]].persona_ids
    pairs = [(p, composition) for p in persona_ids for composition in (candidate, reference)]
    keys = {composition: plan.composition_key(composition) for composition in (candidate, reference)}
    scores = scores_of(state, stores, keys, pairs, "val", study.evaluation.headline)
    ladder = [one.name for one in rungs(state)]
    share = required_share(study.gate, n_personas=len(persona_ids), rung=ladder.index(rung), n_rungs=len(ladder))
    verdict = judge_trial(
        {p: scores[p, candidate] for p in persona_ids},
        {p: scores[p, reference] for p in persona_ids},
        replace(study.gate, share_improved=share),
        rung=rung,
        adapter=candidate.adapter_names[0],
        rng=np.random.default_rng(0),
    )
    if share == study.gate.share_improved:
        return verdict
    note = (
        f"Rung {ladder.index(rung) + 1} of {len(ladder)}: {share:.0%} of the personas must improve instead of "
        f"{study.gate.share_improved:.0%}, so that trying on does not pass by luck."
    )
    return replace(verdict, notes=(note,))
