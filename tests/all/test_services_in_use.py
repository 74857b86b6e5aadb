"""The local services in use: by several shells, a browser, another user, and a foreign page.

One story on one stack, because starting servers and studies is what costs time; the tests look at what came of it.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Tab, with_text
from deployments import local_services, prefect_rest, processes
from deployments.local_services import LocalServices
from tests.fast.test_deployments import EVIL
from tests.fixtures.endpoints import MLFLOW_ENDPOINTS, PREFECT_ENDPOINTS, status_of
from tests.fixtures.session import Service, shared_service
from tests.fixtures.shells import Home, wait_for

pytestmark = [pytest.mark.timeout(1500)]

STUDY = """
methods = ["baseline", "unified"]
data = {train = 1, val = 1, test = 1, synthetic = {cluster_sizes = [2, 2], dialogues = 3}}
recipe.epochs = 1
clustering = {k = 2, sizes = [2, 2], min_size = 1}
evaluation = {max_new_tokens = 4, bootstrap_draws = 100}
runtime.shards = 1
"""


@dataclass
class Story:
    """What happened, and the stack as it is at the end: up, because somebody brought it up."""

    home: Home
    two: tuple[str, str]
    """Output of the first two shells."""
    left_by_two: list[str]
    """What ran when they had ended."""
    lost: str
    """Output of the shell that lost a server and was interrupted, and of the one after it."""
    again: str
    up: dict[str, Any]

    @property
    def at_the_end(self) -> LocalServices:
        return self.home.running()


def _tell(folder: Path) -> Service:
    home = Home(folder)
    (folder / "study.toml").write_text(STUDY)
    try:
        # Two shells. The first finds nothing and starts the servers, the second finds them.
        two = (home.study("one"), home.study("two"))
        for shell in two:
            shell.ends()
        left = local_services.status(home.stack)

        # Somebody brings the servers up, and a third study uses them. One of them is lost; whoever watches leaves, and comes back.
        up = home.does("up", "--workers", "1")
        lost = home.study("three")
        processes.stop([home.running().running["prefect-server"]], patience_seconds=0)
        lost.wait_for_output("prefect-server died; restarting")
        wait_for(lambda: not local_services.dead_processes(home.stack), lost.output)
        lost.interrupt()
        lost.ends(130)
        again = home.study("three")
        again.ends()
    except BaseException:
        for shell in home.shells:
            shell.process.kill()
        local_services.down(home.stack)
        raise
    facts = {
        "two": [shell.output() for shell in two],
        "left_by_two": [*left.running] if left else [],
        "lost": lost.output(),
        "again": again.output(),
        "up": up,
    }
    (folder / "story.json").write_text(json.dumps({**facts, "printed": home.printed}))
    down = f"from pathlib import Path; from deployments import local_services; local_services.down(Path({str(home.stack)!r}))"
    return Service({"folder": str(folder)}, [], [[sys.executable, "-c", down]])


@pytest.fixture(scope="session")
def story() -> Story:
    """Return the story, which is told once per session; the stack is up until the session ends."""
    folder = Path(shared_service("local-stack", _tell)["folder"])
    record = json.loads((folder / "story.json").read_text())
    return Story(Home(folder, printed=record.pop("printed")), **record)


def test_of_two_studies_in_two_shells_the_first_to_finish_stops_nothing_and_the_last_stops_the_servers(story: Story) -> None:
    assert sorted("the servers stay up for study" in output for output in story.two) == [False, True]
    assert sorted("stopping servers and workers" in output for output in story.two) == [False, True]
    assert story.left_by_two == []
    for name in ("one", "two"):
        study = story.home.does("study", "status", name)
        assert (study["status"], study["adapters"]) == ("finished", 1)
        assert study["conclusion"]


def test_a_dead_server_is_restarted_and_services_started_with_up_keep_running(story: Story) -> None:
    assert "The study runs on" in story.lost
    assert story.home.does("study", "status", "three")["status"] == "finished"
    assert set(story.at_the_end.running) == {"prefect-server", "mlflow-server", "fork-server", "worker-cpu", "worker-gpu-0"}
    assert "stopping" not in story.lost + story.again


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a session's processes are not told")
@pytest.mark.parametrize("name", ["prefect-server", "mlflow-server"])
def test_a_server_is_one_process(story: Story, name: str) -> None:
    leader = story.at_the_end.running[name].pid
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    assert [folder.name for folder in folders if processes._stat(int(folder.name))[3:4] == [str(leader)]] == [str(leader)]


def test_prefect_counts_no_worker_that_was_stopped(story: Story) -> None:
    asked = partial(prefect_rest.request, environment=story.at_the_end.environment())
    workers = {pool: [worker["name"] for worker in asked(f"work_pools/{pool}/workers/filter", {})] for pool in ("cpu", "gpu")}
    assert workers == {"cpu": ["cpu"], "gpu": ["gpu-0"]}, "the first studies had two"


def test_servers_refuse_requests_without_the_password(story: Story) -> None:
    passwords, addresses = story.home.passwords(), story.at_the_end.addresses
    doors = [(f"{addresses.prefect}/api/{path}", passwords["prefect"], b"{}") for path in PREFECT_ENDPOINTS]
    doors += [(f"{addresses.mlflow}/{path}", passwords["mlflow"], None) for path in MLFLOW_ENDPOINTS]
    for url, password, body in doors:
        for who in ((None, ""), ("clusterlora", "wrong"), ("nobody", password)):
            assert status_of(url, *who, body=body) == 401, (url, who)
        assert status_of(url, "clusterlora", password, body=body) == 200, url


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("curl") is None, reason="needs root, to be another user, and curl")
def test_another_user_can_neither_start_runs_nor_read_files(story: Story) -> None:
    def as_nobody(*words: str) -> str:
        done = subprocess.run(["runuser", "-u", "nobody", "--", *words], cwd="/", capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    before = story.home.n_runs("study")
    addresses = story.at_the_end.addresses
    post = (
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        "Content-Type: application/json",
        "-d",
        '{"state": {"type": "SCHEDULED"}}',
    )
    assert as_nobody(*post, f"{addresses.prefect}/api/deployments/{story.home.deployment('study')}/create_flow_run") == "401"
    assert as_nobody(*post, f"{addresses.mlflow}/api/2.0/mlflow/experiments/create") == "401"
    assert story.home.n_runs("study") == before
    for file in (
        "stack/passwords.json",
        "stack/fork-server.sock",
        "stack/prefect/prefect.db",
        "stack/mlflow/mlflow.db",
        "stack/logs/worker-cpu.log",
    ):
        assert "Permission denied" in as_nobody("cat", str(story.home.folder / file))


def is_open_to_others(path: Path) -> bool:
    """Return whether another user may do anything with a file; a login link that was used meanwhile is gone."""
    try:
        return not path.is_symlink() and bool(path.stat().st_mode & 0o077)
    except FileNotFoundError:
        return False


def content(file: Path) -> bytes:
    """Return what a file holds; nothing when it is gone meanwhile."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def test_files_of_servers_workers_and_runs_are_inaccessible_to_other_users(story: Story) -> None:
    written = [path for part in ("stack", "studies") for path in (story.home.folder / part, *(story.home.folder / part).rglob("*"))]
    assert {"prefect.db", "mlflow.db", "worker-gpu-0.log", "clusterlora.db", "summary.md"} <= {path.name for path in written}
    assert [path for path in written if is_open_to_others(path)] == []


