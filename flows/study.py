"""The parent of everything: from settings to a registered champion."""

from prefect import flow, tags
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from clusterlora.settings import Study
from flows.compare import compare
from flows.gate import gate
from tasks.comparison import register
from tasks.fan_out import evaluate_all, train_all
from tasks.planning import packs_after_gate
from tasks.preparation import cluster, prepare
from tasks.run_names import study_tag

MISSION = Study()


@flow(name="study", flow_run_name="study · {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=64))
def study(config: Study = MISSION) -> State:
    """Find out which granularity of adapter answers people best, and register the winner.

    Launched again under the same name it continues where it was: nothing that had finished is trained again.

    Args:
        config: The study.
    """
    name, shards = config.name, config.runtime.shards
    with tags(study_tag(name)):
        prepare(config)
        cluster(config)

        verdict = gate(name)
        while packs := packs_after_gate(name):
            train_all(name, packs)

        evaluate_all(name, "select", shards=shards)
        evaluate_all(name, "test", shards=shards)
        finding = compare(name)
        champion = register(name)

    if verdict is not None and not verdict.passed and config.gate.on_failure == "stop":
        failed = ", ".join(criterion.name for criterion in verdict.criteria if not criterion.passed)
        return Completed(name="GateRefused", message=f"gate refused ({failed}); compared what was trained: {finding}")
    return Completed(message=f"{finding} Champion: {champion}")
