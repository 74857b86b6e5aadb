"""Many runs at once, and none lost because another failed."""

from collections.abc import Iterable, Sequence

from prefect.futures import PrefectFuture, wait

from clusterlora.stages.plan import Pack
from tasks.dispatch import dispatch_evaluation, dispatch_training


def train_all(study_name: str, packs: Iterable[Pack]) -> None:
    """Train every pack in a run of its own; raise the first failure after all have ended."""
    _all_of([dispatch_training.submit(study_name, pack) for pack in packs])


def evaluate_all(study_name: str, *, shards: int) -> None:
    """Answer every shard of the test items in a run of its own; raise the first failure after all have ended."""
    _all_of([dispatch_evaluation.submit(study_name, "test", shard=shard, shards=shards) for shard in range(1, shards + 1)])


def _all_of(futures: Sequence[PrefectFuture[None]]) -> None:
    wait(list(futures))
    for future in futures:
        future.result()