def test_no_log_table_or_artifact_holds_a_password(story: Story) -> None:
    """Of everything that servers, workers, runs and commands wrote: logs, Prefect's and MLflow's databases, results."""
    files = [file for file in story.home.folder.rglob("*") if file.is_file()]
    assert {"prefect-server.log", "worker-gpu-0.log", "summary.md", "prefect.db"} <= {file.name for file in files}
    for secret in story.home.passwords().values():
        assert secret not in "".join(story.home.printed)
        assert {file.name for file in files if secret.encode() in content(file)} == {"passwords.json"}


TRAINING = {"request": {"study_name": "x", "group": {"name": "x", "title": "x", "adapters": []}, "micro_batch": 1, "attempt": 1}}


@pytest.mark.parametrize(("flow", "parameters"), [("study", {}), ("train", TRAINING)])
def test_a_run_that_overrides_how_it_is_started_is_refused(story: Story, flow: str, parameters: dict[str, Any]) -> None:
    """`study` is in the pool cpu, `train` in the pool gpu."""
    url = f"{story.at_the_end.addresses.prefect}/api/deployments/{story.home.deployment(flow)}/create_flow_run"
    before = story.home.n_runs(flow)
    for name, value in EVIL.items():
        body = json.dumps({"parameters": parameters, "job_variables": {name: value}}).encode()
        assert status_of(url, "clusterlora", story.home.passwords()["prefect"], body=body) == 422, name
    assert story.home.n_runs(flow) == before


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_worker_starts_only_our_flows_and_ignores_commands_of_a_run(story: Story, pool: str) -> None:
    """With the password one can write down deployments of anything, and runs of no deployment's: they end without having run."""
    mark = story.home.folder / f"chosen-{pool}"
    flow = story.home.request("flows/", {"name": f"strange-{pool}"})["id"]
    deployment = story.home.request(
        "deployments/", {"name": "strange", "flow_id": flow, "work_pool_name": pool, "entrypoint": "antigravity.fly", "path": "/"}
    )["id"]
    run = story.home.request(f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]
    adhoc = {"flow_id": flow, "work_pool_name": pool, "state": {"type": "SCHEDULED"}, "job_variables": {"command": f"touch {mark}"}}
    ids = [run, story.home.request("flow_runs/", adhoc)["id"]]

    def states() -> list[str]:
        return [story.home.request(f"flow_runs/{one}")["state_type"] for one in ids]

    wait_for(lambda: {*states()} <= {"CRASHED", "FAILED"}, lambda: str(states()))
    log = (story.home.stack / "logs" / f"worker-{pool}{'-0' if pool == 'gpu' else ''}.log").read_text()
    assert "'antigravity.fly' is not a flow of this project" in log
    assert not mark.exists()


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """Return the port of a page of somebody else's on this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def enter(story: Story, tab: Tab) -> None:
    tab.open(story.home.running().login_link(), until="location.pathname === '/dashboard'")


def test_a_login_link_opens_the_pages_of_both_servers_and_works_once(story: Story, tab: Tab) -> None:
    addresses, link = story.at_the_end.addresses, story.at_the_end.login_link()
    tab.open(link, until=f"location.href === '{addresses.prefect}/dashboard'")
    tab.open(f"{addresses.prefect}/runs", until="document.body")
    tab.wait_for_text("study · three")
    tab.open(f"{addresses.mlflow}/#/experiments", until=with_text("a", "three"))
    tab.open("about:blank", until="document.body")
    tab.open(link, until="document.body.innerText.includes('This link was used')")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.localhost"])
def test_a_foreign_page_cannot_start_runs_in_a_logged_in_browser(story: Story, tab: Tab, elsewhere: int, host: str) -> None:
    enter(story, tab)
    addresses, before = story.at_the_end.addresses, story.home.n_runs("study")
    tab.open(f"http://{host}:{elsewhere}/", until="document.title === 'elsewhere'")
    run = f"{addresses.prefect}/api/deployments/{story.home.deployment('study')}/create_flow_run"
    experiment = f"{addresses.mlflow}/api/2.0/mlflow/experiments/create"
    for address, body in ((run, "{}"), (experiment, '{"name": "chosen"}')):
        for mode, kind in (("cors", "application/json"), ("no-cors", "text/plain")):
            options = {"method": "POST", "mode": mode, "credentials": "include", "headers": {"Content-Type": kind}, "body": body}
            answer = tab.value(f"fetch({json.dumps(address)}, {json.dumps(options)}).then(r => r.type + r.status, e => 'no')")
            assert answer in ("no", "opaque0"), (address, mode)
    socket = f"new Promise(done => {{ const s = new WebSocket('{addresses.prefect.replace('http', 'ws')}/api/events/out'); "
    assert tab.value(f"{socket} s.onopen = () => done('open'); s.onerror = () => done('refused') }})") == "refused"
    assert story.home.n_runs("study") == before
    password = story.home.passwords()["mlflow"]
    name = f"{addresses.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name="
    assert [status_of(f"{name}{one}", "clusterlora", password) for one in ("three", "chosen")] == [200, 404]


def test_a_foreign_host_name_that_resolves_to_the_server_is_refused(story: Story, tab: Tab) -> None:
    """As after DNS rebinding: the browser takes the server for a part of the attacker's site."""
    for port in (story.at_the_end.addresses.prefect_port, story.at_the_end.addresses.mlflow_port):
        tab.open(f"http://evil.localhost:{port}/", until="document.body.innerText.includes('this server is not called')")
