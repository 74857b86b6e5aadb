"""The one prompt of every method: a dialogue becomes system, user, assistant, user, assistant, ... `chat.encoder` renders it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.settings import PreparedModel
from clusterlora.values import Dialogue, Item, Persona, Split, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_system(
    settings: PreparedModel, description: str | None, context: Sequence[tuple[str, str]], turns: Sequence[Turn]
) -> tuple[Turn, ...]:
    """Return the turns after a system turn: the one they begin with, verbatim, else the study's prompt.

    It goes on with the persona, when the study says so, and with what both sides can see.
    """
    n_system = 1 if turns and turns[0].role == "system" else 0
    lines = [turns[0].text if n_system else settings.system_prompt]
    if settings.persona_in_prompt and description:
        lines.append(f"The user: {description}")
    if context:
        lines.append("Now: " + ", ".join(value.replace("_", " ") for _, value in context) + ".")
    return (Turn("system", "\n".join(lines)), *turns[n_system:])


def messages(settings: PreparedModel, persona: Persona, dialogue: Dialogue) -> tuple[Turn, ...]:
    """Return the system turn followed by the dialogue's turns."""
    return with_system(settings, persona.description, dialogue.context, dialogue.turns)


def items(settings: PreparedModel, persona: Persona, split: Split) -> tuple[Item, ...]:
    """Return one item per assistant turn of the persona's dialogues in a split."""
    return tuple(
        Item(f"{dialogue.id}#{index}", persona.id, split, turns[:index], turns[index].text)
        for dialogue in persona.of_split(split)
        for turns in [messages(settings, persona, dialogue)]
        for index, turn in enumerate(turns)
        if turn.role == "assistant"
    )


def prompt_encoder(tokenizer: "PreTrainedTokenizerBase", settings: PreparedModel, *, remember: bool = True) -> PromptEncoder:
    """Return the encoder of a study's prompts, which remembers them unless told not to. Raises ModelUnavailable as `ChatTemplate`."""
    return PromptEncoder(
        tokenizer,
        max_length=settings.max_length,
        arguments=settings.template_arguments,
        date=settings.template_date,
        remember=remember,
    )
