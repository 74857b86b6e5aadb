"""A cluster's verdict under one rung, from val answers only: the ladder chooses by it, so it must not depend on test items."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clusterlora.comparison.power import StudyPower, expected_clusters, study_power
from clusterlora.data.prompts import items
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.ceiling import Ceiling, ceiling
from clusterlora.gate.judge import judge as judge_trial
from clusterlora.gate.power import Power, gate_power, measured_power
from clusterlora.gate.required_share import required_share
from clusterlora.gate.trial import Scores
from clusterlora.models.model_cache import embedder
from clusterlora.planning.ladder import REFERENCE, command_to_continue, gated, refused, rung_by_name, rungs, why_not_climbed
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, judged_adapters, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.stages.evaluate import scores_of
from clusterlora.stages.val_dialogues import val_dialogues
from clusterlora.values import AdapterComposition, Verdict, WeightedAdapter


def judge_rung(study_name: str, rung: str, stores: Stores) -> Verdict:
    """Return the gate's verdict on the judged cluster as this rung trained it, and record it in the study and in the tracker."""
    state = read_state(study_name, stores)
    verdict = verdict_on(state, rung, None, stores)
    earlier = tuple(other for other in state.verdicts if other.rung != rung)
    notes = list(verdict.notes)
    if not earlier:
        # Once for the ladder: further rungs are judged on the same people and items.
        notes += _power_notes(state, verdict, stores)
    notes += _ending(replace(state, verdicts=(*earlier, verdict)))
    verdict = replace(verdict, notes=tuple(notes))
    stores.studies.save_verdict(study_name, verdict)
    stores.tracker.log_verdict(study_name, verdict)
    return verdict


def _power_notes(state: StudyState, verdict: Verdict, stores: Stores) -> list[str]:
    """Return what gate and comparison tell, by the variance of the gains that were judged."""
    metric = METRICS[state.settings.evaluation.headline]
    group = _random_group_scores(state, verdict.rung, stores)
    power = measured_power(
        _gains(*_judged_scores(state, verdict.rung, None, stores)[:2], metric),
        state.settings.gate,
        np.random.default_rng(0),
        metric.name,
        group_gains=_gains(*group, metric) if group else None,
    )
    comparison = power_of_study(state, power)
    return [power.sentence, *power.warnings_after(verdict), *([comparison.sentence] if comparison else [])]


def _gains(candidate: Scores, unified: Scores, metric: Metric) -> Scores:
    """Return how much better the candidate scores than unified on each item."""
    sign = 1 if metric.higher_is_better else -1
    return {p: sign * (candidate[p] - unified[p]) for p in candidate}


def _ending(after: StudyState) -> list[str]:
    """Return, once the gate has refused, why its ladder is not climbed, where it is not, and the command that goes on."""
    if not refused(after):
        return []
    reasons = list(why_not_climbed(after))
    not_climbed = [f"The ladder is not climbed, as no rung can mend this: {' '.join(reasons)}"] if reasons else []
    if after.settings.gate.on_failure == "ask":
        return not_climbed
    return [*not_climbed, f"To train the rest all the same: `{command_to_continue(after.name)}`"]


def measure_ceiling(study_name: str, stores: Stores) -> Ceiling | None:
    """Return what the gate's absolute thresholds can ask of these data, and record it, once the personas are clustered.

    None where there is no gate, where none is set, or where they are of another metric.
    """
    state = read_state(study_name, stores)
    study = state.settings
    if state.ceiling is not None:
        return state.ceiling
    if not gated(state) or (study.gate.mean_similarity is None and study.gate.worst_persona is None):
        return None
    if study.evaluation.headline != "embedding_similarity":
        return None
    personas, plan = state.dataset.by_id(), work_plan(state)
    gated_ids = _with_val(state, plan.specs[judged_adapters(plan)[0]].persona_ids)
    references = {p: [item.reference for item in items(study.model, personas[p], "val")] for p in gated_ids}
    train = [turn.text for p in state.dataset.personas for d in p.of_split("train") for turn in d.turns if turn.role == "assistant"]
    measured = ceiling(references, train, embedder(study.model))
    stores.studies.save_metadata(study_name, measured)
    return measured


def estimate_power(study_name: str, stores: Stores) -> Power:
    """Return the gate's power, from the base model's answers to the val items of the judged cluster, and record it with the study."""
    state = read_state(study_name, stores)
    study, plan = state.settings, work_plan(state)
    persona_ids = _with_val(state, plan.specs[judged_adapters(plan)[0]].persona_ids)
    bare = AdapterComposition()
    scores = scores_of(
        state, stores, {bare: plan.composition_key(bare)}, [(p, bare) for p in persona_ids], "val", study.evaluation.headline
    )
    personas = state.dataset.by_id()
    group = _with_val(state, plan.specs[plan.random_group].persona_ids) if plan.random_group else ()
    power = gate_power(
        {p: scores[p, bare] for p in persona_ids},
        study.gate,
        np.random.default_rng(0),
        study.evaluation.headline,
        group_items=[len(items(study.model, personas[p], "val")) for p in group],
    )
    stores.studies.save_metadata(study_name, power)
    return power


