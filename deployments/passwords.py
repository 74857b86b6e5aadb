"""The local stack's passwords and login links: made at random, in files that only their owner can read."""

import hashlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments import private

USER = "clusterlora"
SERVERS = ("prefect", "mlflow")
LINK_SECONDS = 3600.0
"""How long a login link that nobody has used stays good."""
_FILE = "passwords.json"


@dataclass(frozen=True, slots=True)
class Passwords:
    """What Prefect and MLflow ask for."""

    prefect: str
    mlflow: str

    def of_clients(self) -> dict[str, str]:
        """Return the variables by which clients are let in."""
        return {
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.prefect}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow,
        }


def of(home: Path) -> Passwords:
    """Return the stack's passwords, made when there are none yet."""
    file = home / _FILE
    if not file.is_file():
        private.folder(home)
        private.write(file, json.dumps(asdict(Passwords(*(secrets.token_hex(24) for _ in SERVERS)))))
    known = json.loads(file.read_text(encoding="utf-8"))
    return Passwords(*(known[server] for server in SERVERS))


def new_link(home: Path) -> str:
    """Return a token that lets a browser in, once at each server."""
    token = secrets.token_urlsafe(24)
    links = private.folder(home / "links")
    for old in links.iterdir():
        if _too_old(old):
            old.unlink(missing_ok=True)
    for server in SERVERS:
        private.write(_link(home, server, token), "")
    return token


def redeem(home: Path, server: str, token: str) -> bool:
    """Return whether a token is good at a server; from then on it is not."""
    link = _link(home, server, token)
    try:
        good = not _too_old(link)
        # Of two who come with the same one, the first to remove it is let in.
        link.unlink()
    except OSError:
        return False
    return good


def _link(home: Path, server: str, token: str) -> Path:
    # Whoever sees the folder's names has no token.
    return home / "links" / f"{server}-{hashlib.sha256(token.encode()).hexdigest()}"


def _too_old(link: Path) -> bool:
    return time.time() - os.stat(link).st_mtime > LINK_SECONDS  # noqa: PTH116
