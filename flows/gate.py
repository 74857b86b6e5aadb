"""The gate: one cluster must show that training the others is worth its cost. Each rung of the ladder is a run of its own.

While the first rung trains, idle workers evaluate the base model: its val answers for the power estimate, then its test answers.
"""

from prefect import flow, tags
from prefect.futures import PrefectFuture

from clusterlora.planning.gate_step import GateStep
from clusterlora.requests import EvaluationRequest
from clusterlora.values import Verdict
from tasks.dispatch import dispatch_evaluation
from tasks.fan_out import train_all
from tasks.judgement import estimate_power, final_verdict, judge
from tasks.planning import plan_gate
from tasks.run_names import study_tag


@flow(name="gate", flow_run_name="gate · {study_name}")
def gate(study_name: str) -> Verdict | None:
    """Return the verdict of the first rung that passes, else of the last one; None when the study has no cluster to judge.

    Args:
        study_name: A study that exists, with its personas grouped.
    """
    with tags(study_tag(study_name)):
        while step := plan_gate(study_name):
            try_rung(study_name, step)
        return final_verdict(study_name)


@flow(name="rung", flow_run_name="gate · cluster {step.cluster:02d} · {study_name} · {step.rung.name}")
def try_rung(study_name: str, step: GateStep) -> Verdict:
    """Train the adapters that one rung of the ladder still needs, evaluate them on val, and judge them."""
    power = EvaluationRequest(study_name=study_name, part="power")
    baseline_futures: list[PrefectFuture[None]] = []
    if step.estimates_power:
        # Queued first, because it is short: whoever reads the estimate can still cancel before much is spent.
        answered = dispatch_evaluation.submit(power)
        estimate = estimate_power.submit(study_name, return_state=False, wait_for=[answered])  # pyrefly: ignore[no-matching-overload]
        baseline_futures = [answered, estimate]
    after = power.run_name if baseline_futures else None
    for groups in step.waves:
        if after and step.answers_baseline:
            baseline = EvaluationRequest(study_name=study_name, part="baseline")
            baseline_futures.append(dispatch_evaluation.submit(baseline, after=groups[-1].name))
        train_all(study_name, groups, after=after)
        after = None
    dispatch_evaluation(EvaluationRequest(study_name=study_name, part="gate", rung=step.rung.name))
    for future in baseline_futures:
        future.result()
    return judge(study_name, step.rung.name)
