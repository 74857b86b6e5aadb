"""The gate: cluster 0 must show that it is worth paying for the others. Each rung of the ladder is a run of its own.

While the first rung trains, idle workers evaluate the base model: its val answers for the power estimate, then its test answers.
"""

from prefect import flow, tags
from prefect.futures import PrefectFuture

from clusterlora.planning.gate_step import GateStep
from clusterlora.requests import EvaluationRequest
from clusterlora.values import Verdict
from tasks.dispatch import dispatch_evaluation
from tasks.fan_out import train_all
from tasks.judgement import estimate_power, judge, known_verdict
from tasks.planning import plan_gate
from tasks.run_names import study_tag


@flow(name="gate", flow_run_name="gate · cluster 00 · {study_name}")
def gate(study_name: str) -> Verdict | None:
    """Return the verdict of the first rung that passes, else of the last one; None when the study has no clusters to gate.

    Args:
        study_name: A study that exists, with its personas grouped.
    """
    with tags(study_tag(study_name)):
        while step := plan_gate(study_name):
            climb(study_name, step)
        return known_verdict(study_name)


@flow(name="rung", flow_run_name="gate · cluster 00 · {study_name} · {step.rung.name}")
def climb(study_name: str, step: GateStep) -> Verdict:
    """Train what one rung of the ladder still needs, evaluate it on val, and judge it."""
    power = EvaluationRequest(study_name=study_name, part="power")
    ahead: list[PrefectFuture[None]] = []
    if step.estimates_power:
        # First in line for a worker, and soon done: a person who reads it can still cancel before much was spent.
        answered = dispatch_evaluation.submit(power)
        ahead = [answered, estimate_power.submit(study_name, return_state=False, wait_for=[answered])]
    after = power.run_name if ahead else None
    for groups in step.waves:
        if after and step.answers_baseline:
            baseline = EvaluationRequest(study_name=study_name, part="baseline")
            ahead.append(dispatch_evaluation.submit(baseline, after=groups[-1].name))
        train_all(study_name, groups, after=after)
        after = None
    dispatch_evaluation(EvaluationRequest(study_name=study_name, part="gate", rung=step.rung.name))
    for future in ahead:
        future.result()
    return judge(study_name, step.rung.name)
