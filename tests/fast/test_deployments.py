"""prefect.yaml, work pools and automations, as a server sees them."""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client

from deployments.run import ENVIRONMENT, FLOWS, HEARTBEAT_SECONDS
from tests.fixtures.prefect import talking_to
from tests.fixtures.servers import start_server
from tests.fixtures.session import locked

CHECKOUT = Path(__file__).resolve().parents[2]
POOLS = CHECKOUT / "deployments" / "pools"
POOL_NAMES = sorted(file.stem for file in POOLS.glob("*.json"))


def template(pool: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{pool}.json").read_text(encoding="utf-8"))


def listed() -> list[dict[str, Any]]:
    return yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", listed(), ids=lambda d: d["name"])
def test_every_deployment_names_a_flow_that_exists_and_runs_that_very_flow(deployment: dict[str, Any]):
    module, _, name = deployment["entrypoint"].rpartition(".")
    pool = deployment["work_pool"]["name"]
    flow = getattr(importlib.import_module(module), name).name
    assert deployment["name"] in (flow, f"{flow}-{pool}")
    assert deployment["work_pool"].keys() == {"name"}
    assert deployment["entrypoint"] in FLOWS
    assert deployment["description"]
    assert "clusterlora" in deployment["tags"]
    assert (POOLS / f"{pool}.json").exists()


def test_flows_that_wait_for_gpu_runs_are_in_another_pool():
    pools = {d["name"]: d["work_pool"]["name"] for d in listed() if d["work_pool"]["name"] in ("cpu", "gpu")}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {"train", "evaluate", "assign", "merge", "privacy", "forget"}
    assert {"study", "gate", "compare"} <= {name for name, pool in pools.items() if pool == "cpu"}


def test_every_gpu_pool_can_be_named_by_a_study():
    names = {d["name"] for d in listed()}
    for pool in POOL_NAMES:
        if pool.startswith("gpu-"):
            assert {f"train-{pool}", f"evaluate-{pool}"} <= names


def test_runs_send_heartbeats_as_often_as_the_automations_expect():
    from deployments.automations import SILENCE

    assert ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)
    assert ENVIRONMENT["PREFECT_LOGGING_EXTRA_LOGGERS"] == "clusterlora"
    assert SILENCE.total_seconds() >= 3 * HEARTBEAT_SECONDS


def known_types() -> dict[str, dict[str, Any]]:
    """Return Prefect's own template of every type of pool."""
    import prefect

    folder = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    metadata = json.loads((folder / "aggregate-worker-metadata.json").read_text(encoding="utf-8"))
    return {kind: worker["default_base_job_configuration"] for group in metadata.values() for kind, worker in group.items()}


@pytest.mark.parametrize("pool", POOL_NAMES)
def test_a_pool_template_has_only_fields_that_its_worker_type_knows(pool: str):
    from deployments.apply import pool_type

    worker_template, ours = known_types()[pool_type(pool)], template(pool)
    # Docker's worker takes these for the container, and its template leaves them out.
    extra = {"container_create_kwargs"} if pool_type(pool) == "docker" else set()
    assert ours["job_configuration"].keys() - worker_template["job_configuration"].keys() <= extra


EVIL: dict[str, Any] = {
    "command": "touch /tmp/chosen",
    "env": {"LD_PRELOAD": "/tmp/evil.so", "PYTHONPATH": "/tmp"},
    "env.PYTHONSTARTUP": "/tmp/evil.py",
    "working_dir": "/tmp",
    "stream_output": False,
    "name": "chosen",
    "image": "evil:latest",
    "volumes": ["/:/host"],
    "network_mode": "host",
    "privileged": True,
    "gpu": "all",
    "container_create_kwargs": {"privileged": True},
    "job_manifest": {"spec": {"template": {"spec": {"hostPID": True}}}},
    "args": ["sh", "-c", "touch /tmp/chosen"],
    "namespace": "kube-system",
    "service_account_name": "admin",
    "secret": "of-somebody-else",
    "prefect.blocks.secret.clusterlora-run-environment": {"LD_PRELOAD": "/tmp/evil.so"},
    "prefect": {"blocks": {"secret": {"clusterlora-run-environment": {"LD_PRELOAD": "/tmp/evil.so"}}}},
}
"""Job variables of every kind, and some that only look like them."""


class Blocks:
    """As much of a client as it takes to fill in a template: it has the block that holds the environment of containers."""

    async def read_block_document_by_name(self, name: str, block_type_slug: str) -> Any:
        assert (block_type_slug, name) == ("secret", "clusterlora-run-environment")
        return SimpleNamespace(data={"value": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}})


