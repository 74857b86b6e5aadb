"""A persona is how its answers depart from what anybody would be answered, prompt by prompt."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.discriminants import discriminants
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona

_FORETELLING, _CROSSED, _RESPONSE_TOPICS = 100, 24, 64
"""Topics of prompts that predict a response, the leading ones of them that are crossed with its surprise, and topics of responses."""
_FOLDS = 5
_PENALTY = 1.0
_LEAST_TEXTS = 2
_FLAT = 1e-9
_WORDS = r"\w+|[^\w\s]"


def responses_given_prompts(personas: tuple[Persona, ...], sources: Sources) -> Evidence:  # noqa: ARG001 - words need no model
    """Return, for each train response, its surprise crossed with its prompt, in the directions that tell personas apart.

    With u the topics of a prompt (what the user said last, and the situation), r those of the response (single words and pairs, so
    that "volume 55" is not "alarm 55"), and f a ridge regression fitted on other personas, a response is

        x = [1, u] ⊗ (r - f(u))

    The mean of x over a persona's responses says not only what it is answered with but *when*: it is the gradient, at zero, of the loss
    of a linear map from prompts to responses that the persona adds to f, as `gradient` is that of an adapter, without one being trained.
    Topics are the leading singular vectors of TF-IDF; numbers count as words, which sentence embeddings hardly see.

    Source: latent semantic analysis, Deerwester et al. 1990; outer products of two factors, Tenenbaum & Freeman 2000; directions,
    Rao 1948.

    Raises:
        BadData: a persona has no train response, or no persona has two that differ.
    """
    found = [tuple(_exchanges(persona)) for persona in personas]
    for persona, own in zip(personas, found, strict=True):
        if not own:
            raise BadData(f"persona {persona.id!r} has no response in its train dialogues; give it one or leave the persona out")
    n = [len(own) for own in found]
    prompts = _topics([prompt for own in found for prompt, _ in own], _FORETELLING, longest=1)
    responses = _topics([response for own in found for _, response in own], _RESPONSE_TOPICS, longest=2)
    surprises = _unforeseen(prompts, responses, np.repeat(np.arange(len(n)) % _FOLDS, n))
    crossed_topics = prompts[:, :_CROSSED]
    asked = np.column_stack([np.ones(len(prompts)), crossed_topics / np.maximum(crossed_topics.std(axis=0), _FLAT)])
    crossed = (asked[:, :, None] * surprises[:, None, :]).reshape(len(prompts), -1)
    return discriminants(tuple(np.split(crossed, np.cumsum(n)[:-1])))


def _exchanges(persona: Persona) -> Iterator[tuple[str, str]]:
    """Yield (prompt, response): what the user said last and, each as one word, what both sides could see; and what was answered."""
    for dialogue in persona.of_split("train"):
        situation = " ".join(f"{name}_{value}".replace(" ", "_") for name, value in dialogue.context)
        said = ""
        for turn in dialogue.turns:
            if turn.role == "user":
                said = turn.text
            elif turn.role == "assistant":
                yield f"{said} {situation}", turn.text


def _topics(texts: Sequence[str], most: int, *, longest: int) -> Float[np.ndarray, "text topic"]:
    """Return centred coordinates of each text on the leading topics of all, with words in runs of up to `longest`."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(ngram_range=(1, longest), min_df=_LEAST_TEXTS, sublinear_tf=True, token_pattern=_WORDS)
    try:
        words = weights.fit_transform(texts)
    except ValueError:  # no word is in two texts
        return np.zeros((len(texts), 0))
    n_topics = min(most, *(side - 1 for side in words.shape))
    if n_topics < 1:
        return np.zeros((len(texts), 0))
    topics = TruncatedSVD(n_topics, algorithm="arpack", random_state=0).fit_transform(words)
    return topics - topics.mean(axis=0)


def _unforeseen(
    prompts: Float[np.ndarray, "text prompt_topic"], responses: Float[np.ndarray, "text topic"], fold: Int[np.ndarray, " text"]
) -> Float[np.ndarray, "text topic"]:
    """Return the responses less what a ridge regression on the prompts, fitted on the personas of other folds, says of them."""
    from sklearn.linear_model import Ridge

    left = responses.copy()
    for held_out in np.unique(fold):
        own = fold == held_out
        if prompts.shape[1] and not own.all():
            left[own] -= Ridge(_PENALTY).fit(prompts[~own], responses[~own]).predict(prompts[own])
    return left
