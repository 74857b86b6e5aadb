"""Control tokens: strings that a tokenizer turns into one token, and that words of people must not be taken for."""

import re
from collections.abc import Iterable, Iterator


class ControlTokens:
    """A set of control tokens, to be found in text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # The longest first, so that a token wins over those it begins with.
        longest_first = sorted({token for token in tokens if token}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._longest = max(map(len, longest_first), default=0)
        self._neighbours = {token[i : i + 2] for token in longest_first for i in range(len(token) - 1)}

    def through_first(self, text: str) -> str:
        """Return the text up to the end of its first control token; empty where it holds none."""
        match = self._pattern.search(text)
        return text[: match.end()] if match else ""

    def last(self, text: str) -> str:
        """Return the last control token of a text. Raises IndexError where it holds none."""
        return self._pattern.findall(text)[-1]

    def uncut(self, text: str, at: int) -> int:
        """Return a position in a text, moved to the end of the control token that it stands in."""
        return next((match.end() for match in self._pattern.finditer(text) if match.start() < at < match.end()), at)

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the parts of a text in order, and whether each is a control token."""
        at = 0
        for match in self._pattern.finditer(text):
            if at < match.start():
                yield text[at : match.start()], False
            yield match[0], True
            at = match.end()
        if at < len(text):
            yield text[at:], False

    def joins(self, before: str, after: str) -> bool:
        """Return whether a control token stands across the place where two texts meet."""
        if before[-1:] + after[:1] not in self._neighbours:
            return False
        near = before[-self._longest :]
        text, edge = near + after[: self._longest], len(near)
        return any((match := self._pattern.match(text, start)) and match.end() > edge for start in range(edge))
