"""The deployed unit of evaluation: one shard of a study's items, answered by every stack that is asked about them."""

from typing import Literal

from prefect import flow
from prefect.runtime import flow_run

from tasks.evaluation import evaluate_shard
from tasks.run_names import evaluation_name


def _name() -> str:
    return evaluation_name(**flow_run.parameters)


@flow(name="evaluate", flow_run_name=_name)
def evaluate(study_name: str, part: Literal["gate", "select", "test"] = "test", shard: int = 1, shards: int = 1, rung: str | None = None) -> None:
    """Answer and score what is missing of a study.

    Args:
        study_name: A study that exists.
        part: gate: cluster 0 and unified on val; select: the arms of every method on val; test: every method on test.
        shard: Which shard of the part, counted from 1.
        shards: How many shards the part is cut into.
        rung: For the gate: which rung of the ladder.
    """
    evaluate_shard(study_name, part=part, shard=shard, shards=shards, rung=rung)
