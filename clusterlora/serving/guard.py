"""ASGI middleware before the API: who may ask, from which page, how often, and how large a body is read."""

import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from clusterlora.serving.keys import ApiKeys
from clusterlora.serving.origin_check import refusal_reason
from clusterlora.serving.refusal import Refusal

OPEN_PATHS = ("/health", "/ready")
"""What a supervisor asks without a key."""

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class TokenBucket:
    """At most `per_minute` requests in any minute, after a pause as many at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    def seconds_to_wait(self) -> float:
        """Take a request from the bucket and return 0, or return how many seconds it takes until there is one."""
        now = self._clock()
        self._left = min(float(self._per_minute), self._left + (now - self._at) * self._per_minute / 60)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * 60 / self._per_minute
        self._left -= 1
        return 0.0


class Guard:
    """The API behind its checks. `keys` None lets everybody in, which only a server on loopback may do."""

    def __init__(
        self,
        app: App,
        *,
        host: str,
        names: Collection[str] = (),
        keys: ApiKeys | None,
        requests_per_minute: int | None = None,
        on_refusal: Callable[[int], None] = lambda _status: None,
    ) -> None:
        """Wrap the API.

        Args:
            host: address on which the server listens.
            names: further names by which it is called.
            requests_per_minute: of each key.
            on_refusal: is told the status of each request that is refused here.
        """
        self._app, self._host, self._names, self._keys, self._on_refusal = app, host, frozenset(names), keys, on_refusal
        self._per_minute = requests_per_minute
        self._buckets: dict[int | None, TokenBucket] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(raw=scope["headers"]), scope["method"], scope["path"])
        except Refusal as refusal:
            self._on_refusal(refusal.status)
            await refusal_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, method: str, path: str) -> None:
        if reason := refusal_reason(headers, method, self._host, names=self._names):
            raise Refusal(403, reason)
        if path in OPEN_PATHS:
            return
        key = self._keys.number(headers.get("authorization", "")) if self._keys is not None else None
        if self._keys is not None and key is None:
            raise Refusal(401, "the API key is missing or not one of this server's; send Authorization: Bearer KEY", code="invalid_api_key")
        if self._per_minute is not None:
            seconds = self._buckets.setdefault(key, TokenBucket(self._per_minute)).seconds_to_wait()
            if seconds:
                message = f"more than {self._per_minute} requests per minute"
                raise Refusal(429, message, code="rate_limit_exceeded", retry_after_seconds=int(seconds) + 1)


def refusal_response(refusal: Refusal) -> Response:
    """Return a refusal as a response."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    if refusal.status == 413:
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return JSONResponse(refusal.body(), refusal.status, headers)
