"""Features `responses_given_prompts`: how the persona's answers differ from the usual answer, prompt by prompt."""

import numpy as np

from clusterlora.clustering.exchange_topics import exchange_topics
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.pieces import CrossedPieces
from clusterlora.clustering.whitening import whitened
from clusterlora.values import Persona


def responses_given_prompts(personas: tuple[Persona, ...], sources: Sources) -> Evidence:  # noqa: ARG001  (needs no embedder)
    """Return, for each train response, its residual crossed with its prompt, whitened.

    With the prompt's factors [1, u] and the residual r - f(u) of `ExchangeTopics`, a response is represented by

        x = [1, u] ⊗ (r - f(u))

    The mean of x over a persona's responses describes not only how it is answered but on which prompts: it is the gradient, at zero, of the
    loss of a linear map from prompts to responses that is added to f for the persona, as `gradient` is the gradient of an adapter, but
    without training one.

    Source: outer products of two factors, Tenenbaum & Freeman 2000.

    Raises:
        BadData: a persona has no train response.
    """
    topics = exchange_topics(personas)
    return whitened(CrossedPieces(topics.factors, topics.residuals, np.bincount(topics.persona)))
