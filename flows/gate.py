"""The gate: cluster 0 must show that it is worth paying for the others. Each rung of the ladder is a run of its own.

While the first rung trains, idle workers evaluate the base model: its val answers for the power estimate, then its test answers.
"""

from prefect import flow, tags
from prefect.futures import PrefectFuture

from clusterlora.requests import EvaluationRequest
from clusterlora.settings import Rung
from clusterlora.values import Verdict
from tasks.dispatch import dispatch_evaluation
from tasks.fan_out import train_all
from tasks.judgement import estimate_power, has_power, judge, known_verdict
from tasks.planning import baseline_beside_gate, groups_for_gate, ladder
from tasks.run_names import study_tag


@flow(name="gate", flow_run_name="gate · cluster 00 · {study_name}")
def gate(study_name: str) -> Verdict | None:
    """Return the verdict of the first rung that passes, else of the last one; None when the study has no clusters to gate.

    Args:
        study_name: A study that exists, with its personas grouped.
    """
    verdict = None
    with tags(study_tag(study_name)):
        for rung in ladder(study_name):
            verdict = known_verdict(study_name, rung.name) or climb(study_name, rung)
            if verdict.passed:
                break
    return verdict


@flow(name="rung", flow_run_name="gate · cluster 00 · {study_name} · {rung.name}")
def climb(study_name: str, rung: Rung) -> Verdict:
    """Train what one rung of the ladder still needs, evaluate it on val, and judge it."""
    ahead: list[PrefectFuture[None]] = []
    power = EvaluationRequest(study_name=study_name, part="power")
    if not has_power(study_name):
        # First in line for a worker, and soon done: a person who reads it can still cancel before much was spent.
        answered = dispatch_evaluation.submit(power)
        ahead = [answered, estimate_power.submit(study_name, return_state=False, wait_for=[answered])]
    after = power.run_name if ahead else None
    while groups := groups_for_gate(study_name, rung):
        if after and baseline_beside_gate(study_name):
            baseline = EvaluationRequest(study_name=study_name, part="baseline")
            ahead.append(dispatch_evaluation.submit(baseline, after=groups[-1].name))
        train_all(study_name, groups, after=after)
        after = None
    dispatch_evaluation(EvaluationRequest(study_name=study_name, part="gate", rung=rung.name))
    for future in ahead:
        future.result()
    return judge(study_name, rung.name)
