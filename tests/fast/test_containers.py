"""Images and compose.yaml without a Docker engine: start commands and health checks as plain processes, and the passwords they want."""

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusterlora.errors import BadSettings
from clusterlora.values import Dataset, Dialogue, Persona, Turn

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKER = CHECKOUT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PREFECT_ENDPOINTS = tuple(f"{what}/filter" for what in ("flow_runs", "deployments", "work_pools", "artifacts", "task_runs", "automations"))
MLFLOW_ENDPOINTS = (
    "api/2.0/mlflow/experiments/search?max_results=1",
    "api/2.0/mlflow/registered-models/search",
    "api/2.0/mlflow/model-versions/search",
    "api/2.0/mlflow-artifacts/artifacts",
    "",
)


def test_ports_are_published_on_loopback_unless_told_otherwise():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("${CLUSTERLORA_BIND:-127.0.0.1}:") for port in published)


def test_every_secret_is_a_file_and_no_password_is_written_down():
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH_STRING|SECRET", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert Path(value).name in service["secrets"], f"{name} does not mount {value}"
            assert not re.search(r"://[^:@/]+:(?!@PASSWORD@)[^@/]+@", value), f"{name}: {variable} holds a password"


def test_prefects_api_answers_pages_of_its_own_origin_alone():
    assert SERVICES["prefect"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://${CLUSTERLORA_BIND:-127.0.0.1}:4200"


def test_both_servers_ask_for_a_password():
    assert "PREFECT_SERVER_API_AUTH_STRING_FILE" in SERVICES["prefect"]["environment"]
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]


def test_everything_waits_for_what_it_needs_and_says_when_it_is_well():
    for name, service in SERVICES.items():
        image = service["image"]
        dockerfile = service.get("build", {}).get("dockerfile", "")
        own = "healthcheck" in service
        assert own or "HEALTHCHECK" in (CHECKOUT / dockerfile).read_text(), f"{name} ({image}) has no health check"
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            assert how["condition"] in ("service_healthy", "service_completed_successfully")


def test_workers_serve_pools_that_exist():
    commands = [service["command"] for service in SERVICES.values() if "--pool" in service.get("command", [])]
    pools = {command[command.index("--pool") + 1] for command in commands}
    assert pools == {"cpu", "gpu"}
    assert all((CHECKOUT / "deployments" / "pools" / f"{pool}.json").exists() for pool in pools)


@pytest.mark.parametrize("image", ["worker", "server"])
def test_an_image_is_built_in_stages_from_a_pinned_base_and_is_not_root(image: str):
    lines = (DOCKER / f"{image}.Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", base) for base in bases)
    assert "USER 10001:10001" in lines
    assert any("--require-hashes" in line for line in lines)


def test_what_the_images_copy_is_there_and_not_ignored():
    allowed = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for image in ("worker", "server"):
        for line in (DOCKER / f"{image}.Dockerfile").read_text().splitlines():
            if line.startswith("COPY ") and "--from=" not in line:
                for source in [word for word in line.split()[1:-1] if not word.startswith("--")]:
                    assert (CHECKOUT / source).exists(), source
                    assert source in allowed, f"{source} is kept out by .dockerignore"


