"""The interface of a judge: which of two answers serves a person better."""

from dataclasses import dataclass
from typing import Literal, Protocol

Preference = Literal["first", "second", "tie", "abstain", "unusable"]
"""An unusable one is a reply that says none of the others; it counts as an abstention."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to a prompt, and what the person was really answered."""

    prompt: str
    reference: str
    first: str
    second: str

    @property
    def swapped(self) -> "AnswerPair":
        """The pair in the other order."""
        return AnswerPair(self.prompt, self.reference, self.second, self.first)


class Judge(Protocol):
    """Somebody who compares answers. `identity` changes with whatever changes its preferences."""

    @property
    def identity(self) -> str:
        """Model and instructions, as a name for what was asked."""
        ...

    def prefer(self, pair: AnswerPair) -> Preference:
        """Return which answer is better. Raises ServiceDown where nobody replies."""
        ...
