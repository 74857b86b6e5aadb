"""What is checked of a base model, its chat template and the data together before a study begins."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clusterlora.chat.checks import rendering_difference
from clusterlora.chat.encoder import PromptEncoder
from clusterlora.chat.template import writes_date
from clusterlora.clustering.cluster import refuse_impossible_sizes
from clusterlora.clustering.description import refuse_undescribed
from clusterlora.data.lengths import ExampleLength, covering, example_lengths, token_summary
from clusterlora.data.load import load, read, without_people
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.data.summary import TokenSummary
from clusterlora.errors import BadData
from clusterlora.methods import most_shots
from clusterlora.methods.described import DESCRIBED
from clusterlora.models.base import UsableBase
from clusterlora.models.checks import refuse_too_long
from clusterlora.models.targets import resolved
from clusterlora.settings import LEAST_ANSWER, MOST_TOKENS, Dtype, Lengths, ModelSettings, PreparedModel, PreparedStudy, Study, prepared
from clusterlora.values import Dataset, Persona

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MIN_PERSONAS = 2
_SAMPLE = 32
"""Personas whose first dialogue is encoded both ways."""


def decided(study: Study, dtype: Dtype, base: UsableBase, personas: Sequence[Persona] | None = None) -> PreparedStudy:
    """Return a study with its base model, dtype, prompt, date, lengths and target modules decided; what it gives stays.

    Args:
        personas: the study's people, of whose dialogues the lengths are read off. Read from their source where they are left out.

    Raises:
        BadSettings: prompt and answer do not fit into the base's positions, or it has none of the target modules.
        BadData: every problem of the data at once, where the lengths are read off it.
    """
    study = replace(study, model=with_template_date(study.model, base.tokenizer), recipe=resolved(study.recipe, base.weights))
    settings = prepared(study, dtype)
    open_lengths = study.model.max_length is None or study.evaluation.max_new_tokens is None
    if open_lengths and study.data.source != "synthetic":
        people = people_of(study) if personas is None else personas
        given = (study.model.max_length, study.evaluation.max_new_tokens)
        settings = prepared(study, dtype, _lengths(settings, base, (*people, *_unused(study, people)), given)[1])
    longest, longest_answer = settings.model.max_length, settings.evaluation.max_new_tokens
    refuse_too_long(base.name, base.n_positions, max_length=longest, max_new_tokens=longest_answer)
    return settings


def _unused(study: Study, people: Sequence[Persona]) -> tuple[Persona, ...]:
    """Return these people with the dialogues that no split of theirs uses, as test dialogues: all must be possible to ask."""
    used = {person.id: {dialogue.id for dialogue in person.dialogues} for person in people}
    return tuple(
        replace(person, dialogues=tuple(replace(d, split="test") for d in person.dialogues if d.id not in used[person.id]))
        for person in read(study.data).dataset.personas
        if person.id in used
    )


def people_of(study: Study) -> tuple[Persona, ...]:
    """Return the study's people with their splits; without, where they cannot be split, which whoever splits them for use is told.

    Raises:
        BadData: every problem of the input itself.
    """
    try:
        return load(study.data).personas
    except BadData:
        return read(study.data).dataset.personas


def summary_of_tokens(study: PreparedStudy, base: UsableBase, personas: Sequence[Persona]) -> TokenSummary:
    """Return how the examples of a study fit its lengths, and which lengths they need."""
    examples, needed = _lengths(study, base, personas, (None, None))
    return token_summary(base.name, examples, Lengths(study.model.max_length, study.evaluation.max_new_tokens), needed)


def _lengths(
    study: PreparedStudy, base: UsableBase, personas: Sequence[Persona], given: tuple[int | None, int | None]
) -> tuple[list[ExampleLength], Lengths]:
    """Return the lengths of a study's examples, and the longest sequence and answer that they need; what is given stays."""
    examples = example_lengths(personas, base.tokenizer, shown_most(study), study.data)
    most = min(base.n_positions or MOST_TOKENS, base.n_trainable or MOST_TOKENS) - LEAST_ANSWER
    possible = [example for example in examples if example.least <= most]
    needed = covering(
        # What is left out, however long the limits, must not raise them.
        possible if possible and study.data.on_problem == "skip" else examples,
        n_positions=base.n_positions,
        n_in_memory=base.n_trainable,
        n_shots=most_shots(study.methods, study.retrieval),
        max_length=given[0],
        max_new_tokens=given[1],
    )
    return examples, needed


