"""The interface of data sources, and the data they return."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset


@dataclass(frozen=True, slots=True)
class SourceData:
    """Dialogues without splits, in the order of the input.

    `conversation_by_dialogue` maps (persona id, dialogue id) to the conversation that the dialogue is a part of, if the input names one:
    dialogues of one conversation refer to each other and should be in the same split. `n_beginnings` counts the dialogues left out because
    a longer one begins with all of their turns.
    """

    dataset: Dataset
    location_by_persona: Mapping[str, SourceLocation] = field(default_factory=dict[str, SourceLocation])
    conversation_by_dialogue: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    n_beginnings: int = 0


Source = Callable[[DataSettings, Problems], SourceData]
"""A source returns what it can read, adds a problem for everything else, and raises only if there is nothing to read."""
