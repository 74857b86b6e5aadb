"""Whether a base model and an embedding model know the language of the data: measured on a sample of answers before anything is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clusterlora.chat.encoder import TokenSequence
from clusterlora.chat.panics import panics_unprinted
from clusterlora.errors import ModelUnavailable
from clusterlora.models.base import BaseModel
from clusterlora.models.checks import refuse_unknown_token_without_id
from clusterlora.models.embedding import ENGLISH, embedding_folder
from clusterlora.models.embedding_checks import ADDED_TOKENS, most_tokens
from clusterlora.models.language import languages
from clusterlora.models.loading import one_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 4
"""UTF-8 bytes that a token stands for where a tokenizer of some ten thousand tokens was made for the text: 3.7 to 4.1 on the English data
that this was measured on with SmolLM2's."""

_TOO_MANY = 1.6
"""How many times the tokens of a fitting tokenizer are worth a warning."""
_WORSE, _HARDLY_BETTER = 1.05, 0.9
"""Shares of a uniform guess's loss: above the first a base is worse than guessing, above the second hardly better. A base with random
weights lies at 1; homelm on anything but its own kind of talk at 1.2 to 1.5; SmolLM2 on English and Chinese at 0.2 to 0.5."""
_MANY_UNKNOWN, _SOME_UNKNOWN = 0.2, 0.02
_FEW_KNOWN = 0.7
"""Share of words in an English model's vocabulary below which answers are not English."""
_SOME_FOREIGN = 0.1
"""Share of answers in another language that is worth a warning."""
_LONGEST = 1024

MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""A multilingual embedding model of the default's family, of fifty languages."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What speaks against using a model on the data, each a sentence with its numbers: `refusals` is worse than `warnings`."""

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def base_findings(
    name: str, tokenizer: "PreTrainedTokenizerBase", answers: Sequence[str], *, nll: float | None, prompts: Sequence[str] = ()
) -> Findings:
    """Return what speaks against a base model.

    Args:
        answers: a sample of train answers.
        nll: mean negative log-likelihood of their tokens under the base, in nats; None where it was not measured.
        prompts: where answers are labels, whose tokens are few, those that are counted instead.

    Raises:
        ModelUnavailable: that likelihood is no number.
    """
    refusals: list[str] = []
    warnings: list[str] = []
    guess = math.log(len(tokenizer))
    if nll is not None and not math.isfinite(nll):
        raise ModelUnavailable(
            f"base model {name} gives a sample of answers a likelihood of {nll}: its weights are damaged, or too large for the study's "
            "dtype; get them again, or set model.dtype=float32"
        )
    if nll is not None and nll > _HARDLY_BETTER * guess:
        worse = nll > _WORSE * guess
        (refusals if worse else warnings).append(
            f"base model {name} gives a sample of {len(answers)} answers {nll:.2f} nats per token, {'worse' if worse else 'hardly better'} "
            f"than a uniform guess over its {len(tokenizer):,} tokens ({guess:.2f}): it does not know their language or topic; "
            "choose another --base-model"
        )
    ids = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    what, long = ("prompts", prompts) if prompts else ("answers", answers)
    n_characters = sum(map(len, long))
    per_character = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in long) / n_characters
    fitting = sum(len(text.encode()) for text in long) / BYTES_PER_TOKEN / n_characters
    if per_character > _TOO_MANY * fitting:
        warnings.append(
            f"base model {name} needs {per_character:.2f} tokens per character of the {what}, where a tokenizer made for them needs about "
            f"{fitting:.2f}: everything is {per_character / fitting:.1f} times as long and as slow, and an answer that is cut may end "
            "within a character; a base model of their language is better"
        )
    n_lossy = sum("\ufffd" in str(tokenizer.decode(row)) and "\ufffd" not in answer for row, answer in zip(ids, answers, strict=True))
    n_unknown = sum(tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row for row in ids)
    if n_lost := max(n_lossy, n_unknown):
        lost = f"{n_lost} of a sample of {len(answers)} answers hold characters that the tokenizer of base model {name} cannot write"
        (refusals if n_lost > _MANY_UNKNOWN * len(answers) else warnings).append(f"{lost}; choose a base model of their language")
    return Findings(tuple(refusals), tuple(warnings))


