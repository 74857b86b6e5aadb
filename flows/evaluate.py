"""The deployed unit of evaluation: one shard of a study's items, answered by every method."""

from typing import Literal

from prefect import flow
from prefect.runtime import flow_run

from tasks.evaluation import evaluate_shard
from tasks.run_names import evaluation_name


def _name() -> str:
    return evaluation_name(**flow_run.parameters)


@flow(name="evaluate", flow_run_name=_name)
def evaluate(
    study_name: str, part: Literal["power", "baseline", "gate", "test"] = "test", shard: int = 1, shards: int = 1, rung: str | None = None
) -> None:
    """Answer and score what is missing of a study.

    Args:
        study_name: A study that exists.
        part: `power` answers the val items of cluster 0 with the bare base model, `gate` with the adapters on trial; `test` lets every
            method choose on val, then answers test; `baseline` answers what `test` will ask of the bare base model.
        shard: This run's share of the personas, counted from 1.
        shards: How many runs share the personas.
        rung: Which rung of the ladder, for the gate.
    """
    evaluate_shard(study_name, part=part, shard=shard, shards=shards, rung=rung)
