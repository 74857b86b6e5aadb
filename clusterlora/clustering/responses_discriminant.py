"""Features `responses_discriminant`: the response embeddings, whitened, so that personas differ along their discriminants."""

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.responses import responses
from clusterlora.clustering.whitening import whitened
from clusterlora.values import Persona


def responses_discriminant(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embeddings of the train responses, whitened by their variation within personas.

    Raises:
        BadData: a persona has no train response.
    """
    return whitened(responses(personas, sources))