def mean_nll(base: BaseModel, sequences: Sequence[TokenSequence]) -> float:
    """Return the mean negative log-likelihood per answer token under the bare base, in nats; sequences count up to 1,024 tokens."""
    import torch

    total, n_tokens = 0.0, 0
    with torch.inference_mode():
        for sequence in sequences:
            ids = torch.tensor([sequence.ids[:_LONGEST]], device=base.model.device)
            learnt = [t for t in range(1, ids.shape[1]) if sequence.is_response[t]]
            if learnt:
                logits = base.model(input_ids=ids, use_cache=False).logits[0, [t - 1 for t in learnt]].float()
                total += float(torch.nn.functional.cross_entropy(logits, ids[0, learnt], reduction="sum"))
                n_tokens += len(learnt)
    return total / n_tokens


def embedding_findings(name: str, answers: Sequence[str], *, is_headline: bool, nll_settings: str | None = None) -> Findings:
    """Return what speaks against an embedding model. Only its tokenizer is read.

    Args:
        answers: a sample of train answers.
        is_headline: whether the headline metric compares embeddings: then unknown tokens are a reason to refuse.
        nll_settings: what makes nll the study's headline, where another headline is a way out.

    Raises:
        ModelUnavailable: as `load_embedder`.
    """
    from transformers import AutoTokenizer

    folder = embedding_folder(name)
    with one_line(f"embedding model {name!r} in {folder}", folder), quiet(), panics_unprinted():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        refuse_unknown_token_without_id(tokenizer, folder)
        ids = [tokenizer(answer, add_special_tokens=False, truncation=False, verbose=False).input_ids for answer in answers]
        limit = most_tokens(folder)
    fix = f"use a multilingual one such as --set model.embedding={MULTILINGUAL}"
    if nll_settings:
        fix += f", or a headline without embeddings: chrf ({CHRF_SETTINGS}), or nll, for which nothing is generated ({nll_settings})"
    n_tokens = sum(map(len, ids))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids) / n_tokens if n_tokens and tokenizer.unk_token_id is not None else 0.0
    spoken = languages(answers, tokenizer.get_vocab()) if name in ENGLISH else None
    refusals: list[str] = []
    warnings: list[str] = []
    if unknown > _SOME_UNKNOWN:
        (refusals if is_headline and unknown > _MANY_UNKNOWN else warnings).append(
            f"embedding model {name} does not know {unknown:.0%} of the tokens in a sample of {len(answers)} answers, so different answers "
            f"look alike to it; {fix}"
        )
    elif spoken and spoken.known_words is not None and spoken.known_words < _FEW_KNOWN:
        warnings.append(
            f"embedding model {name} knows English, and {spoken.known_words:.0%} of the words in a sample of {len(answers)} answers are in "
            f"its vocabulary, where of English prose 80 to 100% are; if they are not a trade's own words but another language, {fix}"
        )
    elif spoken and spoken.n_foreign and spoken.n_foreign >= _SOME_FOREIGN * spoken.n_told:
        warnings.append(
            f"embedding model {name} knows English, and {spoken.n_foreign} of a sample of {spoken.n_told} answers that are long enough to "
            "tell look like another language, by their words and those that English does not have; where they are, different answers look "
            f"alike to it: {fix}"
        )
    if limit is not None and (n_too_long := sum(len(row) > limit - ADDED_TOKENS for row in ids)):
        warnings.append(
            f"embedding model {name} reads {limit - ADDED_TOKENS} tokens, and {n_too_long} of a sample of {len(answers)} answers are "
            "longer: what follows does not count for it"
        )
    return Findings(tuple(refusals), tuple(warnings))


CHRF_SETTINGS = '--set evaluation.headline=chrf --set \'evaluation.metrics=["chrf","nll","rouge_l","prompt_tokens"]\''
