"""How much a chat template may do: a folder's template is a program, which may go on for hours or write more than memory holds.

Lines and values are counted. A single expression is computed to its end: `9 ** 9 ** 9`, or a list times a billion, is not refused.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2.utils import Namespace

_STEPS, _STEPS_OF_A_TURN = 100_000, 10_000
"""Lines that may run, of the template as Python, and calls: of templates in use a turn takes some dozens."""
_CHARACTERS, _TIMES_THE_WORDS = 1_000_000, 20
"""Characters, or entries, that any one value may have, and the text: of templates in use some thousands around the words."""


class EndlessTemplate(Exception):
    """A template does more than any that is in use."""


@contextmanager
def bounded(n_turns: int, n_characters: int) -> Generator[None]:
    """Raise EndlessTemplate where the template that is rendered in the block does too much, counted in steps and characters, not in time.

    Args:
        n_turns: turns that are rendered.
        n_characters: characters of their words.
    """
    before = sys.gettrace()
    sys.settrace(_counting(_STEPS + _STEPS_OF_A_TURN * n_turns, _CHARACTERS + _TIMES_THE_WORDS * n_characters))
    try:
        yield
    finally:
        sys.settrace(before)


def _counting(most_steps: int, most_characters: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a function for `sys.settrace`, which raises out of what it traces."""
    steps = written = 0
    is_rendered = False

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps > most_steps:
            raise EndlessTemplate(f"it takes more than {most_steps:,} steps")

    def in_template(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal written
        count()
        if event == "return" and isinstance(value, str):
            written += len(value)
        if written > most_characters or any(_size(one) > most_characters for one in frame.f_locals.values()):
            raise EndlessTemplate(f"it writes more than {most_characters:,} characters")
        return in_template

    def at_call(frame: FrameType, _event: str, _value: Any) -> Any:
        nonlocal is_rendered
        # Jinja compiles a template's source as a file of this name; what runs before it is the compiler.
        is_template = frame.f_code.co_filename == "<template>"
        is_rendered = is_rendered or is_template
        if is_rendered:
            count()
        return in_template if is_template else None

    return at_call


def _size(value: object) -> int:
    """Return the length of a value of a template; of a namespace, that of its longest value."""
    if isinstance(value, str | list | tuple | dict):
        return len(value)
    if isinstance(value, Namespace):
        held: dict[str, object] = object.__getattribute__(value, "_Namespace__attrs")
        return max((_size(one) for one in held.values() if not isinstance(one, Namespace)), default=0)
    return 0
