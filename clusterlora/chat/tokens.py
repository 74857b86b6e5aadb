"""Rendered text as token ids, where words that look like control tokens stay words."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from clusterlora.chat.control import ControlTokens
from clusterlora.chat.panics import panics_refused
from clusterlora.chat.template import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

_MOST_REMEMBERED = 4_000_000
"""Tokens that a `TextEncoder` remembers, some 50 MB of ids and texts."""

_AT_ONCE = 1_000
"""Texts that are tokenised in one call: many are faster, and what the call returns for each takes many times the memory of its ids."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised in one go. In a plain piece no added token is recognised."""

    text: str
    is_plain: bool = False


Text = tuple[Piece, ...]


def pieces(spans: Iterable[Span], control: ControlTokens) -> Text:
    """Return the text of the spans in as few pieces as possible: one, unless words hold or complete a control token.

    A control token within words is a plain piece of its own; one that words and template would make together is cut where they meet.
    """
    pieces: list[Piece] = []
    for span in spans:
        parts = control.split(span.text) if span.is_data else [(span.text, False)]
        for text, is_plain in parts:
            if pieces and not is_plain and not pieces[-1].is_plain and not control.joins(pieces[-1].text, text):
                pieces[-1] = Piece(pieces[-1].text + text)
            else:
                pieces.append(Piece(text, is_plain))
    return tuple(pieces)


class TextEncoder:
    """Tokenises texts and remembers what it has tokenised last: prompts come again for every adapter that answers them.

    Where they do not, as those of requests, `remember` is False: nothing that was said stays in memory.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, remember: bool = True) -> None:
        self._tokenizer = tokenizer
        self._remember = remember
        self._ids_by_text: dict[str, Ids] = {}
        self._n_remembered = 0
        # One object per number: as many as there are tokens would take four times the memory of the ids.
        self._number: dict[int, int] = {}
        self._newline = self._tokenised(["\n"])[0]

    def encode(self, texts: Iterable[Text]) -> list[Ids]:
        """Return the ids of each text; tokenizers are several times faster on many at once."""
        every = list(texts)
        fresh = list(dict.fromkeys(text[0].text for text in every if _is_one_piece(text) and text[0].text not in self._ids_by_text))
        for start in range(0, len(fresh), _AT_ONCE):
            at_once = fresh[start : start + _AT_ONCE]
            for text, ids in zip(at_once, self._tokenised(at_once), strict=True):
                self._ids_by_text[text] = ids
                self._n_remembered += len(ids)
        encoded = [self._ids_by_text[text[0].text] if _is_one_piece(text) else self._in_pieces(text) for text in every]
        self._forget()
        return encoded

    def _forget(self) -> None:
        """Forget the texts that came first, as far as there are too many; all of them where none is remembered."""
        most = _MOST_REMEMBERED if self._remember else 0
        while self._n_remembered > most or (self._ids_by_text and not self._remember):
            oldest = next(iter(self._ids_by_text))
            self._n_remembered -= len(self._ids_by_text.pop(oldest))

    def _in_pieces(self, text: Text) -> Ids:
        ids: list[int] = []
        for number, piece in enumerate(text):
            encode = self._continued if number else self._begun
            piece_ids = encode(piece)
            if piece.is_plain and self._tokenizer.convert_tokens_to_ids(piece.text) in piece_ids:
                # Added tokens that are not special are recognised all the same; cut in two they are not.
                piece_ids = encode(Piece(piece.text[:1])) + self._continued(Piece(piece.text[1:]))
            ids += piece_ids
        return tuple(ids)

    def _begun(self, piece: Piece) -> Ids:
        return self._tokenised([piece.text], plain=piece.is_plain)[0]

    def _continued(self, piece: Piece) -> Ids:
        """Return the ids of a piece in the middle of a text: without the space that some tokenizers put before every text."""
        after_newline = self._tokenised([f"\n{piece.text}"], plain=piece.is_plain)[0]
        if after_newline[: len(self._newline)] == self._newline:
            return after_newline[len(self._newline) :]
        return self._begun(piece)

    def _tokenised(self, texts: list[str], *, plain: bool = False) -> list[Ids]:
        with panics_refused(f"the tokenizer of {self._tokenizer.name_or_path!r}"):
            ids_of_texts = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        number = self._number
        return [tuple([number.setdefault(one, one) for one in ids]) for ids in cast("list[list[int]]", ids_of_texts)]


def _is_one_piece(text: Text) -> bool:
    return len(text) == 1 and not text[0].is_plain
