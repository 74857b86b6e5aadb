"""Features `description`: the embedding of the persona's description."""

from collections.abc import Sequence

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona


def refuse_undescribed(personas: Sequence[Persona]) -> None:
    """Check that all personas have a description. Raises BadData with the first that has none, and how many have none."""
    if without := [persona.id for persona in personas if not (persona.description or "").strip()]:
        more = f", nor have {len(without) - 1} others" if len(without) > 1 else ""
        raise BadData(f"persona {without[0]!r} has no description{more}; add them, or set clustering.algorithm=responses")


def description(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of each persona's description.

    Raises:
        BadData: a persona has no description.
    """
    refuse_undescribed(personas)
    texts = [persona.description or "" for persona in personas]
    return tuple(sources.embedder.encode(texts).astype(np.float64)[:, None, :])
