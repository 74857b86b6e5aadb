"""What stands between the header of an assistant's turn and its words: in a prompt, and where the answer has been given."""

import re
from itertools import takewhile

REASONING = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
"""What opens a block of reasoning, and what closes it."""

_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_CLOSING_TAG = re.compile(r"[<\[]/|end|^<[^|].*\|>$", re.IGNORECASE)
"""How a tag looks that closes something: `</think>`, `[/THINK]`, `<|END_THINKING|>`, and Gemma 4's `<channel|>`."""
_PIECE = re.compile(rf"{_TAG.pattern}|\w+|\s+|.")


def lead_of(prompted: str, given: str) -> str:
    """Return what a template writes before the words of an answer beyond what its prompt ends with.

    What a prompt alone holds, such as an empty block of reasoning, is followed by the words directly; by the tag of a response where the
    template writes one before every answer.

    Args:
        prompted: what stands after the last turn of a prompt.
        given: what stands after that turn where the answer follows.
    """
    if given.startswith(prompted):
        return given.removeprefix(prompted)
    asked, written = _after_header(prompted, given)
    passed = {*_TAG.findall(asked), *REASONING.values()}
    last = max((match.end() for match in _TAG.finditer(written) if match[0] in passed), default=0)
    return written[last:].lstrip()


def opened_before_answers(prompted: str, given: str) -> str:
    """Return the tag that a prompt ends with and a given answer closes first, or what the prompt alone holds and leaves open; else nothing.

    Arguments as for `lead_of`.
    """
    asked, written = _after_header(prompted, given)
    if asked.strip():
        return "" if _is_closed(asked.strip()) else asked.strip()
    before, after = _TAG.findall(prompted), _TAG.findall(written)
    return before[-1] if before and after and after[0].replace("/", "", 1) == before[-1] != after[0] else ""


def _after_header(prompted: str, given: str) -> tuple[str, str]:
    """Return what is left of two texts after what both begin with, whatever white space is between; no tag and no word is cut in two."""
    pieces = [_PIECE.findall(text) for text in (prompted, given)]
    alike = (one == other or (one.isspace() and other.isspace()) for one, other in zip(*pieces, strict=False))
    n_alike = sum(1 for _ in takewhile(bool, alike))
    asked, written = ("".join(one[n_alike:]) for one in pieces)
    return asked, written


def _is_closed(text: str) -> bool:
    """Return whether a text ends with a tag that closes something, or that others lead to, as the header of a channel does."""
    tags = _TAG.findall(text)
    return bool(tags) and text.endswith(tags[-1]) and (len(set(tags)) > 1 or bool(_CLOSING_TAG.search(tags[-1])))
