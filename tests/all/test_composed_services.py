"""What compose.yaml starts, without a Docker engine: start commands and health checks as plain processes, and the passwords they want."""

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.values import Dataset, Dialogue, Persona, Turn
from deployments import prefect_rest
from tests.fast.test_containers import CHECKOUT, DOCKER, SERVICES, filled_in
from tests.fixtures.endpoints import MLFLOW_ENDPOINTS, PREFECT_ENDPOINTS, status_of
from tests.fixtures.servers import postgres_address, start_on_free_port
from tests.fixtures.session import Service, session_folder, shared_service, start_process
from tests.fixtures.tls_front import write_certificate


@dataclass
class Site:
    """The composed services as processes: where they listen, and what they were told."""

    folder: Path
    ports: dict[str, int]
    database: str
    fronts: dict[str, int]
    """Where TLS is put in front of them."""

    def address_behind_tls(self, name: str) -> str:
        return f"https://localhost:{self.fronts[name]}"

    def environment(self, service: str) -> dict[str, str]:
        own = {name: self.without_containers(value) for name, value in SERVICES[service].get("environment", {}).items()}
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        home = str(self.folder / service)
        basics = {"PATH": path, "HOME": home, "PREFECT_HOME": f"{home}/prefect", "CLUSTERLORA_HOME": f"{home}/studies"}
        shared = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        of_image = re.findall(r"(\w+)=(false|true|/etc/\S+)", (DOCKER / "server.Dockerfile").read_text())
        return shared | basics | {name: self.without_containers(value) for name, value in of_image} | own

    def without_containers(self, text: str) -> str:
        """Return a value of compose.yaml as it is without containers."""
        text = text.replace("/run/secrets", str(self.folder / "secrets")).replace("/var/lib/clusterlora", str(self.folder / "data"))
        text = text.replace("/etc/clusterlora", str(self.folder)).replace("/usr/local/lib/clusterlora", str(DOCKER))
        text = text.replace("@PASSWORD@@postgres/", f"@PASSWORD@@{self.database}/")
        operators = {
            "CLUSTERLORA_PREFECT_URL": self.address_behind_tls("prefect"),
            "CLUSTERLORA_MLFLOW_URL": self.address_behind_tls("mlflow"),
            "CLUSTERLORA_ALLOWED_HOSTS": f"localhost:{self.fronts['mlflow']}",
        }
        text = filled_in(text.replace("0.0.0.0", "127.0.0.1"), **operators)
        for name, port in (("prefect", "4200"), ("mlflow", "5000")):
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{port}")
            if name in self.ports:
                text = re.sub(rf"\b{port}\b", str(self.ports[name]), text)
        return text

    def start(self, service: str, **more: str) -> "subprocess.Popen[bytes]":
        (self.folder / service).mkdir(exist_ok=True)
        command = [str(DOCKER / "entrypoint.sh"), *map(self.without_containers, SERVICES[service]["command"])]
        env = self.environment(service) | more
        return start_process(command, log=self.log(service), cwd=CHECKOUT, environment=env, inherits=False)

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def start_server(self, name: str, health: str) -> int:
        """Start a server on a free port; return its pid once its health check is content."""

        def start(port: int) -> "subprocess.Popen[bytes]":
            self.ports[name] = port
            (self.folder / f"{name}.port").write_text(str(port))
            return self.start(name)

        return start_on_free_port(start, self.log(name), is_healthy=lambda port: is_healthy(f"http://127.0.0.1:{port}{health}"))[0].pid

    def start_front(self, name: str) -> int:
        """Start what ends TLS in front of a server that is yet to start; return its pid."""

        def start(port: int) -> "subprocess.Popen[bytes]":
            self.fronts[name] = port
            target = str(self.folder / f"{name}.port")
            command = [sys.executable, "-m", "tests.fixtures.tls_front", str(self.folder / "tls.pem"), str(port), target]
            return start_process(command, log=self.log(f"{name}-front"), cwd=CHECKOUT, environment={})

        return start_on_free_port(start, self.log(f"{name}-front"), is_healthy=listens)[0].pid


def listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=10).close()
    except OSError:
        return False
    return True


def is_healthy(url: str) -> bool:
    """Return whether the health check of the images is content; it is only asked once somebody listens."""
    address = urlsplit(url)
    try:
        socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=10).close()
    except OSError:
        return False
    return subprocess.run([sys.executable, str(DOCKER / "health.py"), url], check=False).returncode == 0


def _start(folder: Path) -> Service:
    """Start both servers as compose.yaml does."""
    postgres = postgres_address()
    (folder / "data").mkdir()
    subprocess.run([str(DOCKER / "secrets.sh"), str(folder / "secrets")], check=True, stdout=subprocess.DEVNULL)
    ini = (DOCKER / "mlflow-auth.ini").read_text().replace("/var/lib/clusterlora", str(folder / "data"))
    (folder / "mlflow-auth.ini").write_text(ini)
    address = urlsplit(postgres)
    settings = {"PGHOST": str(address.hostname), "PGPORT": str(address.port), "POSTGRES_USER": str(address.username)}
    environment = {**os.environ, **settings, "SECRETS": str(folder / "secrets")}
    subprocess.run([str(DOCKER / "postgres-roles.sh")], env=environment, check=True)
    site = Site(folder, {}, postgres.rpartition("@")[2], {})
    write_certificate(folder)
    with ThreadPoolExecutor() as both:
        pids = list(both.map(site.start_front, ("prefect", "mlflow")))
        pids += both.map(site.start_server, ("prefect", "mlflow"), ("/api/health", "/health"))
    fronts = {f"{name}-front": str(port) for name, port in site.fronts.items()}
    return Service({name: str(port) for name, port in site.ports.items()} | fronts, pids)


@pytest.fixture
def composed(postgres_server: str) -> Site:
    """Return both servers, once healthy, and the settings that the other services need to reach them."""
    pytest.importorskip("flask_wtf", reason="MLflow's passwords need flask-wtf; make install")
    ports = {name: int(port) for name, port in shared_service("composed", _start).items()}
    fronts = {name: ports.pop(f"{name}-front") for name in ("prefect", "mlflow")}
    return Site(session_folder() / "composed", ports, postgres_server.rpartition("@")[2], fronts)


