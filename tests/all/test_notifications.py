"""A receiver here hears of what happens to studies through Prefect's automations; MLflow says which addresses its registry posts to."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from clusterlora.errors import ServiceDown, UnknownName
from clusterlora.results.lineage import LineageNode
from clusterlora.stores.mlflow_models import Registry
from tests.fixtures.prefect import talking_to
from tests.fixtures.servers import start_mlflow, start_server

pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning"), pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")]


class Receiver(ThreadingHTTPServer):
    """What was posted here, as JSON values."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[dict[str, Any]] = []
        self.address = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver  # pyrefly: ignore[bad-override-mutable-attribute]

    def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def wait_until(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def test_prefect_tells_of_ends_refusals_crashes_champions_and_drift(receiver: Receiver, tmp_path: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Crashed, Failed, Running

    from deployments import notifications
    from tasks.events import DATA_LEFT, DRIFT, tell
    from tasks.lineage import emit

    @flow(name="study")
    def study() -> None: ...

    environment = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # The session's server runs no services, and automations are one of them.
    server, address = start_server("prefect", ["start"], health="/api/health", folder=tmp_path, environment=environment)
    try:
        with talking_to(f"{address}/api"), get_client(sync_client=True) as client:
            names = notifications.notify_url(None, receiver.address)
            assert notifications.notify_url(None, receiver.address) == names
            assert len(names) == len(client.read_automations()) == 7
            flow_id = client.create_flow(study)
            deployments = {name: client.create_deployment(flow_id, name=name) for name in ("study", "train")}

            def end(state: Any, deployment: str = "study") -> None:
                run = client.create_flow_run_from_deployment(deployments[deployment])
                for one in (Running(), state):
                    client.set_flow_run_state(run.id, one, force=True)

            end(Completed(message="per-person wins"))
            end(Completed(name="GateRefused", message="gate refused (above_unified)"))
            end(Failed(message="no such file"))
            end(Crashed(message="killed"))
            end(Completed(message="a training is no news"), deployment="train")
            notifications.tell_champion_moved(None, "demo", "models:/demo/2 answers, instead of models:/demo/1")
            tell(DRIFT, "demo", "3 of 12 people moved to another cluster")
            tell(DATA_LEFT, "demo", "more.jsonl: refresh demo.r1 was asked for 3 times", path="more.jsonl")

            def heard() -> dict[str, str]:
                return {one["subject"].removeprefix("clusterlora: "): one["text"] for one in receiver.heard}

            wait_until(lambda: len(heard()) == 7, heard)
            assert "per-person wins" in heard()["a study finished"]
            assert "above_unified" in heard()["a gate refused"]
            assert "no such file" in heard()["a study failed"]
            assert "killed" in heard()["a run crashed"]
            assert heard()["a champion moved"] == "demo: models:/demo/2 answers, instead of models:/demo/1"
            assert heard()["dialogues drift"] == "demo: 3 of 12 people moved to another cluster"
            assert heard()["a changed file is left"] == "demo: more.jsonl: refresh demo.r1 was asked for 3 times"
            assert not any("no news" in text for text in heard().values())
            # Lineage is events of assets: a server of one's own keeps them, though it has no page for them.
            data = LineageNode(kind="data set", key="clusterlora://dataset/1", name="people.jsonl", made_of=(), facts={"people": "3"})
            split = LineageNode(kind="split", key="clusterlora://split/2", name="split of demo", made_of=(data.key,), facts={})
            emit("demo", [data, split])

            def kept() -> dict[str, Any]:
                body = {"filter": {"event": {"name": ["prefect.asset.materialization.succeeded"]}}}
                events = httpx.post(f"{address}/api/events/filter", json=body, timeout=60).json()["events"]
                return {event["resource"]["prefect.resource.id"]: event for event in events}

            wait_until(lambda: len(kept()) == 2, kept)
            assert kept()[data.key]["payload"] == {"study": "demo", "people": "3"}
            assert data.key in {one["prefect.resource.id"] for one in kept()[split.key]["related"]}
            with pytest.raises(UnknownName, match="no notification block 'slack-webhook/nobody'"):
                notifications.notify_block(None, "slack-webhook/nobody")
            assert set(notifications.notify_nobody(None)) == set(names)
            assert client.read_automations() == []
    finally:
        server.terminate()
        server.wait()


def test_mlflows_webhook_tells_of_a_champion_that_moves_whoever_moves_it(receiver: Receiver, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from clusterlora.stores.champion_history import move_champion

    # Settings of the server: without them it posts to https addresses of public hosts only.
    allowed = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "https,http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    service = start_mlflow(tmp_path, allowed)
    try:
        registry = Registry(service.facts["address"])
        registry.call_when_alias_moves("http://127.0.0.1:1/nobody")
        registry.call_when_alias_moves(receiver.address)
        client = MlflowClient(service.facts["address"])
        client.create_registered_model("demo")
        for _ in range(2):
            client.create_model_version("demo", source="s3://bucket/model")
        move_champion(client, "demo", "1", "the comparison of study demo")
        wait_until(lambda: len(receiver.heard) == 1, lambda: receiver.heard)
        client.set_registered_model_alias("demo", "champion", "2")
        wait_until(lambda: len(receiver.heard) == 2, lambda: receiver.heard)
        assert {(one["entity"], one["action"]) for one in receiver.heard} == {("model_version_alias", "created")}
        assert [one["data"] for one in receiver.heard] == [
            {"name": "demo", "alias": "champion", "version": number} for number in ("1", "2")
        ]
        registry.call_when_alias_moves(None)
        assert client.list_webhooks() == []
    finally:
        for group in service.groups:
            os.killpg(group, signal.SIGKILL)


def test_mlflow_refuses_an_address_that_is_not_public_and_says_so(mlflow_server: str) -> None:
    with pytest.raises(ServiceDown, match="Invalid webhook URL scheme"):
        Registry(mlflow_server).call_when_alias_moves("http://127.0.0.1:1/hook")
