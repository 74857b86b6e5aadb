"""What prefect.yaml, the pools and the automations promise to a server."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

CHECKOUT = Path(__file__).resolve().parents[2]


def listed() -> list[dict[str, Any]]:
    return yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", listed(), ids=lambda d: d["name"])
def test_every_deployment_names_a_flow_that_exists_and_runs_that_very_flow(deployment: dict[str, Any]):
    module, _, name = deployment["entrypoint"].rpartition(".")
    assert getattr(importlib.import_module(module), name).name == deployment["name"]
    assert deployment["work_pool"]["job_variables"]["command"].split()[-1] == deployment["entrypoint"]
    assert deployment["description"]
    assert (CHECKOUT / "deployments" / "pools" / f"{deployment['work_pool']['name']}.json").exists()


def test_what_waits_for_gpu_runs_does_not_sit_in_their_pool():
    pools = {d["name"]: d["work_pool"]["name"] for d in listed()}
    assert pools == {"study": "cpu", "gate": "cpu", "compare": "cpu", "train": "gpu", "evaluate": "gpu"}


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_runs_in_a_pool_beat_as_often_as_the_automations_expect(pool: str):
    from deployments.automations import HEARTBEAT_SECONDS, SILENCE

    template = json.loads((CHECKOUT / "deployments" / "pools" / f"{pool}.json").read_text(encoding="utf-8"))
    environment = template["variables"]["properties"]["env"]["default"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == "clusterlora"
    assert SILENCE.total_seconds() >= 3 * HEARTBEAT_SECONDS


def test_importing_every_flow_leaves_the_heavy_libraries_alone():
    program = (
        "import sys, flows.study, flows.train, flows.evaluate\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'mlflow', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], cwd=CHECKOUT, text=True).strip() == "[]"


@pytest.mark.server
def test_automations_are_created_once_and_corrected_when_changed(prefect_server: str):
    from deployments.automations import apply_automations

    def rules() -> dict[str, Any]:
        with get_client(sync_client=True) as client:
            return {rule.name: rule.id for rule in client.read_automations()}

    names = apply_automations()
    first = rules()
    assert set(names) == set(first)
    apply_automations()
    assert rules() == first
    with get_client(sync_client=True) as client:
        client.pause_automation(first[names[0]])
    apply_automations()
    assert set(rules()) == set(first)
    assert rules()[names[0]] != first[names[0]]
    assert rules()[names[1]] == first[names[1]]
