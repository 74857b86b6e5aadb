"""Planted clusters of synthetic personas are recovered from their responses and not from their descriptions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import load
from clusterlora.data.synthetic import generate
from clusterlora.models.embedding import load_embedder
from clusterlora.settings import ClusteringSettings, DataSettings, SyntheticSettings
from clusterlora.values import Dataset

SIZES = SyntheticSettings().cluster_sizes


def people(seed: int, *, train: int = 30) -> tuple[Dataset, dict[str, int]]:
    """As many invented people as the mission has, with the generator's own shares, and the truth."""
    synthetic = SyntheticSettings(dialogues=train + 2, seed=seed)
    dataset = load(DataSettings(source="synthetic", train=train, val=1, test=1, synthetic=synthetic))
    return dataset, generate(synthetic).truth.cluster_by_persona


def agreement(dataset: Dataset, truth: dict[str, int], algorithm: str, sources: Sources, sizes: tuple[int, ...] | None = SIZES) -> float:
    """The adjusted Rand index of a clustering with the truth: 1 when they are the same, 0 for a random partition."""
    cluster_by_persona = cluster_personas(dataset, ClusteringSettings(algorithm=algorithm, sizes=sizes), sources).cluster_by_persona()
    return float(adjusted_rand_score([truth[p] for p in dataset.ids], [cluster_by_persona[p] for p in dataset.ids]))


class NoEmbedder:
    name = "none"
    revision = "0"

    def encode(self, texts: object) -> np.ndarray:
        raise AssertionError(f"words need no embedding, but {texts} was embedded")


WORDS_ONLY = Sources(NoEmbedder())


def test_answers_given_prompts_recover_the_planted_clusters_and_descriptions_do_not() -> None:
    dataset, truth = people(2101)
    assert agreement(dataset, truth, ClusteringSettings().algorithm, WORDS_ONLY) >= 0.9
    assert agreement(dataset, truth, "description", Sources(load_embedder("minilm"))) < 0.2


def test_a_third_of_the_dialogues_and_no_given_sizes_still_recover_most_of_them() -> None:
    dataset, truth = people(2103, train=10)
    assert agreement(dataset, truth, "responses_given_prompts", WORDS_ONLY, sizes=None) >= 0.7


def without_context(dataset: Dataset) -> Dataset:
    return Dataset(tuple(replace(p, dialogues=tuple(replace(d, context=()) for d in p.dialogues)) for p in dataset.personas))


def answers_shuffled(dataset: Dataset, rng: np.random.Generator) -> Dataset:
    """The same dialogues, assigned to people at random."""
    dialogues = [d for p in dataset.personas for d in p.dialogues]
    dealt = iter(rng.permutation(len(dialogues)).tolist())
    return Dataset(tuple(replace(p, dialogues=tuple(dialogues[next(dealt)] for _ in p.dialogues)) for p in dataset.personas))


@pytest.mark.parametrize(
    ("spoilt", "low", "high"),
    [(lambda dataset: answers_shuffled(dataset, np.random.default_rng(0)), -0.1, 0.1), (without_context, 0.3, 1.0)],
    ids=["dealt at random", "without the situation"],
)
def test_no_clusters_are_recovered_without_their_cause(spoilt: Callable[[Dataset], Dataset], low: float, high: float) -> None:
    dataset, truth = people(2104, train=10)
    assert low <= agreement(spoilt(dataset), truth, "responses_given_prompts", WORDS_ONLY) <= high
