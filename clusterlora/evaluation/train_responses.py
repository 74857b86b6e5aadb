"""The personas' train responses, for metrics that compare answers with them."""

from collections.abc import Iterable, Mapping
from functools import cached_property

from clusterlora.values import Persona


class TrainResponses:
    """Every persona's train responses, collected on first use; it gives no access to val and test responses.

    An object's texts never change, so a metric may cache results by object.
    """

    def __init__(self, personas: Iterable[Persona]) -> None:
        self._personas = tuple(personas)

    @cached_property
    def by_persona(self) -> Mapping[str, tuple[str, ...]]:
        """The responses by persona id, in dialogue order; an empty tuple for personas without any."""
        return {
            persona.id: tuple(turn.text for dialogue in persona.of_split("train") for turn in dialogue.turns if turn.role == "assistant")
            for persona in self._personas
        }
