"""Features `response_residuals`: how the persona's answers differ from the usual answers, whatever the prompt."""

from clusterlora.clustering.exchange_topics import exchange_topics
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.whitening import whitened
from clusterlora.values import Persona


def response_residuals(personas: tuple[Persona, ...], sources: Sources) -> Evidence:  # noqa: ARG001  (needs no embedder)
    """Return the residual of each train response after the usual answer to its prompt, whitened.

    This is a persona's manner alone: fewer dimensions than `responses_given_prompts`, and found with fewer exchanges.

    Raises:
        BadData: a persona has no train response.
    """
    topics = exchange_topics(personas)
    return whitened(topics.by_persona(topics.residuals))
