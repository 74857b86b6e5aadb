"""The authentication in front of both servers: which requests it accepts, and how a browser gets the password."""

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments import passwords, services_state
from deployments.auth_middleware import AuthMiddleware
from deployments.service_specs import Addresses, bell_file

ADDRESSES = Addresses(4200, 5000)
OWN = "127.0.0.1:4200"


@dataclass
class Answer:
    """What came back; `inside` says whether the server behind the door saw the request."""

    status: int
    headers: dict[str, str]
    body: str
    inside: bool


@dataclass
class Visitor:
    """Somebody at the doors of a stack."""

    home: Path
    host: str = "127.0.0.1"

    def asks(
        self,
        path: str = "/api/x",
        headers: Mapping[str, str] | None = None,
        *,
        server: str = "prefect",
        method: str = "GET",
        body: str = "",
        kind: str = "http",
        answers: int = 200,
    ) -> Answer:
        seen: list[str] = []
        sent: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            if scope["type"] == "http":
                await receive()
                await send({"type": "http.response.start", "status": answers, "headers": []})
                await send({"type": "http.response.body", "body": b"inside"})

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body.encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        door = AuthMiddleware(app, server, self.home, Addresses(4200, 5000, self.host))
        sent_headers = {"host": OWN, **(headers or {})}
        raw = [(name.encode(), value.encode()) for name, value in sent_headers.items()]
        scope = {"type": kind, "method": method, "path": path, "headers": raw, "query_string": b""}
        asyncio.run(door(scope, receive, send))
        status = next((m["status"] for m in sent if "status" in m), 200 if seen else 403)
        answered = {k.decode(): v.decode() for m in sent for k, v in m.get("headers", [])}
        return Answer(status, answered, b"".join(m.get("body", b"") for m in sent).decode(), bool(seen))


@pytest.fixture
def visitor(tmp_path: Path) -> Visitor:
    return Visitor(tmp_path / "home")


def login(password: str, user: str = "clusterlora") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:6666", "http://127.0.0.1", "http://localhost:4200", "http://127.0.0.1:42000", ""],
)
def test_a_page_of_another_origin_is_refused_even_with_the_password(
    visitor: Visitor, server: str, kind: str, method: str, origin: str
) -> None:
    stored = passwords.load_or_create(visitor.home)
    answer = visitor.asks(headers={"origin": origin, **login(getattr(stored, server))}, server=server, method=method, kind=kind)
    assert (answer.status, answer.inside) == (403, False)
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:4200",
        "127.0.0.1.evil.example:4200",
        "localhost.evil:4200",
        "evil.localhost:4200",
        "10.0.0.7:4200",
        "127.0.0.2:4200",
        "",
        ":4200",
        "[::1]:4200",
    ],
)
def test_a_request_with_a_foreign_host_name_is_refused(visitor: Visitor, server: str, host: str) -> None:
    stored = passwords.load_or_create(visitor.home)
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        answer = visitor.asks("/health", headers={**headers, **login(getattr(stored, server))}, server=server)
        assert (answer.status, answer.inside) == (403, False)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("mode", "destination"),
    [("no-cors", "script"), ("no-cors", "image"), ("navigate", "iframe"), ("cors", "empty"), ("websocket", "websocket")],
)
def test_embedded_requests_of_other_pages_are_refused_although_they_have_no_origin(
    visitor: Visitor, site: str, mode: str, destination: str
) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": destination}
    assert not visitor.asks(headers=headers).inside


def test_a_link_on_another_site_is_followed_and_its_form_is_refused(visitor: Visitor) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert visitor.asks("/runs/flow-run/1", link).inside
    assert not visitor.asks("/api/deployments/1/create_flow_run", link, method="POST").inside


@pytest.mark.parametrize("name", ["127.0.0.1:4200", "localhost:4200", "localhost:14200", "localhost"])
def test_the_servers_own_pages_are_accepted_under_each_of_its_names_and_through_a_tunnel(visitor: Visitor, name: str) -> None:
    headers = {
        "host": name,
        "origin": f"http://{name}",
        "sec-fetch-site": "same-origin",
        "sec-fetch-mode": "cors",
        "sec-fetch-dest": "empty",
    }
    assert visitor.asks(headers=headers, method="POST").inside
    assert visitor.asks(headers=headers, kind="websocket").inside


@pytest.mark.parametrize(
    ("listens", "host", "inside"),
    [
        ("10.0.0.7", "10.0.0.7:4200", True),
        ("10.0.0.7", "10.0.0.8:4200", False),
        ("0.0.0.0", "192.168.1.7:4200", True),
        ("0.0.0.0", "evil.example:4200", False),
        ("::", "[fd00::7]:4200", True),
    ],
)
def test_a_published_server_accepts_ip_addresses_and_no_host_names(visitor: Visitor, listens: str, host: str, inside: bool) -> None:
    assert Visitor(visitor.home, listens).asks(headers={"host": host}).inside is inside


