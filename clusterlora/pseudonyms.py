"""The name under which a person who left is remembered: a keyed digest of the id, which only who has the key can check."""

import hashlib
import hmac
import secrets
from pathlib import Path

from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings

KEY_FILE = ".forgetting-key"
"""In the folder of the results, readable by its owner alone. Without it nobody can tell whom a digest stands for."""


def pseudonym(home: Path, persona_id: str, *, make_key: bool = False) -> str:
    """Return HMAC-SHA256 of a persona id under this installation's key (RFC 2104), as hexadecimal digits.

    Args:
        make_key: whether to draw a key where there is none.

    Raises:
        BadSettings: there is no key.
    """
    file = home / KEY_FILE
    if not file.is_file():
        if not make_key:
            raise BadSettings(
                f"people have left, and the key to tell whom is not at {file}; copy it from the machine where they were forgotten"
            )
        write_durably(file, secrets.token_hex(32).encode(), mode=0o600)
    return hmac.new(bytes.fromhex(file.read_text()), persona_id.encode(), hashlib.sha256).hexdigest()
