"""All runs that a query of Prefect's server finds, however many: one request returns a page of them."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

MOST_RUNS = 200
"""Prefect's limit on the number of objects that one request returns."""


def all_runs(client: "SyncPrefectClient", **query: Any) -> "list[FlowRun]":
    """Return the runs that a query of `read_flow_runs` finds, in order of their expected start.

    The latest come in the first page. Pages overlap: when runs of one end before the next is read, those behind them move up.
    """
    from prefect.client.schemas.sorting import FlowRunSort

    by_id: dict[UUID, FlowRun] = {}
    offset, is_last = 0, False
    while not is_last:
        page = client.read_flow_runs(**query, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=MOST_RUNS, offset=offset)
        by_id.update((run.id, run) for run in page)
        offset += MOST_RUNS // 2
        is_last = len(page) < MOST_RUNS
    return list(by_id.values())[::-1]
