"""The door of both servers of the local stack: whom it lets in, and how a browser gets the password.

Started by deployments/services.py as `uvicorn --factory deployments.door:prefect` and, through the entry point `mlflow.app` in
pyproject.toml, as `mlflow server --app-name clusterlora`. Three things are refused before a server sees a request: a Host that is none of
its names (a page whose name was made to lead here), whatever another origin's page asks but a plain link, and, at MLflow, a request without
the password. Prefect asks for its own by itself, because its pages must know that they need one.

A login link holds a token that works once. The page it leads to exchanges it for the password and keeps that where only pages of this very
host and port find it: in local storage for Prefect's pages, with the browser's own logins for MLflow's. A cookie would be sent to every
port of the machine, so also to another user's server.
"""

import base64
import hmac
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from deployments import passwords
from deployments.passwords import USER
from deployments.services import DOOR, LOOPBACK, Addresses

ENTER = "/enter"
_UNASKED = ("/health", "/version")
_PAGE = Path(__file__).with_name("enter.html")

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def prefect() -> "Door":
    """Return Prefect's server behind its door."""
    from prefect.server.api.server import create_app

    return _door("prefect", create_app(final=True))


def mlflow() -> "Door":
    """Return MLflow's server behind its door."""
    from mlflow.server.fastapi_app import app

    return _door("mlflow", app)


def _door(server: str, app: Any) -> "Door":
    told = json.loads(os.environ[DOOR])
    return Door(app, server, Path(told["home"]), Addresses(**told["addresses"]))


class Door:
    """An ASGI application in front of another."""

    def __init__(self, app: App, server: str, home: Path, addresses: Addresses) -> None:
        self._app, self._server, self._home, self._addresses = app, server, home, addresses
        known = passwords.of(home)
        self._password = getattr(known, server)
        self._login = f"{USER}:{self._password}"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer here, or let the server answer."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        reason = refusal(headers, scope.get("method", "GET"), self._addresses.host)
        if reason is not None:
            await _refuse(PlainTextResponse(f"{reason}\n", 403), scope, receive, send)
        elif scope["path"] == ENTER and scope["type"] == "http":
            await (await self._enter(Request(scope, receive)))(scope, receive, send)
        elif self._server == "mlflow" and scope["path"] not in _UNASKED and not self._knows(headers):
            asks = {"WWW-Authenticate": 'Basic realm="clusterlora", charset="UTF-8"'}
            await _refuse(PlainTextResponse("a login link comes from: clusterlora up\n", 401, asks), scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = base64.b64encode(self._login.encode()).decode()
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected.encode())

    async def _enter(self, request: Request) -> Response:
        private = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        if request.method == "GET":
            policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
            return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={**private, "Content-Security-Policy": policy})
        if request.method != "POST" or not passwords.redeem(self._home, self._server, (await request.body()).decode(errors="replace")):
            return PlainTextResponse("This link was used, or is too old. Another one comes from: clusterlora up\n", 403, private)
        # Prefect's page leads on to MLflow's with the same link, and that one back to Prefect.
        port, path = (self._addresses.mlflow_port, ENTER) if self._server == "prefect" else (self._addresses.prefect_port, "/dashboard")
        return JSONResponse({"server": self._server, "user": USER, "password": self._password, "port": port, "path": path}, headers=private)


def refusal(headers: Mapping[str, str], method: str, host: str) -> str | None:
    """Return why a request is refused whoever sent it, None when it is not.

    Args:
        host: the address that the server listens on.
    """
    asked = headers.get("host", "")
    if not _is_own_name(_name(asked), host):
        return f"this server is not called {asked!r}; open it by its address"
    # Ports are not compared: through an SSH tunnel a server has another one. Origin and Host are the same page's words, so they agree.
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != asked:
        return f"pages of {origin} may not ask this server"
    # What carries no Origin (pictures, scripts, frames) says where it comes from all the same; only a link may lead here.
    links = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document" and method == "GET"
    if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not links:
        return "pages of other origins may not ask this server"
    return None


def _name(host: str) -> str:
    return host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]


def _is_own_name(name: str, host: str) -> bool:
    if name in (LOOPBACK, "localhost", host):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    # An address cannot be made to lead elsewhere, as a name can. Who listens on all of a machine's is asked by any of them.
    return not address.is_loopback and ipaddress.ip_address(host).is_unspecified


async def _refuse(answer: Response, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)
