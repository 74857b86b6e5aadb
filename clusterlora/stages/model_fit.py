"""Whether a study's models know the language of its people, checked before anything is trained."""

from collections.abc import Sequence
from dataclasses import replace

from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.errors import BadSettings
from clusterlora.evaluation.metrics import METRICS
from clusterlora.models.base import UsableBase, base_folder
from clusterlora.models.fit import Findings, base_findings, embedding_findings, mean_nll
from clusterlora.models.memory import total_memory_bytes
from clusterlora.models.model_cache import base_model
from clusterlora.models.weights import weight_files
from clusterlora.ports.run_log import RunLog
from clusterlora.settings import EMBEDDED_BASE, PreparedStudy
from clusterlora.study_checks import nll_settings
from clusterlora.values import Persona

_SAMPLE = 32
"""People of whom the first train dialogue is looked at."""
_EMBEDDINGS_OF = 500
"""Answers whose tokens are counted."""
_UNLIMITED = 1 << 30


def refuse_misfits(study: PreparedStudy, base: UsableBase, personas: Sequence[Persona], log: RunLog) -> tuple[str, ...]:
    """Log and return what speaks against the study's models on its data; refuse an embedding model that cannot measure the headline.

    A base model is chosen by name for own data, which is taken for insisting on it.

    Raises:
        BadSettings: the embedding model does not know the tokens of the answers, with numbers.
    """
    of_base, of_embedding = findings(study, base, personas, log)
    if of_embedding.refusals and study.data.on_misfit == "refuse":
        raise BadSettings("; ".join((*of_embedding.refusals, "to go on all the same: --set data.on_misfit=warn")))
    sentences = (*of_base.refusals, *of_base.warnings, *of_embedding.refusals, *of_embedding.warnings)
    for sentence in sentences:
        log.note(f"warning: {sentence}")
    return sentences


def embedding_warnings(embedding: str, personas: Sequence[Persona]) -> tuple[str, ...]:
    """Return what speaks against reading these people's train answers by the embedding model, whatever the headline is."""
    of_embedding = embedding_findings(embedding, _sampled_answers(personas), is_headline=False)
    return (*of_embedding.refusals, *of_embedding.warnings)


def _sampled_answers(personas: Sequence[Persona]) -> list[str]:
    """Return train answers of all people, evenly spaced."""
    dialogues = [dialogue for persona in personas for dialogue in persona.dialogues if dialogue.split in ("train", None)]
    every = [turn.text for dialogue in dialogues for turn in dialogue.turns if turn.role == "assistant"]
    return every[:: -(-len(every) // _EMBEDDINGS_OF) or 1]


def findings(study: PreparedStudy, base: UsableBase, personas: Sequence[Persona], log: RunLog) -> tuple[Findings, Findings]:
    """Return what speaks against the base model and against the embedding model; only train dialogues are read.

    Nothing is asked of the embedded base about the synthetic people whom it was made for.
    """
    if study.data.source == "synthetic" and base.name == EMBEDDED_BASE:
        return Findings(), Findings()
    dialogues = [[dialogue for dialogue in persona.dialogues if dialogue.split in ("train", None)] for persona in personas]
    step = -(-len(personas) // _SAMPLE)
    sample = [(person, own[0]) for person, own in zip(personas[::step], dialogues[::step], strict=True) if own]
    answers = [turn.text for _, dialogue in sample for turn in dialogue.turns if turn.role == "assistant"]
    if not answers:
        return Findings(), Findings()
    nll: float | None = None
    if (n_bytes := sum(file.stat().st_size for file in weight_files(base_folder(base.name)))) > total_memory_bytes() // 8:
        log.note(f"the base model's likelihood of the answers is not measured here: its weights take {n_bytes / 1e9:.1f} GB")
    else:
        # Whatever the study's longest sequence is: what is too long for it is told elsewhere.
        encoder = prompt_encoder(base.tokenizer, replace(study.model, max_length=_UNLIMITED))
        said = (encoder.taken(messages(study.model, person, dialogue)) for person, dialogue in sample)
        nll = mean_nll(base_model(study.model), encoder.encode_dialogues([turns for turns in said if turns]))
    labelled = study.data.task != "text"
    prompts = [turn.text for _, dialogue in sample for turn in dialogue.turns if turn.role == "user"] if labelled else []
    of_base = base_findings(base.name, base.tokenizer, answers, nll=nll, prompts=prompts)
    if labelled:
        return of_base, Findings()  # no metric of labels embeds them
    is_headline = METRICS[study.evaluation.headline].embeds
    sampled = _sampled_answers(personas)
    return of_base, embedding_findings(study.model.embedding, sampled, is_headline=is_headline, nll_settings=nll_settings(study))
