"""A study on two hosts that share no disk: everything between them goes through the study database and MLflow."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.config import as_mapping
from clusterlora.recipe import Recipe
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    RuntimeSettings,
    Study,
    SyntheticSettings,
)
from clusterlora.wiring import from_environment
from tests.all.hosts.host import CHECKOUT, Host
from tests.fixtures.servers import INITDB, START_SECONDS
from tests.fixtures.stages import missing_groups, plan_of

pytestmark = [pytest.mark.timeout(900)]

PYTHON = [sys.executable, "-m"]
PREFECT, MLFLOW, POSTGRES = 4200, 5000, 5432
HUB = "10.213.0.2"
PASSWORD = "only-for-this-test"
TOLERANCE = 1e-4
"""How far a score may differ from the one on a single machine: the same sums, taken in another process."""

STUDY = Study(
    name="apart",
    # Those of single persons are trained in two runs at once, one per host.
    methods=("baseline", "unified", "per_persona", "cluster"),
    data=DataSettings(
        personas=6,
        train=4,
        val=2,
        test=2,
        synthetic=SyntheticSettings(cluster_sizes=(3, 3), dialogues=8),
    ),
    recipe=Recipe(rank=2, epochs=1, target_modules=("q_proj", "v_proj")),
    cluster_init="unified",
    clustering=ClusteringSettings(k=2, sizes=(3, 3), algorithm="responses"),
    gate=GateSettings(ladder=(), worst_persona=None, on_failure="continue"),
    evaluation=EvaluationSettings(max_new_tokens=12, bootstrap_draws=100),
    runtime=RuntimeSettings(shards=2),
)


def wait_until(what: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.5)


def start_postgres(hub: Host) -> str:
    """Return the URL, without a database name, of one PostgreSQL for Prefect and for the studies, with a password."""
    # It refuses to run as root.
    as_postgres = ["runuser", "-u", "postgres", "--"]
    data, password = hub.disk / "postgres", hub.disk / "password"
    hub.run(["sh", "-c", f"echo -n {PASSWORD} > {password} && chmod 644 {password}"])
    initdb = [str(INITDB[-1]), "-D", str(data), "-A", "scram-sha-256", "-U", "clora", "--pwfile", str(password), "--no-sync"]
    hub.run([*as_postgres, *initdb])
    hub.run(["sh", "-c", f"echo 'host all all 10.213.0.0/16 scram-sha-256' >> {data}/pg_hba.conf"])
    options = f"-p {POSTGRES} -c listen_addresses={HUB} -c unix_socket_directories={hub.disk} -c fsync=off"
    hub.run([*as_postgres, str(INITDB[-1].with_name("pg_ctl")), "-D", str(data), "-w", "-l", f"{data}/log", "-o", options, "start"])
    for name in ("prefect", "studies"):
        of_clora = ["-h", HUB, "-p", str(POSTGRES), "-U", "clora"]
        hub.run([str(INITDB[-1].with_name("createdb")), *of_clora, name], env={**os.environ, "PGPASSWORD": PASSWORD})
    return f"postgresql://clora:{PASSWORD}@{HUB}:{POSTGRES}"


def start_servers(hub: Host, postgres: str, addresses: dict[str, str], logs: Path) -> None:
    """Start Prefect and MLflow, which are well some time later."""
    env = hub.environment(**addresses) | {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"{postgres}/prefect".replace("postgresql:", "postgresql+asyncpg:"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    prefect = ["prefect", "server", "start", "--host", HUB, "--port", str(PREFECT)]
    mlflow = ["mlflow", "server", "--host", HUB, "--port", str(MLFLOW), "--workers", "1", "--backend-store-uri"]
    mlflow += [f"sqlite:///{hub.disk}/mlflow.db", "--artifacts-destination", str(hub.disk / "artifacts")]
    for command in (prefect, mlflow):
        hub.spawn([*PYTHON, *command], env=env, log=logs / f"{command[0]}.log")


def test_two_hosts_without_a_common_disk_score_what_one_machine_scores(
    network: Callable[[str], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not INITDB:
        pytest.skip("PostgreSQL is not installed; apt-get install postgresql")
    hub, east, west = network("hub"), network("east"), network("west")
    logs = tmp_path / "logs"
    logs.mkdir()
    postgres = start_postgres(hub)
    addresses = {
        "PREFECT_API_URL": f"http://{HUB}:{PREFECT}/api",
        "MLFLOW_TRACKING_URI": f"http://{HUB}:{MLFLOW}",
        "CLUSTERLORA_DATABASE_URL": f"{postgres}/studies",
    }
    start_servers(hub, postgres, addresses, logs)
    for host in (east, west):
        host.spawn([*PYTHON, "deployments.fork_server"], env=host.environment(**addresses), log=logs / f"{host.name}-fork-server.log")

    # Servers take their time to start: the single machine computes meanwhile.
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "alone"))
    alone = on_one_machine(replace(STUDY, name="alone"))

    urls = [f"http://{HUB}:{PREFECT}/api/health", f"http://{HUB}:{MLFLOW}/health"]
    ask = [sys.executable, "-c", f"import urllib.request as u; [u.urlopen(a, timeout=5) for a in {urls}]"]
    wait_until(lambda: east.succeeds(ask), START_SECONDS, lambda: "\n".join(log.read_text()[-2000:] for log in logs.iterdir()))
    east.run([*PYTHON, "deployments.apply"], env=east.environment(**addresses))
    # East prepares, compares and trains; west trains only. One training at a time each, so two at once need both.
    for host, pool in ((east, "cpu"), (east, "gpu"), (west, "gpu")):
        worker = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{host.name}-{pool}"]
        worker += ["--limit", "1"] if pool == "gpu" else []
        host.spawn([*PYTHON, *worker], env=host.environment(**addresses), log=logs / f"{host.name}-{pool}.log")

    config = tmp_path / "config.json"
    config.write_text(json.dumps(as_mapping(STUDY)))
    printed = west.run(
        [sys.executable, str(CHECKOUT / "tests" / "all" / "hosts" / "launch.py"), str(config)], env=west.environment(**addresses)
    )
    apart = json.loads(next(line for line in printed.splitlines() if line.startswith("ENDED ")).removeprefix("ENDED "))
    assert apart["state"] == "Completed", (apart["message"], apart["attempts"])

    # Both hosts trained, and no folder of one is seen by the other.
    trained = {host.name: set(host.files("studies/apart/logs")) for host in (east, west)}
    assert trained["east"]
    assert trained["west"]
    assert not trained["east"] & trained["west"]
    # The champion was registered on east, which therefore fetched what west had trained.
    listing = "import sys, pathlib, clusterlora.stores.files as f; print(*f.FileAdapterStore(pathlib.Path(sys.argv[1])).local_keys())"
    held = east.run([sys.executable, "-c", listing, str(east.disk / "studies" / ".adapters")], env=east.environment(**addresses))
    assert set(apart["adapters"].values()) <= set(held.split())
    assert not east.files("studies/.adapters/.incoming")

    assert len(apart["answers"]) == len(alone)
    for stack, persona, item, split, text, scores in apart["answers"]:
        expected_text, expected = alone[stack, persona, item, split]
        assert text == expected_text
        assert dict(map(tuple, scores)) == pytest.approx(expected, abs=TOLERANCE)


def on_one_machine(study: Study) -> dict[tuple[str, str, str, str], tuple[str, dict[str, float]]]:
    """Return (text, scores) of every answer of the study run in this process, as `clusterlora train`, `evaluate` and `compare` do."""
    from clusterlora.ports.run_log import SilentLog
    from clusterlora.requests import EvaluationRequest, TrainRequest
    from clusterlora.stages.cluster import cluster_study
    from clusterlora.stages.compare import compare_study
    from clusterlora.stages.evaluate import evaluate
    from clusterlora.stages.prepare import prepare_study
    from clusterlora.stages.train import train_group

    stores, log = from_environment(), SilentLog()
    prepare_study(study, stores, log)
    cluster_study(study.name, stores, log)
    evaluate(EvaluationRequest(study_name=study.name, part="power"), stores, log)
    for group in missing_groups(study, stores, tuple(plan_of(study, stores).specs)):
        train_group(TrainRequest(study_name=study.name, group=group, micro_batch=study.recipe.batch_size, attempt=1), stores, log)
    evaluate(EvaluationRequest(study_name=study.name, part="gate", rung="own"), stores, log)
    for shard in (1, 2):
        evaluate(EvaluationRequest(study_name=study.name, shard=shard, shards=2), stores, log)
    compare_study(study.name, stores, log)
    return {(a.composition_key, a.persona_id, a.item_id, a.split): (a.text, dict(a.scores)) for a in stores.studies.answers(study.name)}
