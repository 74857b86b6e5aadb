"""Features `responses_given_prompts`: how the persona's answers differ from the usual answer to each prompt."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.discriminants import discriminants
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona

_PROMPT_TOPICS, _CROSSED_TOPICS, _RESPONSE_TOPICS = 100, 24, 64
"""Prompt topics that predict the response, the leading ones of them that are crossed with the residual, and response topics."""
_FOLDS = 5
_PENALTY = 1.0
_MIN_TEXTS = 2
_MIN_DEVIATION = 1e-9
_TOKEN_PATTERN = r"\w+|[^\w\s]"


def responses_given_prompts(personas: tuple[Persona, ...], sources: Sources) -> Evidence:  # noqa: ARG001  (needs no embedder)
    """Return, for each train response, its residual crossed with its prompt, projected on the discriminants of the personas.

    With u the topics of the prompt (the last user turn and the situation), r those of the response (words and pairs of words, so that
    "volume 55" differs from "alarm 55"), and f a ridge regression fitted on other personas, a response is represented by

        x = [1, u] ⊗ (r - f(u))

    The mean of x over a persona's responses describes not only how it is answered but on which prompts: it is the gradient, at zero, of the
    loss of a linear map from prompts to responses that is added to f for the persona, as `gradient` is the gradient of an adapter, but
    without training one. Topics are the leading singular vectors of TF-IDF. Numbers count as words; sentence embeddings hardly encode them.

    Source: latent semantic analysis, Deerwester et al. 1990; outer products of two factors, Tenenbaum & Freeman 2000; directions,
    Rao 1948.

    Raises:
        BadData: a persona has no train response, or no persona has two that differ.
    """
    exchanges = [tuple(_exchanges(persona)) for persona in personas]
    for persona, own in zip(personas, exchanges, strict=True):
        if not own:
            raise BadData(f"persona {persona.id!r} has no response in its train dialogues; add one or remove the persona")
    n = [len(own) for own in exchanges]
    prompts = _topic_coordinates([prompt for own in exchanges for prompt, _ in own], _PROMPT_TOPICS, longest=1)
    responses = _topic_coordinates([response for own in exchanges for _, response in own], _RESPONSE_TOPICS, longest=2)
    residuals = _residuals(prompts, responses, np.repeat(np.arange(len(n)) % _FOLDS, n))
    crossed_topics = prompts[:, :_CROSSED_TOPICS]
    prompt_factors = np.column_stack([np.ones(len(prompts)), crossed_topics / np.maximum(crossed_topics.std(axis=0), _MIN_DEVIATION)])
    crossed = (prompt_factors[:, :, None] * residuals[:, None, :]).reshape(len(prompts), -1)
    return discriminants(tuple(np.split(crossed, np.cumsum(n)[:-1])))


def _exchanges(persona: Persona) -> Iterator[tuple[str, str]]:
    """Yield (prompt, response). The prompt is the last user turn, followed by each entry of the context as one word."""
    for dialogue in persona.of_split("train"):
        situation = " ".join(f"{name}_{value}".replace(" ", "_") for name, value in dialogue.context)
        user_text = ""
        for turn in dialogue.turns:
            if turn.role == "user":
                user_text = turn.text
            elif turn.role == "assistant":
                yield f"{user_text} {situation}", turn.text


def _topic_coordinates(texts: Sequence[str], n_topics: int, *, longest: int) -> Float[np.ndarray, "text topic"]:
    """Return the centred coordinates of each text on the leading topics, of n-grams with up to `longest` words."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(ngram_range=(1, longest), min_df=_MIN_TEXTS, sublinear_tf=True, token_pattern=_TOKEN_PATTERN)
    try:
        words = weights.fit_transform(texts)
    except ValueError:  # no word occurs in two texts
        return np.zeros((len(texts), 0))
    n_topics = min(n_topics, *(side - 1 for side in words.shape))
    if n_topics < 1:
        return np.zeros((len(texts), 0))
    topics = TruncatedSVD(n_topics, algorithm="arpack", random_state=0).fit_transform(words)
    return topics - topics.mean(axis=0)


def _residuals(
    prompts: Float[np.ndarray, "text prompt_topic"], responses: Float[np.ndarray, "text topic"], fold: Int[np.ndarray, " text"]
) -> Float[np.ndarray, "text topic"]:
    """Return the residuals of the responses after a ridge regression on the prompts, fitted on the personas of the other folds."""
    from sklearn.linear_model import Ridge

    residuals = responses.copy()
    for held_out in np.unique(fold):
        own = fold == held_out
        if prompts.shape[1] and not own.all():
            residuals[own] -= Ridge(_PENALTY).fit(prompts[~own], responses[~own]).predict(prompts[own])
    return residuals
