"""What personas were answered with in their train dialogues, for the metrics that hold answers against it."""

from collections.abc import Iterable, Mapping
from functools import cached_property

from clusterlora.values import Persona


class TrainResponses:
    """Every persona's train responses, collected when a metric first asks. Test and val responses cannot be had from it.

    One object stands for one set of texts: a metric may keep what it worked out for as long as the object lives.
    """

    def __init__(self, personas: Iterable[Persona]) -> None:
        self._personas = tuple(personas)

    @cached_property
    def by_persona(self) -> Mapping[str, tuple[str, ...]]:
        """The responses by persona id, dialogue after dialogue; those without any have an empty tuple."""
        return {
            persona.id: tuple(turn.text for dialogue in persona.of_split("train") for turn in dialogue.turns if turn.role == "assistant")
            for persona in self._personas
        }
