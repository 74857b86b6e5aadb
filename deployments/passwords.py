"""Random passwords and one-time login tokens of the local services, in files that only their owner can read."""

import hashlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterlora import private_files
from clusterlora.errors import BadSettings

USER = "clusterlora"
SERVERS = ("prefect", "mlflow")
TOKEN_SECONDS = 3600.0
"""Lifetime of an unused login token."""
_FILE = "passwords.json"
_MIN_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Passwords:
    """Passwords of the two servers."""

    prefect: str
    mlflow: str

    def client_environment(self) -> dict[str, str]:
        """Return the environment variables with which clients log in."""
        return {
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.prefect}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow,
        }


def load_or_create(home: Path) -> Passwords:
    """Return the passwords of the services at `home`, created if there are none yet.

    Raises:
        BadSettings: the file that holds them is damaged, or one of them is too short to keep anybody out.
    """
    file = home / _FILE
    if not file.is_file():
        private_files.make_folder(home)
        private_files.write_private(file, json.dumps(asdict(Passwords(*(secrets.token_hex(24) for _ in SERVERS)))))
    try:
        by_server = json.loads(file.read_text(encoding="utf-8"))
        found = [str(by_server[server]) for server in SERVERS]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        found = []
    if not found or min(map(len, found)) < _MIN_LENGTH:
        raise BadSettings(
            f"{file}, which holds the servers' passwords, is damaged; stop the servers with `clusterlora down`, remove the file, and get "
            "new passwords with `clusterlora up`"
        )
    return Passwords(*found)


def create_login_token(home: Path) -> str:
    """Return a token that logs a browser in, once at each server."""
    token = secrets.token_urlsafe(24)
    for file in private_files.make_folder(home / "links").iterdir():
        if _expired(file):
            file.unlink(missing_ok=True)
    for server in SERVERS:
        private_files.write_private(_token_file(home, server, token), "")
    return token


def redeem(home: Path, server: str, token: str) -> bool:
    """Return whether the token is valid at the server, and invalidate it."""
    file = _token_file(home, server, token)
    try:
        valid = not _expired(file)
        # Of two requests with the same token, the one that removes the file is logged in.
        file.unlink()
    except OSError:
        return False
    return valid


def _token_file(home: Path, server: str, token: str) -> Path:
    # The hash: a listing of the folder reveals no token.
    return home / "links" / f"{server}-{hashlib.sha256(token.encode()).hexdigest()}"


def _expired(file: Path) -> bool:
    return time.time() - os.stat(file).st_mtime > TOKEN_SECONDS  # noqa: PTH116
