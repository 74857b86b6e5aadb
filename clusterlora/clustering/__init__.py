"""Clustering of personas by their train dialogues. An algorithm returns the features of each persona."""

from collections.abc import Callable, Mapping

from clusterlora.catalog import Catalog
from clusterlora.clustering.adapter import adapter
from clusterlora.clustering.description import description
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.gradient import gradient
from clusterlora.clustering.prompts_and_responses import prompts_and_responses
from clusterlora.clustering.response_residuals import response_residuals
from clusterlora.clustering.responses import responses
from clusterlora.clustering.responses_discriminant import responses_discriminant
from clusterlora.clustering.responses_given_prompts import responses_given_prompts
from clusterlora.values import Persona

Algorithm = Callable[[tuple[Persona, ...], Sources], Evidence]

ALGORITHMS: Catalog[Algorithm] = Catalog(
    "clustering algorithm",
    {
        "description": description,
        "response_residuals": response_residuals,
        "responses": responses,
        "prompts+responses": prompts_and_responses,
        "responses_discriminant": responses_discriminant,
        "responses_given_prompts": responses_given_prompts,
        "gradient": gradient,
        "adapter": adapter,
    },
)

EMBEDDING: frozenset[str] = frozenset({"description", "responses", "prompts+responses", "responses_discriminant"})
"""Algorithms that read sentence embeddings, which take most of the time before training."""
AUTO = "auto"
"""Stands for the one of `WITHOUT_EMBEDDINGS` that predicts held-out train answers best."""
WITHOUT_EMBEDDINGS = ("responses_given_prompts", "response_residuals")
"""What `auto` chooses from: seconds for 200 people with 30 dialogues, and no language that the embedding model must know."""

PREREQUISITES: Mapping[str, str] = {"gradient": "unified", "adapter": "per_persona"}
"""Method whose adapters an algorithm reads; they are trained before the clustering."""
