"""The parent flow: from settings to a registered champion."""

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run
from prefect.states import Completed

from clusterlora.form import MISSION, FormStudy, Preset, filled_in
from clusterlora.planning.ladder import command_to_continue
from clusterlora.requests import EvaluationRequest
from flows.compare import compare
from flows.gate import gate
from flows.tune import tune
from tasks.artifacts import link_runs
from tasks.comparison import register
from tasks.decision import PATIENCE_SECONDS, GateDecision, question_for_a_person, record_decision
from tasks.dispatch import dispatch_evaluation
from tasks.expectation import lacks_probe, show_expectation
from tasks.fan_out import evaluate_all, train_all
from tasks.lineage import show_lineage
from tasks.outcome import cancel_children, record_failure
from tasks.planning import criteria_not_met, groups_after_gate, groups_before_clustering, parts_after_training
from tasks.preparation import cluster, measure_persona_signal, measure_scale, prepare, refine
from tasks.run_names import study_tag, tag_this_run
from tasks.status import show_status


def _run_name() -> str:
    given = flow_run.parameters
    return f"study · {filled_in(given['preset'], given['config']).name}"


@flow(
    name="study",
    flow_run_name=_run_name,
    on_failure=[record_failure],
    on_crashed=[record_failure],
    on_cancellation=[record_failure, cancel_children],
)
def study(preset: Preset | None = None, config: FormStudy = MISSION) -> State[None]:
    """Find out which granularity of adapter answers people best, and register the winner.

    Launched again under the same name it continues where it stopped; adapters that had finished are not trained again.

    Args:
        preset: Fills every field below that is left as it is; what is changed below is kept. Empty: the fields as they stand.
        config: The study.
    """
    config = filled_in(preset, config)
    name = config.name
    tag_this_run(name)
    with tags(study_tag(name)):
        prepare(config)
        link_runs(name)
        if lacks_probe(name):
            # Whatever becomes of the probe, the study goes on: without it nobody knows how long.
            dispatch_evaluation(EvaluationRequest(study_name=name, part="probe"), return_state=True)
        show_expectation(name)
        for groups in groups_before_clustering(name):
            train_all(name, groups)
        cluster(name)
        # Both read only the data and run while adapters are trained; nothing but the comparison waits for them.
        signal = measure_persona_signal.submit(name)
        scale = measure_scale.submit(name, return_state=False, wait_for=[signal])  # pyrefly: ignore[no-matching-overload]
        if config.tune:
            tune(name)
        show_status(name, "at the gate")

        gate(name)
        while question := question_for_a_person(name):
            # Who decides can read it, and no task is left running when this run is suspended.
            signal.result()
            show_status(name, "waiting for a decision on the gate")
            key, text = question
            form = GateDecision.with_initial_data(description=text)
            record_decision(name, suspend_flow_run(wait_for_input=form, key=key, timeout=PATIENCE_SECONDS))
            gate(name)
        if config.tune:
            tune(name)
        while True:
            for groups in groups_after_gate(name):
                train_all(name, groups)
            if not refine(name):
                break
        show_status(name, "trained")

        evaluate_all(name, parts=parts_after_training(name))
        signal.result()
        scale.result()
        conclusion = compare(name)
        champion = register(name)
        show_lineage(name)
        show_status(name, "finished")
        not_met = criteria_not_met(name)
    if not_met:
        refusal = f"gate refused ({', '.join(not_met)}); compared what was trained: {conclusion}"
        return Completed(name="GateRefused", message=f"{refusal} To train the rest: {command_to_continue(name)}")
    return Completed(message=f"{conclusion} Champion: {champion}")
