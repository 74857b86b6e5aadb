"""The local stack's passwords: made once, in a file that only its owner can read, and handed to servers and clients as variables."""

import ipaddress
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterlora.errors import BadSettings

USER = "clusterlora"
_FILE = "passwords.json"


@dataclass(frozen=True, slots=True)
class Passwords:
    """What Prefect and MLflow ask for, and the key with which MLflow signs its sessions."""

    prefect: str
    mlflow: str
    mlflow_key: str

    def of_clients(self) -> dict[str, str]:
        """Return the variables by which clients are let in."""
        return {
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.prefect}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow,
        }

    def of_servers(self, home: Path) -> dict[str, str]:
        """Return the variables by which servers ask."""
        return {
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{self.prefect}",
            "MLFLOW_AUTH_CONFIG_PATH": str(home / "mlflow" / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.mlflow,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.mlflow_key,
        }


def read(home: Path) -> Passwords | None:
    """Return the stack's passwords; None when it asks for none."""
    file = home / _FILE
    return Passwords(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def make(home: Path) -> Passwords:
    """Return the stack's passwords, made at random when it has none yet.

    Raises:
        BadSettings: MLflow cannot ask for passwords here.
    """
    if known := read(home):
        return known
    from importlib.util import find_spec

    if find_spec("flask_wtf") is None:
        raise BadSettings("MLflow's passwords need the package flask-wtf, which is not installed; run `make install`")
    made = Passwords(*(secrets.token_hex(24) for _ in range(3)))
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    accounts = f"sqlite:///{home / 'mlflow' / 'accounts.db'}"
    lines = ("[mlflow]", "default_permission = NO_PERMISSIONS", f"database_uri = {accounts}", f"admin_username = {USER}")
    lines += ("authorization_function = mlflow.server.auth:authenticate_request_basic_auth", "grant_default_workspace_access = false")
    (home / "mlflow" / "auth.ini").write_text("\n".join((*lines, "auth_cache_ttl_seconds = 60", "")), encoding="utf-8")
    file = home / _FILE
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return made


def forget(home: Path) -> None:
    """Ask for no passwords any more."""
    for file in (home / _FILE, home / "mlflow" / "auth.ini", home / "mlflow" / "accounts.db"):
        file.unlink(missing_ok=True)


def refuse_open_doors(host: str, passwords: Passwords | None) -> None:
    """Check that servers which others can reach ask for passwords.

    Raises:
        BadSettings: they would not, or `host` is no address.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise BadSettings(f"--host {host!r} is not an IP address; write 127.0.0.1, 0.0.0.0, or an address of this machine") from None
    if not is_loopback and passwords is None:
        raise BadSettings(f"--host {host} lets other machines in, and the servers would ask for no password; add --auth")
