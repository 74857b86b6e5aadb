"""Images and compose.yaml, checked without a Docker engine."""

import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from clusterlora.cli import cli

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKER = CHECKOUT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = {service["image"]: service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
PINNED = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z-]+@sha256:[0-9a-f]{64}")


def test_ports_are_published_on_loopback_by_default():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("${CLUSTERLORA_BIND:-127.0.0.1}:") for port in published)


def test_every_secret_is_a_file_and_no_password_is_written_down():
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH_STRING|SECRET", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert Path(value).name in service["secrets"], f"{name} does not mount {value}"
            assert not re.search(r"://[^:@/]+:(?!@PASSWORD@)[^@/]+@", value), f"{name}: {variable} holds a password"


def filled_in(value: str, **settings: str) -> str:
    """Return a value of compose.yaml with these settings, and the defaults of all others."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: settings.get(match[1], match[2]), value)


@pytest.mark.parametrize(
    ("settings", "page", "host"),
    [
        ({}, "http://127.0.0.1:5000", "127.0.0.1:5000"),
        ({"CLUSTERLORA_BIND": "10.0.0.1"}, "http://10.0.0.1:5000", "10.0.0.1:5000"),
        (
            {"CLUSTERLORA_MLFLOW_URL": "https://m.example.org", "CLUSTERLORA_ALLOWED_HOSTS": "m.example.org"},
            "https://m.example.org",
            "m.example.org",
        ),
    ],
)
def test_mlflow_answers_its_own_pages_wherever_they_are_and_no_others(settings: dict[str, str], page: str, host: str):
    options = dict(filled_in(word, **settings).split("=", 1) for word in SERVICES["mlflow"]["command"] if "=" in word)
    hosts, origins = options["--allowed-hosts"].split(","), options["--cors-allowed-origins"].split(",")
    assert {host, "mlflow:5000"} <= set(hosts)
    assert page in origins
    assert not [one for one in (*hosts, *origins) if "*" in one]


@pytest.mark.parametrize(
    ("settings", "page", "api"),
    [
        ({}, "http://127.0.0.1:4200", "/api"),
        ({"CLUSTERLORA_BIND": "10.0.0.1"}, "http://10.0.0.1:4200", "/api"),
        ({"CLUSTERLORA_PREFECT_URL": "https://p.example.org"}, "https://p.example.org", "https://p.example.org/api"),
    ],
)
def test_prefects_pages_find_their_api_wherever_they_are_and_no_others_do(settings: dict[str, str], page: str, api: str):
    environment = {name: filled_in(value, **settings) for name, value in SERVICES["prefect"]["environment"].items()}
    hosts = [urlsplit(name if "//" in name else f"//{name}").hostname for name in environment["CLUSTERLORA_ALLOWED_HOSTS"].split(",")]
    assert {urlsplit(page).hostname, "prefect"} <= set(hosts)
    assert environment["PREFECT_UI_API_URL"] == api
    origins = environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert page in origins
    assert not [origin for origin in origins if "*" in origin or "evil" in origin]


def test_prefects_names_are_those_that_a_request_states():
    allowed_hosts = runpy.run_path(str(DOCKER / "prefect_server.py"))["allowed_hosts"]
    names = "prefect, localhost:4200,https://p.example.org,[::1],[2001:db8::5]:4200,,10.0.0.1"
    assert allowed_hosts(names) == ["prefect", "localhost", "p.example.org", "[::1]", "[2001:db8::5]", "10.0.0.1"]
    for bad in ("*", "*.example.org", "http://[bad", "https://"):
        with pytest.raises(SystemExit, match=f"CLUSTERLORA_ALLOWED_HOSTS names {re.escape(repr(bad))}, which is no host name"):
            allowed_hosts(f"prefect,{bad}")


def test_no_service_has_capabilities_new_privileges_or_unlimited_resources():
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] > 0, name
        assert re.fullmatch(r"\d+g", filled_in(service["mem_limit"])), name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name


def test_a_run_in_a_container_of_its_own_is_limited_as_a_worker_is():
    run = json.loads((CHECKOUT / "deployments" / "pools" / "gpu-docker.json").read_text(encoding="utf-8"))["job_configuration"]
    worker, created = SERVICES["worker-gpu"], run["container_create_kwargs"]
    assert created["cap_drop"] == worker["cap_drop"]
    assert created["pids_limit"] == worker["pids_limit"]
    assert created["log_config"] == {"type": worker["logging"]["driver"], "config": worker["logging"]["options"]}
    assert run["mem_limit"].endswith("g")


def test_each_service_has_a_database_role_of_its_own_and_none_the_superusers_password():
    users: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        environment = service["environment"]
        secret = environment.get("DATABASE_PASSWORD_FILE", "").removeprefix("/run/secrets/")
        for value in environment.values():
            if match := re.match(r"postgresql\S*://(\w+):@PASSWORD@@postgres/(\w+)$", value):
                assert match[1] == match[2]
                assert secret == f"{match[1]}_database_password"
                users.setdefault(match[1], set()).add(name)
        assert name == "postgres" or "database_password" not in service["secrets"], name
    assert users.keys() == {"clusterlora", "prefect", "mlflow"}
    assert (users["prefect"], users["mlflow"]) == ({"prefect"}, {"mlflow"})


def test_both_servers_ask_for_a_password():
    assert "PREFECT_SERVER_API_AUTH_STRING_FILE" in SERVICES["prefect"]["environment"]
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]


def test_every_service_waits_for_its_dependencies_and_has_a_health_check():
    for name, service in SERVICES.items():
        image = service["image"]
        dockerfile = DOCKERFILES.get(image, "")
        own = "healthcheck" in service
        assert own or "HEALTHCHECK" in (CHECKOUT / dockerfile).read_text(), f"{name} ({image}) has no health check"
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            assert how["condition"] in ("service_healthy", "service_completed_successfully")


def test_the_served_champion_asks_for_a_key_and_finishes_what_runs():
    kubernetes, _ = yaml.safe_load_all((DOCKER / "kubernetes-serve.yaml").read_text(encoding="utf-8"))
    pod = kubernetes["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for command in (SERVICES["serve"]["command"], container["args"]):
        words = [word for part in command for word in part.split("=")]
        model, options = words[2], words[3:]
        with cli.make_context(
            "clusterlora", ["serve", "demo" if model.startswith("$") else model, *options], resilient_parsing=True
        ) as context:
            name, command_of_serve, arguments = cli.resolve_command(context, ["serve", model, *options])
            assert command_of_serve is not None
            given = command_of_serve.make_context(name, arguments).params
        assert given["host"] == "0.0.0.0"
        assert given["key_file"] is not None
        assert not given["no_key"]
        assert given["stop_after"] < min(
            pod["terminationGracePeriodSeconds"], int(SERVICES["serve"]["stop_grace_period"].removesuffix("s"))
        )
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["image"] == SERVICES["serve"]["image"]
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


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
    assert all(PINNED.fullmatch(base) for base in bases)
    assert "USER 10001:10001" in lines
    text = "\n".join(lines).replace("\\\n", " ")
    installs = re.findall(r"pip install [^&\n]*", text)
    assert installs
    assert all("--require-hashes" in command or "--build-constraints /build/build.lock" in command for command in installs)


def test_every_image_from_elsewhere_is_pinned_by_digest():
    assert all(PINNED.fullmatch(service["image"]) for service in SERVICES.values() if service["image"] not in DOCKERFILES)
    for file in DOCKERFILES.values():
        assert "syntax=" not in (CHECKOUT / file).read_text(), "a syntax line names an image that is pulled before the build"


def test_every_image_is_built_by_one_service():
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert sorted(built) == ["clusterlora-server:0.1.0", "clusterlora-worker:0.1.0"], "built twice at once, an image can already exist"
    assert {service["image"] for service in SERVICES.values()} >= DOCKERFILES.keys()


def test_a_command_in_a_container_has_the_secrets():
    # `exec` starts its command beside the entrypoint, which turns the secret files into what programs read.
    texts = [
        file.read_text(encoding="utf-8") for file in (CHECKOUT / "README.md", DOCKER / "compose.yaml", *(CHECKOUT / "docs").glob("*.md"))
    ]
    commands = [command for text in texts for command in re.findall(r"docker compose .* exec (?:-\S+ )*\S+ (\S+)", text)]
    assert len(commands) >= 2
    assert set(commands) == {"entrypoint.sh"}


def test_a_checkout_under_a_strict_umask_is_readable_in_the_images():
    for file in DOCKERFILES.values():
        final = (CHECKOUT / file).read_text().rpartition("\nFROM ")[2]
        copied = [line for line in final.splitlines() if line.startswith("COPY ")]
        assert all("--from=build" in line or "--chmod=" in line for line in copied)
    assert "RUN chmod -R a+rX ." in (DOCKER / "worker.Dockerfile").read_text()


def test_what_builds_the_images_has_the_hashes_of_its_lock():
    lock = (DOCKER / "build.lock").read_text()
    assert re.search(r"^uv==" + re.search(r"UV_VERSION := (\S+)", (CHECKOUT / "Makefile").read_text())[1], lock, re.MULTILINE)  # pyrefly: ignore[unsupported-operation]
    assert len(re.findall(r"^[a-z-]+==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)) == len(
        re.findall(r"^[a-z-]+==", lock, re.MULTILINE)
    )


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


def test_secrets_are_generated_once(tmp_path: Path):
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


def entrypoint(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the images' entrypoint with programs that do nothing in place of the real ones."""
    env = {"PATH": f"{environment.pop('programs', '')}:/usr/bin:/bin", **environment}
    return subprocess.run([str(DOCKER / "entrypoint.sh"), *command], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def programs(tmp_path: Path) -> str:
    for name in ("prefect", "mlflow"):
        (tmp_path / name).write_text("#!/bin/sh\necho started\n")
        (tmp_path / name).chmod(0o755)
    return str(tmp_path)


WITHOUT_PASSWORD = [
    "prefect server start --host 0.0.0.0",
    "prefect server start --host ::",
    "prefect server start --host=10.0.0.1",
    "prefect server start",
    "uvicorn --app-dir=/usr/local/lib/clusterlora --factory prefect_server:app --host=0.0.0.0",
    "prefect --profile other server start",
    "python -m prefect server start",
    "uvicorn --factory prefect.server.api.server:create_app --host ::",
    "mlflow server --host=0.0.0.0",
    "mlflow server --host :: --port 5000",
    "mlflow ui -h 0.0.0.0",
    "mlflow ui",
    "mlflow --env-file x server",
    "mlflow models serve -m x --host 0.0.0.0",
    "python -m mlflow ui",
    "python -m mlflow.server.fastapi_app",
    "gunicorn -b 0.0.0.0 mlflow.server:app",
    "mlflow server --app-name=basic-auth --host ::",
    "mlflow server --app-name basic-auth",
]


@pytest.mark.parametrize("shell", [False, True])
@pytest.mark.parametrize("command", WITHOUT_PASSWORD)
def test_an_image_starts_no_server_without_a_password_however_it_is_asked(command: str, programs: str, *, shell: bool):
    words = ["sh", "-c", command] if shell else command.split()
    addresses = {"MLFLOW_HOST": "0.0.0.0", "PREFECT_SERVER_API_HOST": "0.0.0.0"}
    for password in (
        {},
        {"PREFECT_SERVER_API_AUTH_STRING": "", "MLFLOW_AUTH_ADMIN_PASSWORD": ""},
        {"PREFECT_SERVER_API_AUTH_STRING": "a:b"},
    ):
        done = entrypoint(*words, programs=programs, **addresses, **password)
        assert done.returncode == 1, done.stdout
        assert re.match(r"error: (Prefect|MLflow)'s server would listen without a password; ", done.stderr)


@pytest.mark.parametrize(
    "command", ["prefect server start --host ::", "mlflow server --app-name=basic-auth --host ::", "prefect worker start"]
)
def test_with_a_password_a_server_is_started(command: str, programs: str, tmp_path: Path):
    (tmp_path / "prefect_auth").write_text("clusterlora:long-enough")
    (tmp_path / "mlflow_password").write_text("long-enough")
    files = {
        "PREFECT_SERVER_API_AUTH_STRING_FILE": str(tmp_path / "prefect_auth"),
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(tmp_path / "mlflow_password"),
    }
    assert entrypoint(*command.split(), programs=programs, **({} if "worker" in command else files)).stdout == "started\n"
