"""ASGI middleware in front of both local servers: refuses foreign hosts and origins, checks passwords, and logs browsers in.

Started by service_specs.py as `uvicorn --factory deployments.auth_middleware:prefect` and, through the entry point `mlflow.app` in
pyproject.toml, as `mlflow server --app-name clusterlora` (mlflow_server.py). It refuses, before a server sees the request: a Host header
that is not a name of this server (DNS rebinding), requests of pages of other origins except plain links, and, at MLflow, requests without
the password. Prefect checks its own password, because its pages must know that they need one. Requests that make a run ring the workers'
bell (local_worker.py).

A login link contains a token that is valid once. Its page exchanges the token for the password and stores that per host and port: in local
storage for Prefect's pages, in the browser's HTTP authentication cache for MLflow's. A cookie would be sent to every port of the machine,
also to another user's server.
"""

import base64
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from clusterlora.serving.origin_check import refusal_reason
from deployments import passwords, services_state
from deployments.passwords import USER
from deployments.prefect_sqlite import queue_writers
from deployments.service_specs import AUTH_VARIABLE, Addresses, bell_file

ENTER = "/enter"
_WITHOUT_PASSWORD = ("/health", "/version")
_OF_RUNS = re.compile(
    r"/api/(deployments/[^/]+/create_flow_run(/bulk)?|flow_runs/|flow_runs/bulk_set_state|flow_runs/[^/]+/(resume|set_state))"
)
_PAGE = Path(__file__).with_name("enter.html")

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def prefect() -> "AuthMiddleware":
    """Return Prefect's server behind the middleware."""
    from prefect.server.api.server import create_app

    queue_writers()
    return _protected("prefect", create_app(final=True))


def mlflow() -> "AuthMiddleware":
    """Return MLflow's server behind the middleware."""
    from mlflow.server.fastapi_app import app

    return _protected("mlflow", app)


def _protected(server: str, app: Any) -> "AuthMiddleware":
    configuration = json.loads(os.environ[AUTH_VARIABLE])
    return AuthMiddleware(app, server, Path(configuration["home"]), Addresses(**configuration["addresses"]))


class AuthMiddleware:
    """An ASGI application that wraps one of the servers."""

    def __init__(self, app: App, server: str, home: Path, addresses: Addresses) -> None:
        self._app, self._server, self._home, self._addresses = app, server, home, addresses
        self._password = getattr(passwords.load_or_create(home), server)
        self._login = f"{USER}:{self._password}"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Refuse the request, log the browser in, or pass the request to the server."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        reason = refusal_reason(headers, scope.get("method", "GET"), self._addresses.host)
        if reason is not None:
            await _refuse(PlainTextResponse(f"{reason}\n", 403), scope, receive, send)
        elif scope["path"] == ENTER and scope["type"] == "http":
            await (await self._login_response(Request(scope, receive)))(scope, receive, send)
        elif self._server == "mlflow" and scope["path"] not in _WITHOUT_PASSWORD and not self._has_password(headers):
            challenge = {"WWW-Authenticate": 'Basic realm="clusterlora", charset="UTF-8"'}
            await _refuse(PlainTextResponse("log in with the link that `clusterlora up` prints\n", 401, challenge), scope, receive, send)
        else:
            await self._ring(scope, receive, send)

    async def _ring(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass a request to the server; if it makes a run, or schedules one again, tell the workers."""
        if self._server != "prefect" or scope.get("method") != "POST" or not _OF_RUNS.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        body, is_done = bytearray(), False

        async def read() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def answer(message: Message) -> None:
            nonlocal is_done
            is_done = is_done or message.get("status", 500) < 300
            await send(message)

        await self._app(scope, read, answer)
        if is_done and (not scope["path"].endswith("set_state") or b"SCHEDULED" in body):
            bell_file(self._home).touch(mode=0o600)

    def _has_password(self, headers: Mapping[str, str]) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        expected = base64.b64encode(self._login.encode()).decode()
        return scheme.lower() == "basic" and hmac.compare_digest(credentials.strip().encode(), expected.encode())

    async def _login_response(self, request: Request) -> Response:
        no_cache = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        if request.method == "GET":
            policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
            return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={**no_cache, "Content-Security-Policy": policy})
        if request.method != "POST" or not passwords.redeem(self._home, self._server, (await request.body()).decode(errors="replace")):
            return PlainTextResponse("This link was used, or has expired. Get another one: clusterlora up\n", 403, no_cache)
        # Prefect's login page redirects to MLflow's with the same token, and that one back to Prefect.
        # That other server may have moved since this one was started: whoever has its port now would get the token.
        ports = services_state.load(self._home).ports
        port, path = (ports.mlflow_port, ENTER) if self._server == "prefect" else (ports.prefect_port, "/dashboard")
        return JSONResponse(
            {"server": self._server, "user": USER, "password": self._password, "port": port, "path": path}, headers=no_cache
        )


async def _refuse(response: Response, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)
