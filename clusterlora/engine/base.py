"""The frozen base model that every adapter is added to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clusterlora.chat.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen base model in memory. `revision` identifies it: weights, configuration, tokenizer and chat template."""

    name: str
    revision: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def pad_id(self) -> int:
        """The padding id; padding is always masked, so it may equal an end id."""
        return int(self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer: the template's end of turn, the tokenizer's end of text, and those of the generation settings."""
        eos = self.model.generation_config.eos_token_id if self.model.generation_config else None
        generation_ends = eos if isinstance(eos, list) else [eos]
        end = self.tokenizer.convert_tokens_to_ids(ChatTemplate(self.tokenizer).end_token)
        return frozenset(int(i) for i in (end, self.tokenizer.eos_token_id, *generation_ends) if i is not None)  # pyright: ignore[reportArgumentType]
