"""Token sequences to learn from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one dialogue; `is_response[t]` says that token t was the assistant's (its end of turn included)."""

    ids: tuple[int, ...]
    is_response: tuple[bool, ...]

    @property
    def n_response_tokens(self) -> int:
        """The tokens that are trained on; token 0 has nothing before it to be predicted from."""
        return sum(self.is_response[1:])
