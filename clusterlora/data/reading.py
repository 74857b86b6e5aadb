"""What a source hands over, and what a source is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clusterlora.data.problems import Place, Problems
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset


@dataclass(frozen=True, slots=True)
class Reading:
    """Unsplit dialogues in the order of the input.

    `conversation_by_dialogue` maps (persona id, dialogue id) to what the dialogue was cut from, where the input says so:
    dialogues of one conversation know about each other and should not straddle splits.
    """

    dataset: Dataset
    place_by_persona: Mapping[str, Place] = field(default_factory=dict[str, Place])
    conversation_by_dialogue: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])


Source = Callable[[DataSettings, Problems], Reading]
"""Reads everything it can, adds what it cannot use to the problems, and raises only when there is nothing to read."""
