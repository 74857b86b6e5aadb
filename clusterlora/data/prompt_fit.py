"""Which dialogues a base model's chat template and its longest sequence can take, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clusterlora.chat.encoder import EncodedTurn, PromptEncoder
from clusterlora.chat.template import merged
from clusterlora.data.labels import longest_label
from clusterlora.data.prompts import messages
from clusterlora.settings import DataSettings, PreparedModel
from clusterlora.values import Dialogue, Persona, Turn

_PEOPLE_AT_ONCE = 64

_Asked = tuple[Sequence[Turn], str]
"""What was said before an answer, and the answer."""


@dataclass(frozen=True, slots=True)
class FittedDialogue:
    """A dialogue as its prompts are made of it. `problem` says why it cannot be used; `loses_turns` that its oldest turns are left out."""

    dialogue: Dialogue
    problem: str = ""
    loses_turns: bool = False


class PromptFit:
    """Fits dialogues to a base model, and counts."""

    def __init__(self, encoder: PromptEncoder, settings: PreparedModel, data: DataSettings) -> None:
        self._encoder = encoder
        self._settings = settings
        self._data = data
        self.n_dialogues = self.n_losing_turns = self.n_unfit = 0

    @property
    def folds_system_text(self) -> bool:
        """Whether the template has no system role."""
        return not self._encoder.template.has_system_role

    def fit(self, personas: Sequence[Persona]) -> list[list[FittedDialogue]]:
        """Return every persona's dialogues, in order.

        Where the template wants the sides to alternate, turns of one side in a row are one turn: so they are asked, learnt and counted.
        Where answers are labels, every question must leave room for the longest.
        """
        longest = longest_label(self._data, personas, self._encoder)
        starts = range(0, len(personas), _PEOPLE_AT_ONCE)
        return [fitted for start in starts for fitted in self._fit(personas[start : start + _PEOPLE_AT_ONCE], *longest)]

    def _fit(self, personas: Sequence[Persona], label: str, n_label_tokens: int) -> list[list[FittedDialogue]]:
        dialogues = [[self._alternating(dialogue) for dialogue in persona.dialogues] for persona in personas]
        turns = [messages(self._settings, p, d) for p, of_persona in zip(personas, dialogues, strict=True) for d in of_persona]
        problems = [self._wrong_beginning(dialogue_turns) for dialogue_turns in turns]
        answers = [[] if problem else _answers(dialogue_turns) for dialogue_turns, problem in zip(turns, problems, strict=True)]
        if n_label_tokens:
            answers = self._with_longest(answers, label, n_label_tokens)
        encoded = iter(self._encoder.try_turns([answer for of_dialogue in answers for answer in of_dialogue]))
        outcomes = iter(zip(problems, [[next(encoded) for _ in of_dialogue] for of_dialogue in answers], strict=True))
        fitted = [[_fitted(dialogue, *next(outcomes)) for dialogue in of_persona] for of_persona in dialogues]
        every = [one for of_persona in fitted for one in of_persona]
        self.n_dialogues += len(every)
        self.n_losing_turns += sum(one.loses_turns and not one.problem for one in every)
        self.n_unfit += sum(bool(one.problem) for one in every)
        return fitted

    def _alternating(self, dialogue: Dialogue) -> Dialogue:
        return replace(dialogue, turns=merged(dialogue.turns)) if self._encoder.template.needs_alternation else dialogue

    def _with_longest(self, answers: list[list[_Asked]], label: str, n_tokens: int) -> list[list[_Asked]]:
        """Return every question with the longest answer that it is learnt or scored with."""
        own = sorted({text for of_dialogue in answers for _, text in of_dialogue})
        length = dict(zip(own, self._encoder.n_response_tokens(own), strict=True))
        return [[(turns, text if length[text] > n_tokens else label) for turns, text in of_dialogue] for of_dialogue in answers]

    def _wrong_beginning(self, turns: Sequence[Turn]) -> str:
        if not self._encoder.can_begin(turns):
            return "begins with the assistant, and the chat template of the base model wants the user to begin"
        return ""


def _answers(turns: Sequence[Turn]) -> list[_Asked]:
    return [(turns[:i], turn.text) for i, turn in enumerate(turns) if turn.role == "assistant"]


def _fitted(dialogue: Dialogue, problem: str, answers: Sequence[EncodedTurn | str]) -> FittedDialogue:
    problem = problem or next((answer for answer in answers if isinstance(answer, str)), "")
    return FittedDialogue(dialogue, problem, any(isinstance(answer, EncodedTurn) and answer.n_dropped for answer in answers))
