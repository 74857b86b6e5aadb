"""On a Prefect server with its automations, deployed as users deploy: a changed file starts one refresh."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.states import Completed

from clusterlora.ports.stores import Stores
from clusterlora.requests import RefreshRequest
from clusterlora.settings import Study
from tests.fast.test_refresh import more
from tests.fast.test_watch import settled
from tests.fixtures.prefect import CHECKOUT, talking_to
from tests.fixtures.servers import start_server

pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning"), pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")]


def test_a_changed_file_starts_one_refresh(finished_stores: Stores, seven: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.watch import watch

    monkeypatch.setattr("tasks.study_task.from_environment", lambda: finished_stores)
    environment = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # The session's server runs no services, and automations are one of them.
    server, address = start_server("prefect", ["start"], health="/api/health", folder=tmp_path, environment=environment)
    try:
        with talking_to(f"{address}/api"), get_client(sync_client=True) as client:
            monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
            _deploy()
            (automation,) = client.read_automations()
            assert (automation.name, automation.enabled) == ("refresh__automation_1", True)
            listed = subprocess.run([sys.executable, "-m", "prefect", "automation", "ls"], capture_output=True, text=True, check=True)
            assert "refresh__" in listed.stdout

            def runs() -> list[FlowRun]:
                return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["refresh"])))

            def looked(text: str) -> list[FlowRun]:
                message = watch(RefreshRequest(study_name="small", path=settled(file, text)), return_state=True).message  # pyrefly: ignore[no-matching-overload]
                assert message is not None
                assert len(message.splitlines()) == 1
                EventsWorker.drain_all()
                return runs()

            file = tmp_path / "it's {{ more }}.jsonl"
            whole = Path(more(seven, file)).read_text(encoding="utf-8")
            assert looked(whole[:-30]) == [], "half written"
            looked(whole)
            deadline = time.monotonic() + 60
            while not runs() and time.monotonic() < deadline:
                time.sleep(0.2)
            (started,) = runs()
            assert started.parameters == {"request": {"study_name": "small", "path": str(file)}}
            client.set_flow_run_state(started.id, Completed(), force=True)
            looked(whole)
            time.sleep(5)
            assert [run.id for run in runs()] == [started.id], "asked for a moment ago"
    finally:
        server.terminate()
        server.wait()


def _deploy() -> None:
    from deployments.apply import apply_pools

    apply_pools(local=True)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "refresh", "--name", "watch"]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
