"""Prefect's server as compose.yaml starts it: it answers to the host names of CLUSTERLORA_ALLOWED_HOSTS alone, as MLflow does.

A page that lets its own name point to this machine (DNS rebinding) is refused before Prefect sees the request.
"""

import os
from urllib.parse import urlsplit

from prefect.server.api.server import create_app
from starlette.middleware.trustedhost import TrustedHostMiddleware


def app() -> TrustedHostMiddleware:
    """Return the server. The variable holds names, with a port or without one, and addresses of pages, separated by commas."""
    names = (os.environ.get("CLUSTERLORA_ALLOWED_HOSTS") or "localhost,127.0.0.1").split(",")
    hosts = [urlsplit(name if "//" in name else f"//{name}").hostname for name in map(str.strip, names)]
    return TrustedHostMiddleware(create_app(final=True), allowed_hosts=[host for host in hosts if host], www_redirect=False)
