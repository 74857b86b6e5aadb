"""What is checked of a base model, its chat template and the data together before a study begins."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from clusterlora.chat.checks import rendering_difference
from clusterlora.chat.template import writes_date
from clusterlora.data.load import load
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.prompts import PromptEncoder, messages, prompt_encoder
from clusterlora.errors import BadData
from clusterlora.methods.described import DESCRIBED
from clusterlora.models.base import usable_tokenizer
from clusterlora.settings import ModelSettings, Study
from clusterlora.values import Dataset, Persona

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Study = TypeVar("_Study", bound=Study)
_SAMPLE = 32
"""Personas whose first dialogue is rendered both ways."""


def checked_tokenizer(study: Study) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a study's base model once the model is known to be usable, without reading its weights.

    Raises:
        ModelUnavailable: it is not a whole causal language model with a chat template, or its tokenizer does not fit it.
        BadSettings: prompt and answer do not fit into its positions.
    """
    return usable_tokenizer(study.model.base, max_length=study.model.max_length, max_new_tokens=study.evaluation.max_new_tokens)


def with_template_date(study: _Study, tokenizer: "PreTrainedTokenizerBase") -> _Study:
    """Return the study with today's date for its chat template, where the template writes one and none is given."""
    model = study.model
    if model.template_date is not None or not writes_date(tokenizer, model.template_arguments):
        return study
    return replace(study, model=replace(model, template_date=datetime.now(UTC).date().isoformat()))


def fit_of(study: Study, tokenizer: "PreTrainedTokenizerBase") -> PromptFit:
    """Return what fits dialogues to the study's prompts; with the persona's description where any method shows it."""
    model = study.model
    described = model.persona_in_prompt or bool(set(study.methods) & set(DESCRIBED))
    return PromptFit(prompt_encoder(tokenizer, model), replace(model, persona_in_prompt=described))


def fitted_dataset(study: Study, tokenizer: "PreTrainedTokenizerBase") -> tuple[Dataset, PromptFit]:
    """Return the study's data as its base model can be asked them, and what was counted on the way.

    Raises:
        BadData: every problem of the data at once, or a dialogue that the chat template renders otherwise than it was said.
    """
    fit = fit_of(study, tokenizer)
    dataset = load(study.data, fit)
    _refuse_other_rendering(tokenizer, prompt_encoder(tokenizer, study.model), study.model, dataset.personas)
    return dataset, fit


def _refuse_other_rendering(
    tokenizer: "PreTrainedTokenizerBase", encoder: PromptEncoder, model: ModelSettings, personas: Sequence[Persona]
) -> None:
    for persona in personas[:: -(-len(personas) // _SAMPLE) or 1]:
        dialogue = persona.dialogues[0]
        turns = messages(model, persona, dialogue)
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        where = f"dialogue {dialogue.id!r} of persona {persona.id!r}"
        for i in answers:
            if difference := rendering_difference(tokenizer, encoder.template, turns[:i]):
                raise BadData(
                    f"the chat template of {model.base} changes what is said in {where}: {difference}; "
                    "change the words, or use a base model whose template keeps them"
                )
        learnt = encoder.encode_dialogues([turns])
        for turn in encoder.encode_turns([(turns[:i], turns[i].text) for i in answers]):
            whole = turn.prompt + turn.response
            if not any(sequence.ids[: len(whole)] == whole for sequence in learnt):
                raise BadData(f"{where} is learnt after another prompt than it is asked with; use a base model with another chat template")
