"""All unfinished runs of a study are found, however many there are and although they end meanwhile."""

from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType

from deployments import prefect_client
from tasks.run_pages import MOST_RUNS


class Server:
    """Prefect's list of runs, latest first; between two requests some of the latest end."""

    def __init__(self, n_runs: int, *, ending: int) -> None:
        self.open = [
            FlowRun(id=UUID(int=n), flow_id=UUID(int=0), state=State(type=StateType.RUNNING), parameters={}) for n in range(n_runs)
        ]
        self.open[0].name = prefect_client.parent_name("large")
        self.ending, self.n_requests = ending, 0

    def read_flow_runs(self, *, flow_run_filter: Any, limit: int, offset: int, **_: Any) -> list[FlowRun]:
        if self.n_requests:
            self.open = self.open[: len(self.open) - self.ending]
        self.n_requests += 1
        assert set(flow_run_filter.state.type.any_) == {
            StateType[name] for name in ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
        }
        return self.open[::-1][offset : offset + limit]


def test_the_runs_of_a_study_with_a_thousand_parts_are_found_in_order() -> None:
    client: Any = Server(1025, ending=0)
    assert [run.id.int for run in prefect_client.open_runs(client, "large")] == list(range(1025))
    assert prefect_client.latest_open_run(client, "large") == UUID(int=0), "the parent, which was expected first"
    assert len(prefect_client.live_work(client, "large").runs) == len({run.name for run in client.open})


def test_no_run_is_missed_because_others_end_between_two_pages() -> None:
    server: Any = Server(1000, ending=MOST_RUNS // 4)
    found = {run.id for run in prefect_client.open_runs(server, "large")}
    assert found >= {run.id for run in server.open}