def power_of_study(state: StudyState, power: Power | None = None) -> StudyPower | None:
    """Return the power of the study's comparison on test items, in points once the gate's power is known; None when it compares nothing.

    Args:
        power: the gate's; by default as it was estimated from the base model.
    """
    power = power or state.power
    study, people = state.settings, state.dataset.personas
    n_items = {p.id: sum(turn.role == "assistant" for dialogue in p.of_split("test") for turn in dialogue.turns) for p in people}
    tested = {p: n for p, n in n_items.items() if n}
    # The variance of people's means is proportional to the mean of 1 / n over people.
    sd = power.gain_sd(1 / float(np.mean([1 / n for n in tested.values()]))) if power and power.is_known and tested else None
    if state.clustering is None:
        clusters = expected_clusters(study.clustering, len(tested))
    else:
        counts = (sum(p in tested for p in members) for members in state.clustering.members)
        clusters = (tuple(n for n in counts if n),)
    return study_power(study.methods, REFERENCE, len(tested), clusters=clusters, sd=sd, metric=study.evaluation.headline)


def verdict_on(state: StudyState, rung: str, cluster: int | None, stores: Stores) -> Verdict:
    """Return the gate's criteria applied to a cluster whose val items are answered, by default the judged one; nothing is recorded."""
    study = state.settings
    candidate, unified, adapter = _judged_scores(state, rung, cluster, stores)
    ladder = [one.name for one in rungs(state)]
    share = required_share(study.gate, n_personas=len(candidate), rung=ladder.index(rung), n_rungs=len(ladder))
    settings = replace(study.gate, share_improved=share)
    second = study.evaluation.second_headline
    verdict = judge_trial(
        candidate,
        unified,
        settings,
        rung=rung,
        adapter=adapter,
        rng=np.random.default_rng(0),
        metric=METRICS[study.evaluation.headline],
        second=(*_judged_scores(state, rung, cluster, stores, second)[:2], METRICS[second]) if second else None,
        random_group=_random_group_scores(state, rung, stores) if cluster is None else None,
        dialogues=val_dialogues(state, candidate),
    )
    if share == study.gate.share_improved:
        return verdict
    note = (
        f"Rung {ladder.index(rung) + 1} of {len(ladder)}: {share:.0%} of the personas must improve instead of "
        f"{study.gate.share_improved:.0%}, so that trying on does not pass by luck."
    )
    return replace(verdict, notes=(*verdict.notes, note))


def _random_group_scores(state: StudyState, rung: str, stores: Stores) -> tuple[Scores, Scores] | None:
    """Return the headline's val scores of the random group's adapter and of unified on the group's people; None where none is asked."""
    plan = work_plan(state, rung_by_name(state, rung))
    if plan.random_group is None:
        return None
    return _scores(state, plan, plan.random_group, stores, state.settings.evaluation.headline)


def _judged_scores(
    state: StudyState, rung: str, cluster: int | None, stores: Stores, metric: str | None = None
) -> tuple[Scores, Scores, str]:
    """Return the val scores of a cluster's adapter and of unified on the cluster's people, and the adapter's name.

    They are of the headline unless another metric is named.
    """
    plan = work_plan(state, rung_by_name(state, rung))
    candidate, _ = judged_adapters(plan, cluster)
    return *_scores(state, plan, candidate, stores, metric or state.settings.evaluation.headline), candidate


def _with_val(state: StudyState, persona_ids: Sequence[str]) -> tuple[str, ...]:
    """Return those of these people who have val items: in a refresh, somebody new may have said too little."""
    personas = state.dataset.by_id()
    return tuple(p for p in persona_ids if personas[p].of_split("val"))


def _scores(state: StudyState, plan: WorkPlan, adapter: str, stores: Stores, metric: str) -> tuple[Scores, Scores]:
    """Return the val scores of an adapter and of unified, on the people that the adapter learns from."""
    own, reference = (AdapterComposition((WeightedAdapter(name),)) for name in (adapter, REFERENCE))
    persona_ids = _with_val(state, plan.specs[adapter].persona_ids)
    pairs = [(p, composition) for p in persona_ids for composition in (own, reference)]
    keys = {composition: plan.composition_key(composition) for composition in (own, reference)}
    scores = scores_of(state, stores, keys, pairs, "val", metric)
    of_own, of_unified = ({p: scores[p, one] for p in persona_ids} for one in (own, reference))
    return of_own, of_unified
