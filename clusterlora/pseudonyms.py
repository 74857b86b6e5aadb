"""The name under which a person who left is remembered: a keyed digest of the id, which only who has the key can check."""

import hashlib
import hmac
import re
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
        BadSettings: there is no key, or the id is no text.
    """
    try:
        encoded = persona_id.encode()
    except UnicodeEncodeError:
        raise BadSettings(f"{persona_id!r} is no UTF-8 text, and so nobody's id; give the id as the data have it") from None
    file = home / KEY_FILE
    if not file.is_file():
        if not make_key:
            raise BadSettings(
                f"people have left, and the key to tell whom is not at {file}; copy it from the machine where they were forgotten"
            )
        write_durably(file, secrets.token_hex(32).encode(), mode=0o600)
    return hmac.new(bytes.fromhex(file.read_text()), encoded, hashlib.sha256).hexdigest()


def as_pseudonym(digest: str) -> str:
    """Return a digest that somebody typed as `pseudonym` writes it. Raises BadSettings where it is none."""
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise BadSettings(f"{digest!r} is no digest of 64 hexadecimal digits; `clusterlora persona forget ID --dry-run` prints it")
    return digest.lower()
