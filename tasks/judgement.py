"""The gate's verdict on one rung, and before it the gate's power, as artifacts."""

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from clusterlora.values import Verdict
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("judge · {study_name} · {rung}")
def judge(context: TaskContext, study_name: str, rung: str) -> Verdict:
    """Return the verdict on the judged cluster as one rung trained it, from the answers in the study database."""
    from clusterlora.gate.report import markdown, records
    from clusterlora.stages.judge import judge_rung

    verdict = judge_rung(study_name, rung, context.stores)
    create_markdown_artifact(
        markdown(verdict),
        key=artifact_key("gate", study_name, rung),
        description=f"Gate of {study_name}, {rung}: {'passed' if verdict.passed else 'refused'}",
    )
    create_table_artifact(
        records(verdict),
        key=artifact_key("gate-table", study_name, rung),
        description=f"Gate of {study_name}, {rung}: {'PASSED' if verdict.passed else 'REFUSED'}",
    )
    return verdict


@study_task("estimate the gate's power · {study_name}")
def estimate_power(context: TaskContext, study_name: str) -> None:
    """Estimate what gate and comparison detect, and how often luck passes the gate, as soon as the base model has answered."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.stages.judge import estimate_power as estimate_gate_power
    from clusterlora.stages.judge import power_of_study

    power = estimate_gate_power(study_name, context.stores)
    comparison = power_of_study(read_state(study_name, context.stores))
    logger = get_run_logger()
    logger.info("%s", power.sentence)
    for warning in power.warnings:
        logger.warning("%s", warning)
    lines = [
        f"## The power of the gate of {study_name}",
        power.sentence,
        *(f"**{warning}**" for warning in power.warnings),
    ]
    if comparison is not None:
        logger.info("%s", comparison.sentence)
        lines += ["## The power of the comparison", comparison.sentence]
    create_markdown_artifact("\n\n".join(lines), key=artifact_key("gate", study_name, "power"), description=power.sentence)


@study_task("look up verdict · {study_name}")
def final_verdict(context: TaskContext, study_name: str) -> Verdict | None:
    """Return the verdict of the rung that passed, else of the last one tried; None when the study has no cluster to judge."""
    from clusterlora.planning.ladder import gate_verdict
    from clusterlora.planning.study_state import read_state

    return gate_verdict(read_state(study_name, context.stores))
