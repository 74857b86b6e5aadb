"""Few-shot prompts: the persona's own exchanges that are most similar to the question, placed before the dialogue."""

from collections.abc import Sequence

import numpy as np

from clusterlora.ports.embedder import Embedder
from clusterlora.values import Exchange, Persona, Turn


def exchanges(persona: Persona) -> tuple[Exchange, ...]:
    """Return every user turn of the persona's train dialogues with the assistant turn that follows it."""
    return tuple(
        Exchange(before.text, after.text)
        for dialogue in persona.of_split("train")
        for before, after in zip(dialogue.turns, dialogue.turns[1:], strict=False)
        if before.role == "user" and after.role == "assistant"
    )


def with_shots(turns: Sequence[Turn], examples: Sequence[Exchange], count: int, embedder: Embedder) -> tuple[Turn, ...]:
    """Return the turns with `count` of the examples inserted after the system turn, fewer if there are fewer.

    Chooses the examples whose questions are most similar to the last user turn, the most similar one last.
    """
    question = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    if not examples or count < 1:
        return tuple(turns)
    embedded, *candidates = embedder.encode([question, *(example.question for example in examples)])
    nearest = np.argsort([float(embedded @ candidate) for candidate in candidates], kind="stable")[-count:]
    shown = [turn for i in nearest for turn in (Turn("user", examples[i].question), Turn("assistant", examples[i].answer))]
    n_system = sum(1 for turn in turns[:1] if turn.role == "system")
    return (*turns[:n_system], *shown, *turns[n_system:])
