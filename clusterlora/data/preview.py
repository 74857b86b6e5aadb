"""Dialogues as the model reads them: the rendered prompt and answer, which tokens are learnt, and what is cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.errors import counted
from clusterlora.settings import PreparedStudy
from clusterlora.values import Dialogue, Persona

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNT = ("⟦", "⟧")
"""Marks around learnt text where there are no colours."""
_SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Preview:
    """One training sequence of a dialogue. `parts` are its text in order, each with whether its tokens are learnt.

    `n_dropped` counts old turns that do not fit before the last answer, `n_cut` answers that are longer than may be generated.
    """

    persona_id: str
    dialogue_id: str
    parts: tuple[tuple[str, bool], ...]
    n_tokens: int
    n_learnt: int
    n_dropped: int
    n_cut: int

    @property
    def heading(self) -> str:
        """Whose dialogue it is, how long, and what is cut."""
        cut = [f"{counted(self.n_dropped, 'old turn')} dropped"] if self.n_dropped else []
        cut += [f"{counted(self.n_cut, 'answer')} longer than evaluation.max_new_tokens, cut when generated"] if self.n_cut else []
        return (
            f"dialogue {self.dialogue_id} of {self.persona_id}: {counted(self.n_tokens, 'token')}, {self.n_learnt} of them learnt; "
            f"{', '.join(cut) or 'nothing is cut'}"
        )

    @property
    def marked(self) -> str:
        """The text with marks around what is learnt."""
        return "".join(f"{LEARNT[0]}{text}{LEARNT[1]}" if learnt else text for text, learnt in self.parts)


def previews(study: PreparedStudy, personas: Sequence[Persona], tokenizer: "PreTrainedTokenizerBase") -> tuple[Preview, ...]:
    """Return the shortest, a median and the longest of train dialogues of up to 200 people, as they are trained on."""
    encoder = prompt_encoder(tokenizer, study.model)
    people = [persona for persona in personas if persona.of_split("train")]
    dialogues = [(persona, persona.of_split("train")[0]) for persona in people[:: -(-len(people) // _SAMPLE) or 1]]
    by_length = sorted(dialogues, key=lambda pair: sum(len(turn.text) for turn in pair[1].turns))
    chosen = [by_length[i] for i in sorted({0, len(by_length) // 2, len(by_length) - 1})] if by_length else []

    def preview(persona: Persona, dialogue: Dialogue) -> Preview:
        turns = messages(study.model, persona, dialogue)
        sequence = encoder.encode_dialogues([turns])[-1]
        answers = encoder.encode_turns([(turns[:i], turn.text) for i, turn in enumerate(turns) if turn.role == "assistant"])
        runs = groupby(zip(sequence.ids, sequence.is_response, strict=True), key=lambda token: token[1])
        return Preview(
            persona.id,
            dialogue.id,
            tuple((str(tokenizer.decode([i for i, _ in tokens], skip_special_tokens=False)), learnt) for learnt, tokens in runs),
            len(sequence.ids),
            sequence.n_response_tokens,
            max(turn.n_dropped for turn in answers),
            sum(len(turn.response) > study.evaluation.max_new_tokens for turn in answers),
        )

    return tuple(preview(persona, dialogue) for persona, dialogue in chosen)


def markdown(shown: Sequence[Preview]) -> str:
    """Return the previews as Markdown, learnt text between marks."""
    return "\n".join(_lines(shown))


def _lines(shown: Sequence[Preview]) -> Iterator[str]:
    yield f"As the base model reads them; what is learnt stands between {LEARNT[0]} and {LEARNT[1]}."
    for preview in shown:
        # No text of people ends the block: a fence is longer than any run of backticks in it.
        fence = "`" * max(3, 1 + max((len(list(run)) for mark, run in groupby(preview.marked) if mark == "`"), default=0))
        yield from ("", f"**{preview.heading}**".replace("\n", " "), "", f"{fence}text", preview.marked, fence)
