"""How long a study's examples are in its base model's tokens, and the limits that hold most of them whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.data.labels import longest_label
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.data.summary import Distribution, TokenSummary
from clusterlora.settings import LEAST_ANSWER, LEAST_LENGTH, DataSettings, Lengths, PreparedModel
from clusterlora.values import Persona, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COVERED = 0.95
"""Share of the train examples that limits chosen by `covering` hold whole."""

_UNLIMITED = 1 << 30
_UNKNOWN_MEMORY = 2048
_PEOPLE_AT_ONCE = 64
_LENGTH_STEP, _ANSWER_STEP = 32, 8


@dataclass(frozen=True, slots=True)
class ExampleLength:
    """Tokens of one assistant turn: of its prompt with all history and without any, and of its answer, end of turn included.

    `label` are those of the longest label that it is scored with; 0 where answers are text.
    """

    prompt: int
    without_history: int
    answer: int
    is_train: bool
    label: int = 0

    @property
    def needed(self) -> int:
        """The smallest `max_length` under which no turn is dropped: a quarter of it is kept for the answer."""
        return max(self.prompt + max(self.answer, self.label), ceil(4 * self.prompt / 3))

    @property
    def least(self) -> int:
        """The smallest `max_length` under which it can be asked at all, without its history."""
        return self.without_history + max(self.answer, self.label)


def example_lengths(
    personas: Sequence[Persona], tokenizer: "PreTrainedTokenizerBase", model: PreparedModel, data: DataSettings
) -> list[ExampleLength]:
    """Return the lengths of every assistant turn, as the study's prompts are rendered; dialogues without splits count as train.

    Raises:
        ModelUnavailable: as `ChatTemplate`.
    """
    encoder = prompt_encoder(tokenizer, replace(model, max_length=_UNLIMITED))
    _, label = longest_label(data, personas, encoder)
    starts = range(0, len(personas), _PEOPLE_AT_ONCE)
    return [one for start in starts for one in _lengths(personas[start : start + _PEOPLE_AT_ONCE], encoder, model, label)]


def _lengths(personas: Sequence[Persona], encoder: PromptEncoder, model: PreparedModel, label: int) -> Iterator[ExampleLength]:
    asked = [
        (turns[:i], turn.text, dialogue.split in ("train", None))
        for persona in personas
        for dialogue in persona.dialogues
        for turns in [encoder.taken(messages(model, persona, dialogue))]
        for i, turn in enumerate(turns)
        if turn.role == "assistant" and any(earlier.role == "user" for earlier in turns[:i])
    ]
    whole = encoder.encode_turns([(turns, text) for turns, text, _ in asked])
    shortest = [_without_history(turns) for turns, _, _ in asked]
    changed = [number for number, (turns, _, _) in enumerate(asked) if len(shortest[number]) < len(turns)]
    prompts = dict(zip(changed, encoder.encode_prompts([shortest[number] for number in changed]), strict=True)) if changed else {}
    for number, (turn, (_, _, is_train)) in enumerate(zip(whole, asked, strict=True)):
        yield ExampleLength(len(turn.prompt), len(prompts.get(number, turn.prompt)), len(turn.response), is_train, label)


def covering(
    lengths: Sequence[ExampleLength],
    *,
    n_positions: int | None,
    n_in_memory: int | None,
    n_shots: int = 0,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
) -> Lengths:
    """Return limits that hold `COVERED` of the train examples whole, and every example without its history, as far as they fit.

    Limits that are given stay. The test split counts for one thing only: that its prompts can be asked.

    Args:
        n_positions: positions of the base model; None where it has no limit.
        n_in_memory: tokens of the longest sequence that memory holds; None where that is not known.
        n_shots: own examples that a method puts before the dialogue.
    """
    positions = n_positions or _UNLIMITED
    train = [length for length in lengths if length.is_train] or list(lengths)
    if max_new_tokens is None:
        longest_answer = (
            min(positions // 2, positions - LEAST_LENGTH) if max_length is None else min(max_length // 2, positions - max_length)
        )
        wanted = _rounded(_quantile([length.answer for length in train]), _ANSWER_STEP)
        max_new_tokens = max(LEAST_ANSWER, min(max(wanted, 2 * _ANSWER_STEP), longest_answer))
    if max_length is None:
        shots = n_shots * _quantile([length.least for length in train])
        wanted = max(_quantile([length.needed for length in train]) + ceil(4 * shots / 3), *(length.least for length in lengths))
        wanted = _rounded(max(wanted, max_new_tokens + 1), _LENGTH_STEP)
        max_length = max(LEAST_LENGTH, min(wanted, positions - max_new_tokens, n_in_memory or _UNKNOWN_MEMORY))
    return Lengths(max_length, max_new_tokens)


def token_summary(base: str, lengths: Sequence[ExampleLength], given: Lengths, needed: Lengths) -> TokenSummary:
    """Return how examples of these lengths fit the given limits, and the limits that they need, as `covering` returns them."""
    train = [length for length in lengths if length.is_train] or list(lengths)
    n_train = max(len(train), 1)
    return TokenSummary(
        base=base,
        prompt_tokens=Distribution.of(length.prompt for length in lengths),
        answer_tokens=Distribution.of(length.answer for length in lengths),
        max_length=given.max_length,
        max_new_tokens=given.max_new_tokens,
        over_length=sum(length.needed > given.max_length for length in lengths),
        answers_cut=sum(length.answer > given.max_new_tokens for length in lengths),
        needed_max_length=needed.max_length,
        needed_max_new_tokens=needed.max_new_tokens,
        needed_holds_examples=sum(length.needed <= needed.max_length for length in train) / n_train,
        needed_holds_answers=sum(length.answer <= needed.max_new_tokens for length in train) / n_train,
        needed_asks_all=all(length.least <= needed.max_length for length in lengths),
    )


def _without_history(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the system turn and everything from the last user turn on."""
    system = tuple(turn for turn in turns[:1] if turn.role == "system")
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    return (*system, *turns[last:])


def _quantile(values: Sequence[int]) -> int:
    """Return the smallest of the values that covers the share `COVERED` of them."""
    return sorted(values)[ceil(COVERED * len(values)) - 1]


def _rounded(tokens: int, step: int) -> int:
    return -(-tokens // step) * step