def test_the_servers_packages_are_those_of_the_lock():
    def pins(file: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", file.read_text(), re.MULTILINE))

    ours, servers = pins(CHECKOUT / "requirements.lock"), pins(DOCKER / "requirements.lock")
    assert {"prefect", "mlflow", "flask-wtf", "psycopg"} <= servers.keys()
    assert "torch" not in servers
    assert {name: version for name, version in servers.items() if ours.get(name) != version} == {}


def test_compose_itself_accepts_the_file(tmp_path: Path):
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed; apt-get install docker-compose")
    subprocess.run([str(DOCKER / "secrets.sh"), str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    text = (DOCKER / "compose.yaml").read_text().replace("./secrets/", f"{tmp_path}/")
    (tmp_path / "compose.yaml").write_text(text)
    done = subprocess.run([program, "-f", str(tmp_path / "compose.yaml"), "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_secrets_are_made_once(tmp_path: Path):
    def made() -> dict[str, str]:
        subprocess.run([str(DOCKER / "secrets.sh"), str(tmp_path / "s")], check=True, stdout=subprocess.DEVNULL)
        return {file.name: file.read_text() for file in (tmp_path / "s").iterdir()}

    first = made()
    assert first.keys() == COMPOSE["secrets"].keys()
    assert len(set(first.values())) == len(first)
    assert made() == first
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_a_missing_secret_is_named(tmp_path: Path):
    env = {"PATH": os.environ["PATH"], "PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "nowhere")}
    done = subprocess.run([str(DOCKER / "entrypoint.sh"), "true"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: secret file {tmp_path}/nowhere cannot be read; create it: docker/secrets.sh\n"


@pytest.mark.parametrize(
    "command", ["prefect server start --host 0.0.0.0", "mlflow server --host=0.0.0.0", "mlflow server --host 0.0.0.0 --port 5000"]
)
def test_an_image_refuses_to_open_a_server_to_others_without_a_password(command: str):
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(DOCKER / "entrypoint.sh"), *command.split()], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this server would listen on 0.0.0.0 and ask for no password")


@dataclass
class Site:
    """The composed services as processes: where they listen, and what they were told."""

    folder: Path
    ports: dict[str, int]
    database: str

    def environment(self, service: str) -> dict[str, str]:
        own = {name: self.here(value) for name, value in SERVICES[service].get("environment", {}).items()}
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        home = str(self.folder / service)
        basics = {"PATH": path, "HOME": home, "PREFECT_HOME": f"{home}/prefect", "CLUSTERLORA_HOME": f"{home}/studies"}
        shared = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        quiet = dict(re.findall(r"(\w+)=(false|true)\b", (DOCKER / "server.Dockerfile").read_text()))
        return shared | basics | quiet | own

    def here(self, text: str) -> str:
        """Return a value of compose.yaml as it is without containers."""
        text = text.replace("/run/secrets", str(self.folder / "secrets")).replace("/var/lib/clusterlora", str(self.folder / "data"))
        text = text.replace("/etc/clusterlora", str(self.folder))
        text = text.replace("clusterlora:@PASSWORD@@postgres/", f"tester:@PASSWORD@@{self.database}/")
        text = text.replace("0.0.0.0", "127.0.0.1").replace("${CLUSTERLORA_BIND:-127.0.0.1}", "127.0.0.1")
        for name, port in (("prefect", "4200"), ("mlflow", "5000")):
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{port}")
            text = re.sub(rf"\b{port}\b", str(self.ports[name]), text)
        return text

    def start(self, service: str) -> "subprocess.Popen[bytes]":
        (self.folder / service).mkdir(exist_ok=True)
        command = [str(DOCKER / "entrypoint.sh"), *map(self.here, SERVICES[service]["command"])]
        env = self.environment(service) | {"PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["worker"])}
        with (self.folder / f"{service}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=log, stderr=log, start_new_session=True)

    def wait(self, service: str, process: "subprocess.Popen[bytes]", url: str) -> None:
        deadline = time.monotonic() + 240
        while subprocess.run([sys.executable, str(DOCKER / "health.py"), url], check=False).returncode:
            said = (self.folder / f"{service}.log").read_text()[-3000:]
            assert process.poll() is None, f"{service} ended:\n{said}"
            assert time.monotonic() < deadline, f"{service} does not get well:\n{said}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def composed(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start both servers as compose.yaml does, and wait until their health checks are content."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords need flask-wtf; make install")
    import psycopg

    folder = tmp_path_factory.mktemp("composed")
    (folder / "data").mkdir()
    subprocess.run([str(DOCKER / "secrets.sh"), str(folder / "secrets")], check=True, stdout=subprocess.DEVNULL)
    ini = (DOCKER / "mlflow-auth.ini").read_text().replace("/var/lib/clusterlora", str(folder / "data"))
    (folder / "mlflow-auth.ini").write_text(ini)
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("create database clusterlora")
        for statement in (DOCKER / "postgres-init.sql").read_text().split(";"):
            if statement.strip():
                connection.execute(statement.encode())
    ports = {}
    for name in ("prefect", "mlflow", "worker"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[name] = probe.getsockname()[1]
    site = Site(folder, ports, postgres_server.rpartition("@")[2])
    servers = {name: site.start(name) for name in ("prefect", "mlflow")}
    try:
        site.wait("prefect", servers["prefect"], f"http://127.0.0.1:{ports['prefect']}/api/health")
        site.wait("mlflow", servers["mlflow"], f"http://127.0.0.1:{ports['mlflow']}/health")
        yield site
    finally:
        for process in servers.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status_of(url: str, user: str | None, password: str, *, body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json"}
    if user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as answer:
        return answer.code


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_prefect_lets_in_only_who_knows_the_password(composed: Site):
    user, _, password = (composed.folder / "secrets" / "prefect_auth").read_text().partition(":")
    for endpoint in PREFECT_ENDPOINTS:
        url = f"http://127.0.0.1:{composed.ports['prefect']}/api/{endpoint}"
        for who in ((None, ""), (user, "wrong"), ("nobody", password), (user, "")):
            assert status_of(url, *who, body=b"{}") == 401, (endpoint, who)
        assert status_of(url, user, password, body=b"{}") == 200, endpoint


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_mlflow_lets_in_only_who_knows_the_password(composed: Site):
    password = (composed.folder / "secrets" / "mlflow_password").read_text()
    for endpoint in MLFLOW_ENDPOINTS:
        url = f"http://127.0.0.1:{composed.ports['mlflow']}/{endpoint}"
        for who in ((None, ""), ("clusterlora", "wrong"), ("nobody", password), ("clusterlora", "")):
            assert status_of(url, *who) == 401, (endpoint, who)
        assert status_of(url, "clusterlora", password) == 200, endpoint


@pytest.mark.whole
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_a_wrong_mlflow_password_is_one_line_with_the_fix_and_never_tried_again(composed: Site, monkeypatch: pytest.MonkeyPatch):
    from clusterlora.stores.mlflow_tracker import MlflowTracker
    from tasks.retrying import is_transient

    data = Dataset((Persona("p", None, (Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train"),)),))
    tracker = MlflowTracker(f"http://127.0.0.1:{composed.ports['mlflow']}", patience_seconds=5)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "clusterlora")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-it-at-all")
    with pytest.raises(BadSettings, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        tracker.start_study("locked", params={}, tags={}, dataset=data)
    assert "not-it-at-all" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not is_transient(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (composed.folder / "secrets" / "mlflow_password").read_text())
    assert tracker.start_study("locked", params={}, tags={}, dataset=data)


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_everything_is_deployed_and_a_worker_gets_well(composed: Site):
    deploy = composed.start("deploy")
    assert deploy.wait(timeout=300) == 0, (composed.folder / "deploy.log").read_text()[-3000:]
    worker = composed.start("worker-cpu")
    try:
        composed.wait("worker-cpu", worker, f"http://127.0.0.1:{composed.ports['worker']}/health")
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    # No log of any of them holds a secret.
    for secret in (composed.folder / "secrets").iterdir():
        for log in composed.folder.glob("*.log"):
            assert secret.read_text().rpartition(":")[2] not in log.read_text(), f"{log.name} shows {secret.name}"
