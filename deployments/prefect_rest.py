"""Requests to the Prefect server without Prefect's client, whose import takes seconds of CPU time."""

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from clusterlora.errors import ServiceDown

TRIES = 7
"""On SQLite the server returns 503 while another run writes. The pauses between the tries add up to two minutes, as in Prefect's client."""


def request(
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: Literal["DELETE"] | None = None,
    environment: Mapping[str, str] = os.environ,
    tries: int = TRIES,
) -> Any:
    """Return the response of the server at PREFECT_API_URL: to GET, or with a body to POST; None where it says nothing.

    Raises:
        ServiceDown: the server does not answer, or refuses the request.
    """
    address = f"{environment['PREFECT_API_URL']}/{path}"
    headers = {"Content-Type": "application/json"}
    if login := environment.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := environment.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    trusted = _trusted(environment) if address.startswith("https:") else None
    for number in range(tries):
        try:
            asked = urllib.request.Request(address, data=data, headers=headers, method=method)
            with urllib.request.urlopen(asked, timeout=30, context=trusted) as reply:
                said = reply.read()
                return json.loads(said) if said else None
        except OSError as error:
            permanent = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if permanent or number + 1 == tries:
                raise ServiceDown(f"the Prefect server does not answer {address}: {error}") from error
        time.sleep(min(2**number, 32))
    raise AssertionError(tries)


def _trusted(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return which certificates are trusted, by the settings that Prefect's own client follows."""
    trusted = ssl.create_default_context(cafile=environment.get("PREFECT_API_SSL_CERT_FILE") or None)
    if environment.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on"):
        trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
    return trusted
