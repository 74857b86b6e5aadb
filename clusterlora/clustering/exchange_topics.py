"""Train exchanges in topics: what the prompts are about, and what their usual answers leave open of the responses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped

from clusterlora.errors import BadData
from clusterlora.values import Persona

_PROMPT_TOPICS, _CROSSED_TOPICS, _RESPONSE_TOPICS = 100, 24, 64
"""Prompt topics that predict the response, the leading ones of them that are crossed with the residual, and response topics."""
_FOLDS = 5
_PENALTY = 1.0
_MIN_TEXTS = 2
_MIN_DEVIATION = 1e-9
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters, which are written without spaces: each counts as a word."""
_TOKEN_PATTERN = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]"


@dataclass(frozen=True, slots=True, eq=False)
class ExchangeTopics:
    """All train exchanges, in the order of the personas, and the index of the persona and of its dialogue for each.

    With u the topics of the prompt (the last user turn and the situation), r those of the response (words and pairs of words, so that
    "volume 55" differs from "alarm 55"), and f a ridge regression fitted on other personas, `factors` is [1, u], standardised, of the
    leading topics, and `residuals` is r - f(u). Topics are the leading singular vectors of TF-IDF, as in latent semantic analysis
    (Deerwester et al. 1990). Numbers count as words; sentence embeddings hardly encode them.
    """

    persona: Int[np.ndarray, " exchange"]
    dialogue: Int[np.ndarray, " exchange"]
    factors: Float[np.ndarray, "exchange factor"]
    residuals: Float[np.ndarray, "exchange topic"]

    def by_persona(self, rows: Shaped[np.ndarray, "exchange *dim"]) -> tuple[np.ndarray, ...]:
        """Return rows, one per exchange, as one array per persona."""
        return tuple(np.split(rows, np.cumsum(np.bincount(self.persona))[:-1]))


@lru_cache(maxsize=1)
def exchange_topics(personas: tuple[Persona, ...]) -> ExchangeTopics:
    """Return the topics of all train exchanges of these personas.

    Raises:
        BadData: a persona has no train response.
    """
    exchanges = [tuple(_exchanges(persona)) for persona in personas]
    for persona, own in zip(personas, exchanges, strict=True):
        if not own:
            raise BadData(f"persona {persona.id!r} has no response in its train dialogues; add one or remove the persona")
    n = [len(own) for own in exchanges]
    prompts = _topic_coordinates([prompt for own in exchanges for prompt, _, _ in own], _PROMPT_TOPICS, longest=1)
    responses = _topic_coordinates([response for own in exchanges for _, response, _ in own], _RESPONSE_TOPICS, longest=2)
    residuals = _residuals(prompts, responses, np.repeat(np.arange(len(n)) % _FOLDS, n))
    crossed = prompts[:, :_CROSSED_TOPICS]
    return ExchangeTopics(
        persona=np.repeat(np.arange(len(n)), n),
        dialogue=np.array([number for own in exchanges for *_, number in own], dtype=np.int64),
        factors=np.column_stack([np.ones(len(prompts)), crossed / np.maximum(crossed.std(axis=0), _MIN_DEVIATION)]),
        residuals=residuals,
    )


def _exchanges(persona: Persona) -> Iterator[tuple[str, str, int]]:
    """Yield (prompt, response, number of the dialogue). The prompt is the last user turn and each entry of the context as one word."""
    for number, dialogue in enumerate(persona.of_split("train")):
        situation = " ".join(f"{name}_{value}".replace(" ", "_") for name, value in dialogue.context)
        user_text = ""
        for turn in dialogue.turns:
            if turn.role == "user":
                user_text = turn.text
            elif turn.role == "assistant":
                yield f"{user_text} {situation}", turn.text, number


def _topic_coordinates(texts: Sequence[str], n_topics: int, *, longest: int) -> Float[np.ndarray, "text topic"]:
    """Return the centred coordinates of each text on the leading topics, of n-grams with up to `longest` words.

    Texts that share no word have a single topic, and all of them 0 of it.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(ngram_range=(1, longest), min_df=_MIN_TEXTS, sublinear_tf=True, token_pattern=_TOKEN_PATTERN)
    try:
        words = weights.fit_transform(texts)
    except ValueError:  # no word occurs in two texts
        return np.zeros((len(texts), 1))
    n_topics = min(n_topics, *(side - 1 for side in words.shape))
    if n_topics < 1:
        return np.zeros((len(texts), 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # texts that are all equal have no variance for the shares that it computes
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
        if not own.all():
            predicted = Ridge(_PENALTY).fit(prompts[~own], responses[~own]).predict(prompts[own])
            residuals[own] -= predicted.reshape(residuals[own].shape)  # of a single topic it is a vector
    # Coordinates are lengths of at most 1: what is smaller than this is rounding, and would be all that there is where answers are alike.
    return np.where(np.abs(residuals) < _MIN_DEVIATION, 0.0, residuals)
