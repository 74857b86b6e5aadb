"""The registered champion answers personas in another process that reaches only the MLflow server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from clusterlora.adapters.held import HeldAdapters
from clusterlora.models.base import base_revision
from clusterlora.settings import PreparedModel
from clusterlora.stores.json_codec import plain
from clusterlora.stores.mlflow_tracker import MlflowTracker
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition
from clusterlora.values import Dataset, Dialogue, Persona, Turn
from deployments.service_specs import free_port

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]

STUDY = f"served-{uuid4().hex[:6]}"
QUESTIONS = [{"persona_id": p, "messages": [{"role": "user", "content": "make it cosy"}]} for p in ("ann", "bob", "somebody new")]

ELSEWHERE = """
import json, sys
import mlflow, pandas
study, questions = sys.argv[1], json.loads(sys.argv[2])
champion = mlflow.pyfunc.load_model(f"models:/{study}@champion")
limited = [row | {"max_new_tokens": 2, "context": {"weather": "rainy"}} for row in questions]
answers = {
    "list": champion.predict(questions),
    "table": champion.predict(pandas.DataFrame(questions)),
    "limited": champion.predict(limited),
    "adapter": mlflow.pyfunc.load_model(f"models:/{study}-cluster-00/1").predict(questions),
}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def registered(mlflow_server: str, tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the MLflow server's URI once study `served` has a champion router and one adapter's own model there."""
    root = tmp_path_factory.mktemp("adapters")
    folders = {key: random_adapter(tiny_base_folder, root / key, seed=seed) for seed, key in enumerate(("aaaa", "bbbb"))}
    tracker = MlflowTracker(mlflow_server)
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train")
    tracker.start_study(STUDY, params={}, tags={}, dataset=Dataset((Persona("ann", None, (dialogue,)),)))
    settings = PreparedModel(base=str(tiny_base_folder))
    routes = {
        "study": STUDY,
        "method": "cluster",
        "model": plain(settings),
        "base_revision": base_revision(settings.base),
        "max_new_tokens": 8,
        "default": KeyedComposition((KeyedAdapter("aaaa"),)),
        "personas": {"ann": KeyedComposition((KeyedAdapter("bbbb"),)), "bob": KeyedComposition()},
        "names": {"aaaa": "unified", "bbbb": "cluster-00"},
    }
    tracker.register_router(STUDY, routes=routes, adapters=HeldAdapters(folders), champion=True)
    alone = routes | {
        "max_new_tokens": 16,
        "default": KeyedComposition((KeyedAdapter("bbbb"),)),
        "personas": {},
        "names": {"bbbb": "cluster-00"},
    }
    tracker.register_router(STUDY, routes=alone, adapters=HeldAdapters({"bbbb": folders["bbbb"]}), champion=False, model="cluster-00")
    return mlflow_server


def random_adapter(base: Path, folder: Path, *, seed: int) -> Path:
    """Write a PEFT folder whose update is large enough to change answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from clusterlora.models.base import load_base

    model = get_peft_model(load_base(str(base)).model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def answers(registered: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return what the registered models say in a fresh process that has no hub, no cache and no way out but loopback."""
    folder = tmp_path_factory.mktemp("elsewhere")
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": registered,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "empty"),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    command = [sys.executable, "-c", ELSEWHERE, STUDY, json.dumps(QUESTIONS)]
    ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_champion_answers_every_persona_in_a_fresh_process_without_a_hub(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert [(a["persona_id"], a["answered_by"]) for a in answers["list"]] == [
        ("ann", "cluster-00"),
        ("bob", "base model"),
        ("somebody new", f"unified (default: persona 'somebody new' is not in study '{STUDY}')"),
    ]
    # The same question to three stacks: three answers, or a route was not taken.
    assert len({a["text"] for a in answers["list"]}) == 3


def test_a_table_of_requests_is_answered_like_a_list(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert answers["table"] == answers["list"]


def test_a_request_may_ask_for_a_shorter_answer(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert all(len(short["text"]) < len(a["text"]) for short, a in zip(answers["limited"], answers["list"], strict=True))


def test_an_adapters_own_model_answers_everybody_as_the_router_answers_its_persona(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert {a["answered_by"] for a in answers["adapter"]} == {"cluster-00"}
    (text,) = {a["text"] for a in answers["adapter"]}
    # The router of this study cuts its answers earlier; a character may be cut in the middle.
    assert text.startswith(answers["list"][0]["text"].rstrip("\ufffd"))


def test_mlflow_serves_the_champion_in_a_process_of_its_own_without_building_an_environment(
    registered: str, answers: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "server.log"
    environment = os.environ | {"MLFLOW_TRACKING_URI": registered, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    # MLflow starts uvicorn by name, as in an activated environment.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{STUDY}@champion", "--env-manager", "local"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not is_up(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        body = json.dumps({"dataframe_records": QUESTIONS}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            assert json.load(response)["predictions"] == answers["list"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
