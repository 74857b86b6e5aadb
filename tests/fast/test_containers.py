"""Images and compose.yaml, checked without a Docker engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusterlora.cli import cli

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKER = CHECKOUT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


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


def test_prefects_api_answers_pages_of_its_own_origin_alone():
    assert SERVICES["prefect"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://${CLUSTERLORA_BIND:-127.0.0.1}:4200"


def test_both_servers_ask_for_a_password():
    assert "PREFECT_SERVER_API_AUTH_STRING_FILE" in SERVICES["prefect"]["environment"]
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]


def test_every_service_waits_for_its_dependencies_and_has_a_health_check():
    for name, service in SERVICES.items():
        image = service["image"]
        dockerfile = service.get("build", {}).get("dockerfile", "")
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


@pytest.mark.parametrize(
    "command", ["prefect server start --host 0.0.0.0", "mlflow server --host=0.0.0.0", "mlflow server --host 0.0.0.0 --port 5000"]
)
def test_an_image_refuses_to_open_a_server_to_others_without_a_password(command: str):
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(DOCKER / "entrypoint.sh"), *command.split()], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this server would listen on 0.0.0.0 without a password")
