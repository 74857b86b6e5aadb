"""Conversations as token ids: what is learnt, scored and served is the same rendering of the base's chat template.

Every assistant turn is trained on (`encode_dialogues`) and asked for (`encode_turns`), after exactly the same tokens.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from clusterlora.chat.template import ChatTemplate, merged
from clusterlora.chat.tokens import Ids, TextEncoder, pieces
from clusterlora.errors import BadData
from clusterlora.values import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one dialogue; `is_response[t]` says that token t was the assistant's (its end of turn included)."""

    ids: tuple[int, ...]
    is_response: tuple[bool, ...]

    @property
    def n_response_tokens(self) -> int:
        """The tokens that are trained on; token 0 has nothing before it to be predicted from."""
        return sum(self.is_response[1:])


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """An assistant's turn: the ids that are asked, those that are to come, and how many of the oldest turns did not fit."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    n_dropped: int


class PromptEncoder:
    """Encodes turns as the tokenizer's chat template renders them, at most `max_length` tokens with the answer.

    A prompt is the template's own rendering up to the answer, whether it is learnt from, scored or served. Where it gets too long, whole
    turns are dropped, the oldest first; the system text and what the user said last stay. A quarter of `max_length` is kept free for the
    answer, more where a longer one is known.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int,
        arguments: Sequence[tuple[str, str]] = (),
        date: str | None = None,
        remember: bool = True,
    ) -> None:
        """Read off what the template does; `remember` as in `TextEncoder`.

        Raises:
            ModelUnavailable: as `ChatTemplate`, or the template leaves reasoning open before an answer.
        """
        self.template = ChatTemplate(tokenizer, arguments, date)
        self.template.refuse_open_reasoning()
        self._text = TextEncoder(tokenizer, remember=remember)
        self._max_length = max_length
        self._tokenizer = tokenizer

    def can_begin(self, turns: Sequence[Turn]) -> bool:
        """Return whether the template takes a dialogue by who speaks first in it."""
        first = next((turn.role for turn in turns if turn.role != "system"), None)
        return first != "assistant" or (self.template.may_begin_with_assistant and self.template.has_system_role)

    def taken(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Return a dialogue as the template takes it, turns of one side in a row as one; nothing where it cannot begin so."""
        if not self.can_begin(turns):
            return ()
        return merged(turns) if self.template.needs_alternation else tuple(turns)

    def encode_messages(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Return the ids to generate from: everything up to where the next assistant turn begins.

        What is too long by its characters is left out, or refused, before it is tokenised.

        Raises:
            BadData: it is too long without any history.
        """
        return self.encode_prompts([self._without_surplus(turns)])[0]

    @cached_property
    def _max_characters(self) -> int:
        """As many tokens as are allowed, each of them the longest that there is."""
        return self._max_length * max(map(len, self._tokenizer.get_vocab()), default=1)

    def _without_surplus(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Return the turns without the oldest that cannot fit. Raises BadData: system text and question cannot."""
        n_system = 1 if turns and turns[0].role == "system" else 0
        system, others = tuple(turns[:n_system]), tuple(turns[n_system:])
        n_left = [len(turn.text) for turn in others]
        for i in reversed(range(len(others) - 1)):
            n_left[i] += n_left[i + 1]
        n_allowed = self._max_characters - sum(len(turn.text) for turn in system)
        starts = _starts(others) or [0]
        start = next((start for start in starts if sum(n_left[start : start + 1]) <= n_allowed), None)
        if start is None:
            n_least = sum(n_left[starts[-1] :][:1])
            raise BadData(
                f"{self._max_characters - n_allowed + n_least} characters of system text and question are more than the "
                f"{self._max_characters} that model.max_length = {self._max_length} tokens can have; raise it or shorten them"
            )
        return system + others[start:]

    def encode_prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[tuple[int, ...]]:
        """Return what `encode_messages` returns for each; tokenizers are several times faster on many at once."""
        return [turn.prompt for turn in self.encode_turns([(turns, None) for turns in conversations])]

    def encode_turns(self, asked: Sequence[tuple[Sequence[Turn], str | None]]) -> list[EncodedTurn]:
        """Return the encoding of each assistant turn: what was said before, and its words, None where they are not known.

        Raises:
            BadData: one is too long without any history.
        """
        encoded: list[EncodedTurn] = []
        for turn in self.try_turns(asked):
            if isinstance(turn, str):
                raise BadData(f"{turn}; raise it or shorten them")
            encoded.append(turn)
        return encoded

    def try_turns(self, asked: Sequence[tuple[Sequence[Turn], str | None]]) -> list[EncodedTurn | str]:
        """Return what `encode_turns` returns, and for a turn that is too long without any history what is too long."""
        return [
            self._fitted(turns, text, prompt, response)
            for (turns, text), (prompt, response) in zip(asked, self._encode(asked), strict=True)
        ]

    @cached_property
    def lead(self) -> Ids:
        """What an assistant writes before the words of every answer, such as the name of a channel; empty where that is white space."""
        question = (Turn("user", "?"),)
        first, *_ = self.template.response(question, "x")
        if first.is_data or not first.text.strip():
            return ()
        responses = [response for _, response in self._encode([(question, text) for text in ("x", "7")])]
        return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*responses, strict=False)))

    def words(self, ids: Sequence[int]) -> str:
        """Return the words of an answer: without what leads every answer, control tokens, and white space around them."""
        n_lead = len(self.lead) if tuple(ids[: len(self.lead)]) == self.lead else 0
        return str(self._tokenizer.decode(list(ids[n_lead:]), skip_special_tokens=True)).strip()

    def n_response_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text takes as an answer, the end of its turn included."""
        return [len(response) for _, response in self._encode([((Turn("user", "?"),), text) for text in texts])]

    def encode_dialogues(self, dialogues: Iterable[Sequence[Turn]]) -> list[TokenSequence]:
        """Return the training sequences of all dialogues, in order, with every assistant turn once, after the prompt it is asked with.

        A dialogue is usually one sequence, because each prompt begins with the previous one and its answer. A further sequence starts where
        the template renders history differently (reasoning is left out, a system text moves) or old turns are dropped. Turns after the last
        assistant turn are left out. Tokenizers are several times faster on many texts at once.

        Raises:
            BadData: a dialogue without assistant turn, or a turn that is too long without any history.
        """
        answers = [[(turns[:i], turns[i].text) for i in _answers(turns)] for turns in dialogues]
        encoded = iter(self.encode_turns([answer for of_dialogue in answers for answer in of_dialogue]))
        return [sequence for of_dialogue in answers for sequence in _sequences([next(encoded) for _ in of_dialogue])]

    def encode_answers(self, asked: Sequence[tuple[Sequence[Turn], str]]) -> list[TokenSequence]:
        """Return a training sequence per assistant turn, of which its words alone are learnt: what was said before is read.

        Raises:
            BadData: one is too long without any history.
        """
        return [
            TokenSequence(turn.prompt + turn.response, (False,) * len(turn.prompt) + (True,) * len(turn.response))
            for turn in self.encode_turns(asked)
        ]

    def _encode(self, asked: Sequence[tuple[Sequence[Turn], str | None]]) -> list[tuple[Ids, Ids]]:
        """Return (prompt, response) of each turn, however long."""
        control = self.template.control
        prompts = [self.template.prompt(turns) for turns, _ in asked]
        responses = [() if text is None else self.template.response(turns, text) for turns, text in asked]
        prompt_ids = self._text.encode(pieces(prompt, control) for prompt in prompts)
        # Tokenised together: some tokenizers write a word in the middle of a text otherwise than at its beginning.
        whole_ids = self._text.encode(pieces((*p, *r), control) for p, r in zip(prompts, responses, strict=True))
        return [
            (ids, whole[len(ids) :] if whole[: len(ids)] == ids else self._text.encode([pieces(response, control)])[0])
            for ids, whole, response in zip(prompt_ids, whole_ids, responses, strict=True)
        ]

    def _fitted(self, turns: Sequence[Turn], text: str | None, prompt: Ids, response: Ids) -> EncodedTurn | str:
        """Return a turn without the oldest of those before it, as far as needed; what is too long, where that is not enough."""
        limit = self._max_length - max(len(response), self._max_length // 4)
        if len(prompt) <= limit:
            return EncodedTurn(prompt, response, 0)
        n_system = 1 if turns[0].role == "system" else 0
        starts = _starts(turns[n_system:])

        def beginning(start: int) -> tuple[Ids, Ids]:
            return self._encode([((*turns[:n_system], *turns[n_system + start :]), text)])[0]

        fits = bisect_left(starts, True, key=lambda start: len(beginning(start)[0]) <= limit)
        start = starts[min(fits, len(starts) - 1)]
        prompt, response = beginning(start)
        # A prompt without its answer leaves room for one token of it.
        if len(prompt) + max(len(response), 1) > self._max_length:
            answer = f" and {len(response)} of the answer" if response else ""
            return f"{len(prompt)} tokens of system text and question{answer} are more than model.max_length = {self._max_length}"
        return EncodedTurn(prompt, response, start)


def _answers(turns: Sequence[Turn]) -> list[int]:
    indices = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not indices:
        raise BadData("a dialogue without an assistant turn cannot be trained on; remove it")
    return indices


def _starts(turns: Sequence[Turn]) -> list[int]:
    """Return where the turns that are kept may begin: at the first one, or at a user turn up to the last of them."""
    return [i for i, turn in enumerate(turns) if i == 0 or turn.role == "user"]


def _sequences(turns: Sequence[EncodedTurn]) -> list[TokenSequence]:
    sequences: list[TokenSequence] = []
    for turn in turns:
        so_far = sequences[-1] if sequences else TokenSequence((), ())
        if turn.prompt[: len(so_far.ids)] == so_far.ids:
            del sequences[-1:]
        else:
            so_far = TokenSequence((), ())
        not_learnt = (False,) * (len(turn.prompt) - len(so_far.ids))
        learnt = (True,) * len(turn.response)
        sequences.append(TokenSequence(turn.prompt + turn.response, so_far.is_response + not_learnt + learnt))
    return sequences