@pytest.mark.parametrize("role", ["clusterlora", "prefect", "mlflow"])
def test_a_services_database_role_reaches_its_own_database_alone(composed: Site, role: str) -> None:
    import psycopg

    def connect(database: str) -> "psycopg.Connection":
        return psycopg.connect(f"postgresql://{role}@{composed.database}/{database}", autocommit=True)

    with connect(role) as own:
        own.execute("create table if not exists mine (x int)")
        own.execute("drop table mine")
        for forbidden in (
            "create role another",
            "create database another",
            "copy (select 1) to program 'true'",
            "select pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                own.execute(forbidden)
    for other in {"clusterlora", "prefect", "mlflow", "postgres"} - {role}:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect(other)


def test_prefect_accepts_only_the_password(composed: Site) -> None:
    user, _, password = (composed.folder / "secrets" / "prefect_auth").read_text().partition(":")
    for endpoint in PREFECT_ENDPOINTS:
        url = f"http://127.0.0.1:{composed.ports['prefect']}/api/{endpoint}"
        for who in ((None, ""), (user, "wrong"), ("nobody", password), (user, "")):
            assert status_of(url, *who, body=b"{}") == 401, (endpoint, who)
        assert status_of(url, user, password, body=b"{}") == 200, endpoint


def test_prefect_answers_to_its_own_names_alone(composed: Site) -> None:
    login = base64.b64encode((composed.folder / "secrets" / "prefect_auth").read_bytes()).decode()
    url = f"http://127.0.0.1:{composed.ports['prefect']}"
    for host, expected in (
        (f"127.0.0.1:{composed.ports['prefect']}", 200),
        ("localhost:1", 200),
        ("prefect", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ):
        for path in ("/api/health", "/api/admin/version", "/", "/ui-settings"):
            request = urllib.request.Request(url + path, headers={"Host": host, "Authorization": f"Basic {login}"})
            try:
                with urllib.request.urlopen(request) as answer:
                    status = answer.status
            except urllib.error.HTTPError as refused:
                status = refused.code
            assert status == expected, (host, path)


def test_mlflow_accepts_only_the_password(composed: Site) -> None:
    password = (composed.folder / "secrets" / "mlflow_password").read_text()
    for endpoint in MLFLOW_ENDPOINTS:
        url = f"http://127.0.0.1:{composed.ports['mlflow']}/{endpoint}"
        for who in ((None, ""), ("clusterlora", "wrong"), ("nobody", password), ("clusterlora", "")):
            assert status_of(url, *who) == 401, (endpoint, who)
        assert status_of(url, "clusterlora", password) == 200, endpoint


@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_a_wrong_mlflow_password_is_one_line_with_the_fix_and_never_tried_again(composed: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_behind_tls_both_servers_serve_pages_commands_and_studies(composed: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterlora.stores.mlflow_tracker import MlflowTracker

    certificate = str(composed.folder / "tls.pem")
    trusted = ssl.create_default_context(cafile=certificate)
    prefect, mlflow = composed.address_behind_tls("prefect"), composed.address_behind_tls("mlflow")
    with urllib.request.urlopen(f"{prefect}/ui-settings", context=trusted) as answer:
        assert json.load(answer)["api_url"] == f"{prefect}/api", "the pages ask the address that the browser knows"
    deploy = composed.start("deploy", PREFECT_API_URL=f"{prefect}/api", PREFECT_API_SSL_CERT_FILE=certificate)
    assert deploy.wait(timeout=300) == 0, composed.log("deploy").read_text()[-3000:]
    login = (composed.folder / "secrets" / "prefect_auth").read_text()
    known = {"PREFECT_API_URL": f"{prefect}/api", "PREFECT_API_AUTH_STRING": login, "PREFECT_API_SSL_CERT_FILE": certificate}
    assert prefect_rest.request("deployments/name/study/study", environment=known)["name"] == "study"
    with pytest.raises(ServiceDown, match="CERTIFICATE_VERIFY_FAILED"):
        prefect_rest.request("health", environment={**known, "PREFECT_API_SSL_CERT_FILE": ""}, tries=1)

    password = (composed.folder / "secrets" / "mlflow_password").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "clusterlora")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", certificate)
    data = Dataset((Persona("p", None, (Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train"),)),))
    assert MlflowTracker(mlflow, patience_seconds=5).start_study("behind-tls", params={}, tags={}, dataset=data)
    login = base64.b64encode(f"clusterlora:{password}".encode()).decode()
    for host, origin, expected in (
        (f"localhost:{composed.fronts['mlflow']}", mlflow, 200),
        ("evil.example", mlflow, 403),
        (f"localhost:{composed.fronts['mlflow']}", "https://evil.example", 403),
    ):
        headers = {"Host": host, "Origin": origin, "Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{mlflow}/api/2.0/mlflow/experiments/search", b'{"max_results": 1}', headers)
        try:
            with urllib.request.urlopen(request, context=trusted) as answer:
                status = answer.status
        except urllib.error.HTTPError as refused:
            status = refused.code
        assert status == expected, (host, origin)


def test_everything_is_deployed_and_a_worker_becomes_healthy(composed: Site) -> None:
    deploy = composed.start("deploy")
    assert deploy.wait(timeout=300) == 0, composed.log("deploy").read_text()[-3000:]
    worker, _ = start_on_free_port(
        lambda port: composed.start("worker-cpu", PREFECT_WORKER_WEBSERVER_PORT=str(port)),
        composed.log("worker-cpu"),
        is_healthy=lambda port: is_healthy(f"http://127.0.0.1:{port}/health"),
    )
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    # No log of any of them holds a secret.
    for secret in (composed.folder / "secrets").iterdir():
        for log in composed.folder.glob("*.log"):
            assert secret.read_text().rpartition(":")[2] not in log.read_text(), f"{log.name} shows {secret.name}"
