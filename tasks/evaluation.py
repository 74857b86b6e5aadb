"""Answer and score one shard of a study's items in this process."""

from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from clusterlora.wiring import from_environment
from tasks.device import exclusive, visible_gpu
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog


@task(task_run_name="evaluate {part} {shard}/{shards} · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def evaluate_shard(
    study_name: str, *, part: Literal["power", "baseline", "gate", "test"], shard: int, shards: int, rung: str | None
) -> int:
    """Return the number of answers given; those the study holds are not given again. Shards count from 1."""
    from clusterlora.stages.evaluate import evaluate

    stores = from_environment()
    log = PrefectRunLog(study_name, "evaluate", part, str(shard))
    with exclusive(visible_gpu(), stores.home / ".locks"):
        return evaluate(study_name, part=part, shard=shard, shards=shards, rung=rung, stores=stores, log=log)
