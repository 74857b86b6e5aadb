"""Messages as callers and people's files write them, {"role": ..., "content": ...}, as turns."""

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from clusterlora.errors import BadData
from clusterlora.values import Role, Turn


def read_messages(messages: Iterable[Any]) -> tuple[Turn, ...]:
    """Return the turns of a conversation. Raises BadData as `read_message`; names the message's number, from 0."""
    turns = []
    for number, message in enumerate(messages):
        try:
            turns.append(read_message(message))
        except BadData as problem:
            raise BadData(f"message {number}: {problem}") from problem
    return tuple(turns)


def read_message(message: Any) -> Turn:
    """Return the turn that a message is. Raises BadData where it is no mapping with a known role and text of whole characters."""
    fields: Mapping[str, Any] = message if isinstance(message, Mapping) else {}
    role, content = fields.get("role"), fields.get("content")
    if role not in get_args(Role) or not isinstance(content, str):
        raise BadData(f"{message!r:.200} is not {{role: {'|'.join(get_args(Role))}, content: text}}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise BadData(f"content has half a character at {error.start} (a lone surrogate); write the whole character") from error
    return Turn(cast("Role", role), content)
