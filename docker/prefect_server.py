"""Prefect's server as compose.yaml starts it: it answers to the host names of CLUSTERLORA_ALLOWED_HOSTS alone, as MLflow does.

A page that lets its own name point to this machine (DNS rebinding) is refused before Prefect sees the request.
"""

import os
from urllib.parse import urlsplit

from starlette.middleware.trustedhost import TrustedHostMiddleware


def app() -> TrustedHostMiddleware:
    """Return the server."""
    from prefect.server.api.server import create_app

    names = os.environ.get("CLUSTERLORA_ALLOWED_HOSTS") or "localhost,127.0.0.1"
    return TrustedHostMiddleware(create_app(final=True), allowed_hosts=allowed_hosts(names), www_redirect=False)


def allowed_hosts(names: str) -> list[str]:
    """Return host names as a request states them: `names` are separated by commas, have a port or none, or are addresses of pages."""
    hosts: list[str] = []
    for name in filter(None, map(str.strip, names.split(","))):
        try:
            host = urlsplit(name if "//" in name else f"//{name}").hostname
        except ValueError:
            host = None
        if not host or "*" in host:
            raise SystemExit(f"error: CLUSTERLORA_ALLOWED_HOSTS names {name!r}, which is no host name; write such as p.example.org")
        hosts.append(f"[{host}]" if ":" in host else host)
    return hosts
