"""Whether a conversation is rendered as transformers renders it by itself."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from clusterlora.chat.template import ChatTemplate, render
from clusterlora.values import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 40
"""Characters shown of each rendering, and before them."""


def rendering_difference(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, turns: Sequence[Turn]) -> str:
    """Return the first difference between a prompt and the template's rendering of the turns with their words; empty where they are equal.

    They differ where a template changes words, for example cuts what stands before a `</think>` in an answer.
    """
    ours = "".join(span.text for span in template.prompt(turns))
    messages = [{"role": turn.role, "content": turn.text} for turn in template.accepted(turns)]
    theirs = render(tokenizer, messages, template.source, generation=True)
    if ours == theirs:
        return ""
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    before = ours[max(0, at - _SHOWN) : at]
    return f"after {before!r} it writes {theirs[at : at + _SHOWN]!r}, and what was said is {ours[at : at + _SHOWN]!r}"