@pytest.mark.whole
@pytest.mark.parametrize("name", ["", *EVIL])
@pytest.mark.parametrize("pool", POOL_NAMES)
def test_job_variables_of_a_run_do_not_change_how_it_is_started(pool: str, name: str, monkeypatch: pytest.MonkeyPatch):
    """As the worker fills in the template. Prefect merges `env` into a template that writes one out, whether it is a variable or not."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.workers.base import BaseJobConfiguration
    from prefect.workers.process import ProcessJobConfiguration
    from pydantic import ConfigDict

    class AnyJob(BaseJobConfiguration):
        model_config = ConfigDict(extra="allow")

    kind = ProcessJobConfiguration if pool in ("cpu", "gpu") else AnyJob
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)

    def job(variables: dict[str, Any]) -> Any:
        filled = asyncio.run(kind.from_template_and_values(template(pool), variables, client=Blocks()))  # pyrefly: ignore[bad-argument-type]
        filled.prepare_for_flow_run(FlowRun(id=UUID(int=1), flow_id=UUID(int=2), name="run", job_variables=variables))
        return filled.model_dump(mode="json")

    expected = job({})
    assert expected["command"] == "python -m deployments.run"
    assert job({name: EVIL[name]} if name else EVIL) == expected


@pytest.mark.parametrize("pool", POOL_NAMES)
def test_a_pool_has_no_variables_and_accepts_none(pool: str):
    variables = template(pool)["variables"]
    assert variables["additionalProperties"] is False
    # Prefect wants placeholders of blocks listed, too; nothing is valid as their value.
    assert all(name.startswith("prefect.blocks.") and listed["not"] == {} for name, listed in variables["properties"].items())


def test_a_docker_run_gets_one_gpu_a_volume_and_its_secrets_from_a_block():
    ours = template("gpu-docker")["job_configuration"]
    assert ours["container_create_kwargs"]["device_requests"] == [{"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]
    assert ours["volumes"] == ["clusterlora-data:/var/lib/clusterlora"]
    assert ours["env"] == "{{ prefect.blocks.secret.clusterlora-run-environment }}"


JOB: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"labels": dict, "namespace": str, "generateName": str},
    "spec": {
        "backoffLimit": int,
        "parallelism": int,
        "completions": int,
        "ttlSecondsAfterFinished": int,
        "template": {
            "spec": {
                "restartPolicy": str,
                "automountServiceAccountToken": bool,
                "securityContext": {
                    "runAsNonRoot": bool,
                    "runAsUser": int,
                    "runAsGroup": int,
                    "fsGroup": int,
                    "seccompProfile": {"type": str},
                },
                "containers": [
                    {
                        "name": str,
                        "env": list,
                        "envFrom": [{"secretRef": {"name": str}}],
                        "image": str,
                        "imagePullPolicy": str,
                        "args": list,
                        "resources": {
                            "limits": {"memory": str, "nvidia.com/gpu": int},
                            "requests": {"cpu": str, "memory": str},
                        },
                        "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
                        "volumeMounts": [{"name": str, "mountPath": str}],
                    }
                ],
                "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
            }
        },
    },
}
"""What batch/v1 allows where we write something."""


def test_a_kubernetes_job_has_its_fields_where_the_api_wants_them():
    def check(value: Any, schema: Any, where: str) -> None:
        if isinstance(schema, dict):
            assert value.keys() <= schema.keys(), f"{where}: {value.keys() - schema.keys()}"
            for name in value:
                check(value[name], schema[name], f"{where}.{name}")
        elif isinstance(schema, list):
            for item in value:
                check(item, schema[0], f"{where}[]")
        else:
            assert isinstance(value, schema), f"{where}: {value!r}"

    manifest = template("gpu-kubernetes")["job_configuration"]["job_manifest"]
    check(manifest, JOB, "job")
    pod = manifest["spec"]["template"]["spec"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["containers"][0]["args"] == ["python", "-m", "deployments.run"]


def test_the_nightly_study_is_off():
    (study,) = [d for d in listed() if d["name"] == "study"]
    assert [(s["slug"], s["active"]) for s in study["schedules"]] == [("nightly", False)]


@pytest.mark.whole
def test_everything_deploys_on_a_real_server_with_forms_that_explain_themselves(site: dict[str, str]):
    with get_client(sync_client=True) as client:
        deployed = {d.name: d for d in client.read_deployments()}
        types = {pool.name: pool.type for pool in client.read_work_pools()}
        schedules = client.read_deployment_by_name("study/study").schedules
    assert {d["name"] for d in listed()} <= deployed.keys()
    # A test that needs a pool of its own has made one.
    assert {"cpu": "process", "gpu": "process", "gpu-docker": "docker", "gpu-kubernetes": "kubernetes"}.items() <= types.items()
    assert [(s.slug, s.active) for s in schedules] == [("nightly", False)]

    schemas = {name: deployment.parameter_openapi_schema or {} for name, deployment in deployed.items()}
    form = schemas["study"]["definitions"]
    assert set(form["GateSettings"]["properties"]["on_failure"]["enum"]) == {"stop", "ask", "continue"}
    assert form["Recipe"]["properties"]["rank"]["maximum"] == 256
    assert form["MergeSettings"] == schemas["merge"]["definitions"]["MergeSettings"]
    for name, model in form.items():
        for field, described in model.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field} is not explained"
    for name in ("merge", "train", "evaluate", "gate", "compare"):
        for field, described in schemas[name]["properties"].items():
            assert described.get("description"), f"{name}: {field} is not explained"


@pytest.mark.whole
def test_importing_every_flow_leaves_the_heavy_libraries_alone():
    program = (
        "import sys, flows.study, flows.train, flows.evaluate, flows.assign\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'mlflow', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], cwd=CHECKOUT, text=True).strip() == "[]"


@pytest.fixture
def rules_alone(prefect_server: str) -> Iterator[None]:
    """No other test changes the server's rules meanwhile."""
    with locked("automations"):
        yield