def with_template_date(model: ModelSettings, tokenizer: "PreTrainedTokenizerBase") -> ModelSettings:
    """Return the settings with today's date for the chat template, where the template writes one and none is given."""
    if model.template_date is not None or not writes_date(tokenizer, model.template_arguments):
        return model
    return replace(model, template_date=datetime.now(UTC).date().isoformat())


def shown_most(study: PreparedStudy) -> PreparedModel:
    """Return the model settings of a study's longest prompts: with the persona's description where any method shows it."""
    return replace(study.model, persona_in_prompt=study.model.persona_in_prompt or bool(set(study.methods) & set(DESCRIBED)))


def fit_of(study: PreparedStudy, tokenizer: "PreTrainedTokenizerBase") -> PromptFit:
    """Return what fits dialogues to the study's prompts."""
    return PromptFit(prompt_encoder(tokenizer, study.model), shown_most(study), study.data)


def fitted_dataset(
    study: PreparedStudy, tokenizer: "PreTrainedTokenizerBase", left: Callable[[str], bool] | None = None
) -> tuple[Dataset, PromptFit]:
    """Return the study's data as its base model can be asked them, and what was counted on the way.

    Args:
        left: whether a person was forgotten, and is left out.

    Raises:
        BadData: every problem of the data at once, or a dialogue that the chat template renders otherwise than it was said, or somebody
            has no description to be clustered by.
        BadSettings: so many people cannot be clustered as asked.
    """
    fit = fit_of(study, tokenizer)
    dataset = load(study.data, fit, left)
    refuse_impossible_sizes(study.clustering, len(dataset.personas))
    if study.clustering.algorithm == "description":
        refuse_undescribed(dataset.personas)
    _refuse_other_rendering(tokenizer, prompt_encoder(tokenizer, study.model), study.model, dataset.personas)
    # Last of all, so that everybody else's splits stay as they were with those who were forgotten.
    dataset = without_people(dataset, left)
    if (n := len(dataset.personas)) < _MIN_PERSONAS:
        raise BadData(f"without the people who were forgotten, {n} personas are left, fewer than {_MIN_PERSONAS}; add others to the data")
    return dataset, fit


def _refuse_other_rendering(
    tokenizer: "PreTrainedTokenizerBase", encoder: PromptEncoder, model: PreparedModel, personas: Sequence[Persona]
) -> None:
    """Check that the template keeps the words of every dialogue, and that a sample is learnt after the prompts that it is asked with."""
    for persona in personas:
        for dialogue in persona.dialogues:
            turns = messages(model, persona, dialogue)
            last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
            # The last prompt has all that is ever history.
            if difference := rendering_difference(tokenizer, encoder.template, turns[:last]):
                raise BadData(
                    f"the chat template of {model.base} changes what is said in dialogue {dialogue.id!r} of persona {persona.id!r}: "
                    f"{difference}; change the words, or use a base model whose template keeps them"
                )
    for persona in personas[:: -(-len(personas) // _SAMPLE) or 1]:
        dialogue = persona.dialogues[0]
        turns = messages(model, persona, dialogue)
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        where = f"dialogue {dialogue.id!r} of persona {persona.id!r}"
        learnt = encoder.encode_dialogues([turns])
        for turn in encoder.encode_turns([(turns[:i], turns[i].text) for i in answers]):
            whole = turn.prompt + turn.response
            if not any(sequence.ids[: len(whole)] == whole for sequence in learnt):
                raise BadData(f"{where} is learnt after another prompt than it is asked with; use a base model with another chat template")
