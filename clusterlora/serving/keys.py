"""The API keys of a server: one per line of a file that only its owner can write; made at the first start."""

import hashlib
import hmac
import secrets
import stat
from collections.abc import Collection
from pathlib import Path

from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings

_LENGTH = 16
"""Characters of a key, at least; those made here have 51."""


class ApiKeys:
    """The keys that a server accepts; it keeps their digests, which are compared in constant time."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def number(self, authorization: str) -> int | None:
        """Return which key an Authorization header has, counted from 0; None if it has none of them."""
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # All are compared, so that the time does not tell which one it is.
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        return same.index(True) if scheme.lower() == "bearer" and any(same) else None


def load_or_create_keys(file: Path) -> ApiKeys:
    """Return the keys in a file, one per line; a new file gets one random key and is readable by its owner only.

    Raises:
        BadSettings: other users may write to the file, or it holds no key, a short one, or one beyond ASCII.
    """
    if not file.exists():
        write_durably(file, f"sk-{secrets.token_hex(24)}\n".encode(), mode=0o600)
    try:
        status, text = file.stat(), file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadSettings(f"the API keys in {file} cannot be read ({problem}); give another --key-file") from problem
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadSettings(f"other users may write to {file}, which holds the API keys; deny it: chmod go-w {file}")
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if short := [number for number, key in enumerate(keys, start=1) if len(key) < _LENGTH or " " in key]:
        raise BadSettings(f"{file}: key {short[0]} is shorter than {_LENGTH} characters or has a space; write one key per line")
    if other := [number for number, key in enumerate(keys, start=1) if not key.isascii()]:
        raise BadSettings(f"{file}: key {other[0]} has characters beyond ASCII, which clients cannot send; write another one")
    if not keys:
        raise BadSettings(f"{file} holds no API key; write one per line, or remove the file and one is made")
    return ApiKeys(keys)
