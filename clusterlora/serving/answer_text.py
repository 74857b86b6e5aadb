"""An answer's text while its tokens come: what may be sent, so that all that was sent is the evaluated answer, and where it stops."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class AnswerText:
    """The text of one answer: its tokens decoded, up to the first stop sequence, without its lead and white space around it.

    Text is sent once no later token can change it: not white space at its end, not half a character, not what may begin a stop sequence.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str] = (), lead: Sequence[int] = ()) -> None:
        """Begin an answer; `lead` as in `PromptEncoder`."""
        self._tokenizer = tokenizer
        self._lead = list(lead)
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._decoded = ""
        self._sent = 0
        # A tokenizer that removes spaces before punctuation changes text that it has decoded before.
        self._at_once = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self.is_stopped = False
        """Whether a stop sequence has come; further tokens are not added."""

    @property
    def n_tokens(self) -> int:
        """The tokens that have been added."""
        return len(self._ids)

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._decoded.strip()

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens; return the text that can now be sent."""
        if self.is_stopped or not ids:
            return ""
        # Where nothing stops an answer, several tokens are decoded at once.
        for part in [[token] for token in ids] if self._stop else [ids]:
            self._ids += part
            self._decoded = str(self._tokenizer.decode(self._words(), skip_special_tokens=True))
            cuts = [at for stop in self._stop if (at := self._decoded.find(stop)) >= 0]
            if cuts:
                self._decoded, self.is_stopped = self._decoded[: min(cuts)], True
                break
        return "" if self._at_once else self._unsent(self._settled())

    def _words(self) -> list[int]:
        n_lead = len(self._lead)
        # What may become the lead is no words yet.
        return self._ids[n_lead:] if self._ids[:n_lead] == self._lead[: len(self._ids)] else self._ids

    def rest(self) -> str:
        """Return the text that has not been sent; to be called once no token will follow."""
        return self._unsent(self._decoded)

    def _unsent(self, settled: str) -> str:
        text = settled.strip()
        unsent, self._sent = text[self._sent :], max(self._sent, len(text))
        return unsent

    def _settled(self) -> str:
        """Return the decoded text without what the next tokens may change."""
        if self.is_stopped:
            return self._decoded
        text = self._decoded.rstrip(_INCOMPLETE)
        begun = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return text[: len(text) - begun]