@pytest.mark.parametrize(
    "headers",
    [{}, login("wrong"), login("", "clusterlora"), {"authorization": "Basic"}, {"authorization": "Bearer x"}, {"authorization": "Basic é"}],
)
def test_mlflow_refuses_requests_without_the_password(visitor: Visitor, headers: dict[str, str]) -> None:
    answer = visitor.asks("/api/2.0/mlflow/experiments/search", headers, server="mlflow")
    assert (answer.status, answer.inside) == (401, False)
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert not visitor.asks("/graphql", headers, server="mlflow", kind="websocket").inside


def test_mlflow_accepts_the_password_and_answers_health_checks_without_it(visitor: Visitor) -> None:
    stored = passwords.load_or_create(visitor.home)
    assert visitor.asks(headers=login(stored.mlflow), server="mlflow").inside
    assert not visitor.asks(headers=login(stored.prefect), server="mlflow").inside
    assert not visitor.asks(headers=login(stored.mlflow, "nobody"), server="mlflow").inside
    assert visitor.asks("/health", server="mlflow").inside
    assert not visitor.asks("/health/../api", server="mlflow").inside


def test_a_login_link_gives_each_servers_password_once(visitor: Visitor) -> None:
    stored, token = passwords.load_or_create(visitor.home), passwords.create_login_token(visitor.home)
    for server in ("prefect", "mlflow"):
        page = visitor.asks("/enter", server=server)
        assert "Logging in" in page.body
        assert token not in page.body
        first = visitor.asks("/enter", server=server, method="POST", body=token)
        assert getattr(stored, server) in first.body
        assert first.headers["cache-control"] == "no-store"
        again = visitor.asks("/enter", server=server, method="POST", body=token)
        assert again.status == 403
        assert getattr(stored, server) not in again.body


@pytest.mark.parametrize(("server", "port"), [("prefect", 5300), ("mlflow", 4300)])
def test_a_login_goes_on_where_the_other_server_is_now(visitor: Visitor, server: str, port: int) -> None:
    """Whoever has the port of before would get a token that is still good for one password."""
    services_state.ServicesState(Addresses(4300, 5300)).save(visitor.home)
    token = passwords.create_login_token(visitor.home)
    assert json.loads(visitor.asks("/enter", server=server, method="POST", body=token).body)["port"] == port


@pytest.mark.parametrize("token", ["", "x", "../passwords.json", "\0", "é" * 1000])
def test_an_invalid_login_link_gives_no_password(visitor: Visitor, token: str) -> None:
    passwords.create_login_token(visitor.home)
    assert visitor.asks("/enter", method="POST", body=token).status == 403


def test_an_unused_login_link_expires_after_an_hour_and_is_deleted(visitor: Visitor) -> None:
    token = passwords.create_login_token(visitor.home)
    for file in (visitor.home / "links").iterdir():
        os.utime(file, (0, 0))
    assert visitor.asks("/enter", method="POST", body=token).status == 403
    passwords.create_login_token(visitor.home)
    assert len(list((visitor.home / "links").iterdir())) == len(passwords.SERVERS)


def test_a_login_link_refuses_pages_of_another_origin(visitor: Visitor) -> None:
    token = passwords.create_login_token(visitor.home)
    assert visitor.asks("/enter", {"origin": "http://127.0.0.1:6666"}, method="POST", body=token).status == 403
    assert visitor.asks("/enter", method="POST", body=token).status == 200


RUN = "/api/flow_runs/3c1f1f1e-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("path", "method", "body", "rings"),
    [
        ("/api/deployments/3c1f1f1e-0000-4000-8000-000000000000/create_flow_run", "POST", "{}", True),
        ("/api/flow_runs/", "POST", "{}", True),
        ("/api/deployments/3c1f1f1e-0000-4000-8000-000000000000/create_flow_run/bulk", "POST", "[]", True),
        ("/api/flow_runs/bulk_set_state", "POST", '{"state": {"type": "SCHEDULED"}}', True),
        (f"{RUN}/resume", "POST", "", True),
        (f"{RUN}/set_state", "POST", '{"state": {"type": "SCHEDULED"}}', True),
        (f"{RUN}/set_state", "POST", '{"state": {"type": "RUNNING"}}', False),
        ("/api/flow_runs/filter", "POST", "{}", False),
        ("/api/work_pools/gpu/get_scheduled_flow_runs", "POST", "{}", False),
        (RUN, "GET", "", False),
    ],
)
def test_a_request_that_makes_or_schedules_a_run_rings_the_workers_bell(
    visitor: Visitor, path: str, method: str, body: str, rings: bool
) -> None:
    assert visitor.asks(path, method=method, body=body).body == "inside"
    assert bell_file(visitor.home).exists() is rings


def test_a_refused_request_rings_no_bell(visitor: Visitor) -> None:
    assert not visitor.asks("/api/flow_runs/", {"origin": "http://evil.example"}, method="POST").inside
    assert visitor.asks("/api/flow_runs/", method="POST", answers=401).status == 401
    assert not bell_file(visitor.home).exists()
