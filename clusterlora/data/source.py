"""The interface of data sources, and the data they return."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Persona


@dataclass(frozen=True, slots=True)
class SourceData:
    """Dialogues without splits, in the order of the input.

    `location_by_persona` is where the input first speaks of somebody. Maps of dialogues are by (persona id, dialogue id):
    `location_by_dialogue` has those that stand elsewhere, and `conversation_by_dialogue` the conversation that a dialogue is a part of, if
    the input names one; dialogues of one conversation refer to each other and should be in the same split. `n_beginnings` counts the
    dialogues left out because a longer one begins with all of their turns. `number_and_text` are the people's ids that stand in the input
    as numbers and as texts, `dialogues_number_and_text` people with such an id of a dialogue of theirs, and `unread` the columns and fields
    that it has and nothing reads. `unused` counts the dialogues that were read and are not in `dataset`, by the reason why; `uneven` says
    who gets other shares than asked for.
    """

    dataset: Dataset
    location_by_persona: Mapping[str, SourceLocation] = field(default_factory=dict[str, SourceLocation])
    location_by_dialogue: Mapping[tuple[str, str], SourceLocation] = field(default_factory=dict[tuple[str, str], SourceLocation])
    conversation_by_dialogue: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    n_beginnings: int = 0
    number_and_text: tuple[str, ...] = ()
    dialogues_number_and_text: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict[str, int])
    uneven: tuple[str, ...] = ()

    @property
    def n_read(self) -> int:
        """Dialogues that were read, used or not."""
        return self.dataset.n_dialogues + sum(self.unused.values())

    def location(self, persona_id: str, dialogue_id: str = "") -> SourceLocation:
        """Return where the input holds a dialogue, or where it first speaks of a persona."""
        of_persona = self.location_by_persona.get(persona_id, SourceLocation("source"))
        return self.location_by_dialogue.get((persona_id, dialogue_id), of_persona)

    def keep(self, personas: Iterable[Persona], reason: str, others: Mapping[str, int] | None = None) -> "SourceData":
        """Return the data with these personas, who lack some dialogues for a reason; `others` are reasons of some of them."""
        kept = Dataset(tuple(personas))
        unused = dict(self.unused)
        left = self.dataset.n_dialogues - kept.n_dialogues - sum((others or {}).values())
        for why, n_dialogues in {reason: left, **(others or {})}.items():
            if n_dialogues:
                unused[why] = unused.get(why, 0) + n_dialogues
        return replace(self, dataset=kept, unused=unused)


Source = Callable[[DataSettings, Problems], SourceData]
"""A source returns what it can read, adds a problem for everything else, and raises only if there is nothing to read."""