@pytest.mark.whole
@pytest.mark.usefixtures("rules_alone")
def test_automations_are_created_once_and_corrected_when_changed():
    from deployments.automations import apply_automations

    def rules() -> dict[str, Any]:
        with get_client(sync_client=True) as client:
            # Beside that of the deployment `refresh`, which comes and goes with it.
            return {rule.name: rule.id for rule in client.read_automations() if rule.name.startswith("clusterlora: ")}

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


@pytest.mark.whole
@pytest.mark.usefixtures("rules_alone")
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_notifications_use_an_existing_block():
    from prefect.blocks.notifications import SlackWebhook
    from pydantic import SecretStr

    from clusterlora.errors import UnknownName
    from deployments.automations import apply_automations

    with pytest.raises(UnknownName, match="no notification block 'slack-webhook/nobody'"):
        apply_automations("slack-webhook/nobody")
    block: Any = SlackWebhook(url=SecretStr("https://hooks.slack.com/services/A/B/C"))
    block.save("team", overwrite=True)
    names = apply_automations("slack-webhook/team")
    with get_client(sync_client=True) as client:
        rules = {rule.name: rule for rule in client.read_automations()}
        assert set(names) <= rules.keys()
        expected = {next(iter(rule.trigger.expect)) for name, rule in rules.items() if "tell when" in name}  # pyrefly: ignore[missing-attribute]
        states = {f"prefect.flow-run.{state}" for state in ("Completed", "GateRefused", "Failed", "Crashed")}
        assert expected == {*states, "clusterlora.champion.moved", "clusterlora.data.left", "clusterlora.drift"}
        for name in names[3:]:
            client.delete_automation(rules[name].id)


@pytest.mark.all
def test_a_study_whose_run_crashed_is_launched_again_with_its_parameters_and_only_once(tmp_path: Path):
    from prefect import flow
    from prefect.states import Completed, Crashed, Running

    from deployments.automations import apply_automations

    @flow(name="study")
    def crashing(config: dict[str, Any]) -> None: ...

    parameters = {"config": {"name": "x", "seeds": 2, "note": 'it\'s "quoted" {{ 7 * 7 }}', "nothing": None}}
    environment = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # The session's server runs no services, and rules are one of them.
    server, address = start_server("prefect", ["start"], health="/api/health", folder=tmp_path, environment=environment)
    try:
        with talking_to(f"{address}/api"), get_client(sync_client=True) as client:
            apply_automations()
            flow_id = client.create_flow(crashing)
            of_study, of_training = (client.create_deployment(flow_id, name=name) for name in ("study", "train"))

            def end(run_id: Any, state: Any) -> None:
                for one in (Running(), state):
                    client.set_flow_run_state(run_id, one, force=True)

            def launched() -> list[Any]:
                return [run for run in client.read_flow_runs() if run.created_by is not None]

            def crash_again() -> list[Any]:
                """Crash a study that a person launched, and return all that the rule has launched once it has launched this one."""
                before = len(launched())
                end(client.create_flow_run_from_deployment(of_study, parameters=parameters).id, Crashed())
                deadline = time.monotonic() + 240
                while len(launched()) == before:
                    assert time.monotonic() < deadline, "nothing was launched again"
                    time.sleep(0.2)
                return launched()

            for deployment, state in ((of_training, Crashed()), (of_study, Completed())):
                end(client.create_flow_run_from_deployment(deployment, parameters=parameters).id, state)
            (again,) = crash_again()
            assert (again.deployment_id, again.parameters) == (of_study, parameters)
            end(again.id, Crashed())
            # Events are dealt with in turn: by the time that one after it has had its consequence, this one has had none.
            assert len(crash_again()) == 2
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
