"""A question to the Prefect server in a tenth of a second: Prefect's own client takes seconds of a core to import."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from clusterlora.errors import ServiceDown

TRIES = 7
"""On SQLite the server answers 503 while another run writes. The pauses between the tries add up to two minutes, as Prefect's own do."""


def ask(path: str, body: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] = os.environ, tries: int = TRIES) -> Any:
    """Return what the server at PREFECT_API_URL answers: to GET, or to POST where there is a body.

    Raises:
        ServiceDown: it does not answer, or refuses.
    """
    address = f"{environment['PREFECT_API_URL']}/{path}"
    headers = {"Content-Type": "application/json"}
    if login := environment.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := environment.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    for number in range(tries):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, data=data, headers=headers), timeout=30) as reply:
                return json.load(reply)
        except OSError as lost:
            refused = isinstance(lost, urllib.error.HTTPError) and lost.code < 500 and lost.code != 429
            if refused or number + 1 == tries:
                raise ServiceDown(f"the Prefect server does not answer {address}: {lost}") from lost
        time.sleep(min(2**number, 32))
    raise AssertionError(tries)
