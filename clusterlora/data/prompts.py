"""The one prompt of every method: training sequences and evaluation prompts are cut from the same rendering.

A dialogue becomes system, user, assistant, user, assistant, ... Every assistant turn is trained on (`encode_dialogue`) and
asked for (`items`, `encode_messages`). Text is tokenised piece by piece, cut where an assistant turn begins and ends, so the
ids of a prompt in evaluation are the ids before that turn in training, for every tokenizer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from clusterlora.errors import BadData, ModelUnavailable
from clusterlora.settings import ModelSettings
from clusterlora.values import Dialogue, Item, Persona, Split, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "\ue000"
"""A private-use character: marks where the chat template puts an assistant's words."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one dialogue; `is_response[t]` says that token t was the assistant's (its end-of-turn included)."""

    ids: tuple[int, ...]
    is_response: tuple[bool, ...]

    @property
    def n_response_tokens(self) -> int:
        """The tokens that are trained on; token 0 has nothing before it to be predicted from."""
        return sum(self.is_response[1:])


def system_text(settings: ModelSettings, description: str | None, context: Sequence[tuple[str, str]]) -> str:
    """Return the system turn: the study's prompt, the persona when the study says so, and what both sides can see."""
    lines = [settings.system_prompt]
    if settings.persona_in_prompt and description:
        lines.append(f"The user: {description}")
    if context:
        lines.append("Now: " + ", ".join(value.replace("_", " ") for _, value in context) + ".")
    return "\n".join(lines)


def messages(settings: ModelSettings, persona: Persona, dialogue: Dialogue) -> tuple[Turn, ...]:
    """Return the system turn followed by the dialogue's turns."""
    return (Turn("system", system_text(settings, persona.description, dialogue.context)), *dialogue.turns)


def items(settings: ModelSettings, persona: Persona, split: Split) -> tuple[Item, ...]:
    """Return one item per assistant turn of the persona's dialogues in a split."""
    return tuple(
        Item(f"{dialogue.id}#{index}", persona.id, split, turns[:index], turns[index].text)
        for dialogue in persona.of_split(split)
        for turns in [messages(settings, persona, dialogue)]
        for index, turn in enumerate(turns)
        if turn.role == "assistant"
    )


class PromptEncoder:
    """Renders with the tokenizer's own chat template and cuts the text at the edges of assistant turns."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> None:
        if not tokenizer.chat_template:
            raise ModelUnavailable(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model")
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._ids_by_text: dict[str, tuple[int, ...]] = {}

    def encode_messages(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Return the ids to generate from: everything up to where the next assistant turn begins, oldest tokens cut first."""
        return self.encode_prompts([turns])[0]

    def encode_prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[tuple[int, ...]]:
        """Return what `encode_messages` returns for each; templates and tokenizers are several times faster on many at once."""
        return [sequence.ids for sequence in self._sequences(self._pieces(conversations))]

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Return the ids of an assistant turn, end-of-turn token included."""
        return (*self._ids(text), *self._end_of_turn())

    def encode_dialogue(self, turns: Sequence[Turn]) -> TokenSequence:
        """Return the whole dialogue as one sequence, every assistant turn marked.

        What follows the last assistant turn teaches nothing and is left out. Dialogues over `max_length` lose their oldest tokens.

        Raises:
            BadData: no assistant turn.
        """
        return self.encode_dialogues([turns])[0]

    def encode_dialogues(self, dialogues: Iterable[Sequence[Turn]]) -> list[TokenSequence]:
        """Return what `encode_dialogue` returns for each; templates and tokenizers are several times faster on many at once."""
        cut = [(turns[:last], turns[last].text) for turns in dialogues for last in [_last_response(turns)]]
        before = self._pieces([turns for turns, _ in cut])
        return self._sequences([[*pieces, (text, True)] for pieces, (_, text) in zip(before, cut, strict=True)])

    def _sequences(self, cut: Sequence[Sequence[tuple[str, bool]]]) -> list[TokenSequence]:
        self._tokenise(text for pieces in cut for text, _ in pieces)
        return [self._sequence(pieces) for pieces in cut]

    def _sequence(self, pieces: Sequence[tuple[str, bool]]) -> TokenSequence:
        ids: list[int] = []
        is_response: list[bool] = []
        for text, response in pieces:
            piece = self.encode_response(text) if response else self._ids(text)
            ids += piece
            is_response += [response] * len(piece)
        return TokenSequence(tuple(ids[-self._max_length :]), tuple(is_response[-self._max_length :]))

    def _pieces(self, conversations: Sequence[Sequence[Turn]]) -> list[list[tuple[str, bool]]]:
        """Return each one's (text, is_response) pieces up to the generation prompt, end-of-turn belonging to the response piece.

        Found by rendering once with placeholders for the assistant's words, so no template has to be understood.
        """
        probed = [
            [{"role": t.role, "content": f"{_PROBE}{i}{_PROBE}" if t.role == "assistant" else t.text} for i, t in enumerate(turns)]
            for turns in conversations
        ]
        texts = self._tokenizer.apply_chat_template(probed, tokenize=False, add_generation_prompt=True) if probed else []
        return [self._cut(str(text), turns) for text, turns in zip(texts, conversations, strict=True)]

    def _cut(self, text: str, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        end = self._end_text()
        pieces: list[tuple[str, bool]] = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, found, text = text.partition(f"{_PROBE}{index}{_PROBE}")
            if not found:
                raise ModelUnavailable("the chat template drops an earlier assistant turn; clusterlora needs one that keeps the dialogue")
            pieces += [(before, False), (turn.text, True)]
            # encode_response adds the end-of-turn token; it must not be there twice.
            text = text.removeprefix(end)
        return [*pieces, (text, False)]

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._ids_by_text:
            self._tokenise([text])
        return self._ids_by_text[text]

    def _tokenise(self, texts: Iterable[str]) -> None:
        """Remember the ids of texts that were not seen before."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._ids_by_text]
        if fresh:
            found = cast("list[list[int]]", self._tokenizer(fresh, add_special_tokens=False)["input_ids"])
            self._ids_by_text.update(zip(fresh, map(tuple, found), strict=True))

    def _end_of_turn(self) -> tuple[int, ...]:
        return (int(self._tokenizer.eos_token_id),)  # pyright: ignore[reportArgumentType]

    def _end_text(self) -> str:
        return str(self._tokenizer.eos_token)


def _last_response(turns: Sequence[Turn]) -> int:
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise BadData("a dialogue without an assistant turn cannot be trained on; remove it")
    return last
