"""Grouping personas by what their train dialogues say. An algorithm is what describes a persona."""

from collections.abc import Callable

from clusterlora.catalog import Catalog
from clusterlora.clustering.description import description
from clusterlora.clustering.features import Evidence
from clusterlora.clustering.responses import responses
from clusterlora.clustering.responses_discriminant import responses_discriminant
from clusterlora.ports import Embedder
from clusterlora.values import Persona

Algorithm = Callable[[tuple[Persona, ...], Embedder], Evidence]

ALGORITHMS: Catalog[Algorithm] = Catalog(
    "clustering algorithm",
    {
        "description": description,
        "responses": responses,
        "responses_discriminant": responses_discriminant,
    },
)
