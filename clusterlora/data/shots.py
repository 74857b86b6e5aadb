"""Few-shot prompts: exchanges that the persona had before, those most like the question, shown before the dialogue."""

from collections.abc import Sequence

import numpy as np

from clusterlora.ports import Embedder
from clusterlora.values import Exchange, Persona, Turn


def exchanges(persona: Persona) -> tuple[Exchange, ...]:
    """Return every user turn of the persona's train dialogues with the assistant turn that follows it."""
    return tuple(
        Exchange(before.text, after.text)
        for dialogue in persona.of_split("train")
        for before, after in zip(dialogue.turns, dialogue.turns[1:], strict=False)
        if before.role == "user" and after.role == "assistant"
    )


def with_shots(turns: Sequence[Turn], known: Sequence[Exchange], count: int, embedder: Embedder) -> tuple[Turn, ...]:
    """Return the turns with the `count` known exchanges whose question is most like the last user turn, the most similar one last.

    They stand after the system turn. Fewer are shown when fewer are known.
    """
    question = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    if not known or count < 1:
        return tuple(turns)
    asked, *others = embedder.encode([question, *(exchange.question for exchange in known)])
    nearest = np.argsort([float(asked @ other) for other in others], kind="stable")[-count:]
    shown = [turn for i in nearest for turn in (Turn("user", known[i].question), Turn("assistant", known[i].answer))]
    n_system = sum(1 for turn in turns[:1] if turn.role == "system")
    return (*turns[:n_system], *shown, *turns[n_system:])
