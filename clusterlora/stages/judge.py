"""A cluster's verdict under one rung, from val answers alone: the ladder chooses by it, so test items must not be seen here."""

import numpy as np

from clusterlora.gate.judge import judge as judge_trial
from clusterlora.ports import Stores
from clusterlora.stages.evaluate import scores_of
from clusterlora.stages.plan import judged_adapters, rung_by_name, work_plan
from clusterlora.values import Layer, Stack, Verdict


def judge(study_name: str, rung: str, stores: Stores) -> Verdict:
    """Return the gate's verdict: on cluster 0 as this rung trained it, now recorded in the study and in the tracker."""
    verdict = verdict_on(study_name, rung, 0, stores)
    stores.studies.save_verdict(study_name, verdict)
    stores.tracker.log_verdict(study_name, verdict)
    return verdict


def verdict_on(study_name: str, rung: str, cluster: int, stores: Stores) -> Verdict:
    """Return the gate's criteria applied to any cluster whose val items are answered; nothing is recorded."""
    study = stores.studies.study(study_name)
    plan = work_plan(study, stores, rung_by_name(study, rung))
    candidate, reference = (Stack((Layer(name),)) for name in judged_adapters(plan, cluster))
    persona_ids = plan.specs[candidate.adapters[0]].persona_ids
    pairs = [(p, stack) for p in persona_ids for stack in (candidate, reference)]
    keys = {stack: plan.stack_key(stack) for stack in (candidate, reference)}
    scores = scores_of(study, stores, keys, pairs, "val", study.evaluation.headline)
    return judge_trial(
        {p: scores[p, candidate] for p in persona_ids},
        {p: scores[p, reference] for p in persona_ids},
        study.gate,
        rung=rung,
        adapter=candidate.adapters[0],
        rng=np.random.default_rng(0),
    )
