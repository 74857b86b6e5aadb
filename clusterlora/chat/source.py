"""The source of a chat template with all that may vary written into it: arguments, reasoning, today's date."""

import json
import re
from collections.abc import Sequence
from datetime import date as Date  # noqa: N812  (a type among arguments of that name)
from datetime import datetime, time
from typing import Any

from clusterlora.errors import BadSettings, ModelUnavailable

_TODAY = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")
_NOT_CALLED = re.compile(r"\{#.*?#\}|strftime_now\s+is\s+(not\s+)?defined", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_]\w*")
_REASONING = "enable_thinking"
"""The argument by which templates of reasoning models switch reasoning off."""


def frozen_source(source: str, arguments: Sequence[tuple[str, str]], date: str | datetime | None) -> str:
    """Return the template with its arguments set at its beginning and with `date` for today.

    Where a template offers to switch reasoning off, it is off unless the arguments say otherwise: answers are learnt and scored, and
    nobody has written down how they were thought of.

    Raises:
        BadSettings: a name that is no argument of a template, or a date that is none.
        ModelUnavailable: the template writes the date in a way that cannot be fixed.
    """
    values: dict[str, Any] = {_REASONING: False} if re.search(rf"\b{_REASONING}\b", source) else {}
    for name, value in arguments:
        if not _NAME.fullmatch(name):
            raise BadSettings(f"model.template_arguments: {name!r} is not a name; use letters, digits and underscores")
        values[name] = _value(value)
    lines = [f"{{% set {name} = {_literal(value)} %}}" for name, value in values.items()]
    return "".join(lines) + (source if date is None else _dated(source, date if isinstance(date, datetime) else _midnight(date)))


def with_system_prompt(source: str, system_prompt: str, *, has_system_role: bool) -> str:
    """Return the template with this text for conversations without a system turn; without that role it leads the first user turn."""
    system = f"{{'role': 'system', 'content': {system_prompt!a}}}"
    given = f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = [{system}] + messages %}}{{% endif %}}"
    if has_system_role:
        return given + source
    text = "(messages[0]['content'] ~ '\\n\\n' if messages[0]['content'] else '') ~ messages[1]['content']"
    led = f"{{'role': 'user', 'content': {text}}}"
    return f"{given}{{% set messages = [{led}] + messages[2:] %}}{source}"


def _dated(source: str, moment: datetime) -> str:
    """Return the template with a moment for the present. Raises ModelUnavailable where it writes the date in a way that cannot be fixed."""
    fixed = _TODAY.sub(lambda call: _literal(moment.strftime(_unescaped(call[2]))), source)
    if "strftime_now" in _NOT_CALLED.sub("", fixed):
        raise ModelUnavailable(
            "the chat template computes how it writes the date, so that no day can be fixed; write the date into chat_template.jinja"
        )
    return fixed


def _midnight(date: str) -> datetime:
    try:
        return datetime.combine(Date.fromisoformat(date), time())
    except ValueError as error:
        raise BadSettings(f"model.template_date = {date!r}: write it as YYYY-MM-DD") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _literal(value: Any) -> str:
    """Return how Jinja writes a value; characters beyond ASCII as they are, because it knows no pairs of surrogates."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _unescaped(literal: str) -> str:
    """Return what Jinja reads between the quotes of a literal."""
    return literal.encode("ascii", "backslashreplace").decode("unicode-escape")
