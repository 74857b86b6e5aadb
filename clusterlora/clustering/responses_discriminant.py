"""Features `responses_discriminant`: the response embeddings, projected on the discriminants of the personas."""

from clusterlora.clustering.discriminants import discriminants
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.responses import responses
from clusterlora.values import Persona


def responses_discriminant(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the train responses projected on the linear discriminants of the personas.

    Raises:
        BadData: a persona has no train response, or no persona has two that differ.
    """
    return discriminants(responses(personas, sources))
