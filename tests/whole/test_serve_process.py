"""The server as a process of its own: what an operator does to it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from clusterlora.adapters.held import HeldAdapters
from clusterlora.ports.stores import Stores
from clusterlora.serving.export import export
from clusterlora.serving.live_model import RegistrySource
from clusterlora.settings import Study
from clusterlora.stores.json_codec import plain, to_json
from clusterlora.stores.mlflow_models import Registry
from clusterlora.stores.mlflow_tracker import MlflowTracker
from tests.fixtures.serving import Asked, asked_in_evaluation, running, table_of, text_of

PROGRAM = "import sys; from clusterlora.cli import main; sys.exit(main())"


@pytest.fixture
def exported(seven: Study, finished_stores: Stores, tmp_path: Path) -> Path:
    table = table_of(seven, finished_stores)
    (tmp_path / "artifacts").mkdir()
    HeldAdapters.of_stores(table.keys, finished_stores).write(tmp_path / "artifacts" / "adapters")
    (tmp_path / "artifacts" / "routes.json").write_text(to_json(table))
    return export(tmp_path / "artifacts", tmp_path / "exported", "peft").folder


@contextmanager
def process(model: Path, home: Path, *options: str) -> Generator[tuple["subprocess.Popen[str]", dict[str, Any], httpx.Client]]:
    """Yield a server, what it said of itself, and a client with its key."""
    command = [sys.executable, "-P", "-c", PROGRAM, "serve", str(model), "--port", "0", "--json", *options]
    environment = {**os.environ, "CLUSTERLORA_HOME": str(home), "CLUSTERLORA_STACK_HOME": str(home / "stack")}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, started.communicate()[1]
        said = json.loads(line)
        key = Path(said["key_file"]).read_text().strip()
        with httpx.Client(base_url=said["address"], headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
            yield started, said, client
    finally:
        started.kill()
        started.communicate()


def test_an_exported_folder_is_served_and_a_stopped_server_finishes_what_runs(
    exported: Path, seven: Study, finished_stores: Stores, tmp_path: Path
) -> None:
    asked = asked_in_evaluation(seven, finished_stores)
    home = tmp_path / "home"
    with process(exported, home) as (started, said, client):
        assert said["model"] == "small"
        answers = [text_of(client.post("/chat/completions", json=dict(one.body))) for one in asked[:4]]
        assert answers == [one.answer for one in asked[:4]]
        long = {"model": "small", "messages": [{"role": "user", "content": "make it cosy"}], "max_tokens": 300, "stream": True}
        with client.stream("POST", "/chat/completions", json=long | {"temperature": 2, "seed": 5}) as response:
            lines = response.iter_lines()
            next(lines)
            started.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        out, err = started.communicate(timeout=120)
        assert (started.returncode, out) == (0, ""), err
        assert err.splitlines()[-1] == "stopped"
    with process(exported, home) as (started, _, client):
        started.send_signal(signal.SIGKILL)
        started.wait()
        with pytest.raises(httpx.HTTPError):
            client.get("/models")
    with process(exported, home, "--slots", "2") as (_, again, client):
        assert again["key_file"] == said["key_file"]
        assert text_of(client.post("/chat/completions", json=dict(asked[0].body))) == asked[0].answer


@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_a_registered_champion_is_served_and_followed_when_its_alias_moves(
    seven: Study, finished_stores: Stores, mlflow_server: str
) -> None:
    name = "served-from-the-registry"
    tracker = MlflowTracker(mlflow_server)
    dataset = finished_stores.studies.dataset(seven.name)
    assert dataset is not None
    tracker.start_study(name, params={}, tags={}, dataset=dataset)
    registry = Registry(mlflow_server)
    for version, method in (("1", "per_persona"), ("2", "cluster")):
        table = replace(table_of(seven, finished_stores, method), study=name)
        tracker.register_router(
            name, routes=plain(table), adapters=HeldAdapters.of_stores(table.keys, finished_stores), champion=version == "1"
        )
    expected = [asked_in_evaluation(seven, finished_stores, method) for method in ("per_persona", "cluster")]
    with running(RegistrySource(registry, f"{name}@champion")) as (server, client):

        def answers(asked: list[Asked]) -> list[str]:
            return [text_of(client.post("/v1/chat/completions", json={**one.body, "model": name})) for one in asked[:5]]

        assert answers(expected[0]) == [one.answer for one in expected[0][:5]]
        assert not server.live.refresh()
        base = server.live.current.router.base
        registry.promote(registry.version(f"{name}@2"), forced_because="a test")
        assert server.live.refresh()
        assert answers(expected[1]) == [one.answer for one in expected[1][:5]]
        assert server.live.current.router.base is base, "both versions share the base's weights"
        assert client.get("/ready").json()["version"] == "2"
