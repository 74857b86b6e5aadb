"""Clusterings: their inputs, cluster sizes and measures of stability."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterlora.clustering import ALGORITHMS, PREREQUISITES
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.clustering.kmeans import exact_sizes, free_sizes, minimum_cost_labels
from clusterlora.clustering.reassign import reassign
from clusterlora.clustering.summary import sentence
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.settings import ClusteringSettings
from clusterlora.values import Clustering, Dataset, Dialogue, Persona, Split, Turn

pytestmark = pytest.mark.numeric

STYLES = ("certainly sir", "sure thing buddy", "done", "with pleasure dear", "aye captain")


class CountsEmbedder:
    """A text is its letter counts plus a little of its own, all of unit length; remembers what it was asked."""

    name = "letters"
    revision = "1"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seen.extend(texts)
        counts = np.array(
            [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in texts], dtype=np.float32
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def dialogue(name: str, answer: str, split: Split) -> Dialogue:
    return Dialogue(
        name,
        (Turn("user", f"do {name}"), Turn("assistant", answer), Turn("user", "more"), Turn("assistant", f"{answer} again")),
        split=split,
    )


def population(sizes: Sequence[int] = (4, 9, 6), *, n_dialogues: int = 5, seed: int = 0) -> tuple[Dataset, dict[str, int]]:
    """People whose answers carry the style of their planted cluster, in shuffled order, and the truth."""
    rng = np.random.default_rng(seed)
    planted = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    personas, truth = [], {}
    for number, cluster in enumerate(planted.tolist()):
        persona_id = f"persona_{number:03d}"
        truth[persona_id] = cluster
        spoken = [dialogue(f"{number}-{i}", f"{STYLES[cluster]} {rng.integers(100, 999)}", "train") for i in range(n_dialogues)]
        spoken += [dialogue(f"{number}-{split}", f"{STYLES[cluster]} {rng.integers(100, 999)}", split) for split in ("val", "test")]
        personas.append(Persona(persona_id, f"likes {STYLES[cluster]} {number}", tuple(spoken)))
    return Dataset(tuple(personas)), truth


def planted(clustering: Clustering, truth: dict[str, int]) -> list[set[int]]:
    return [{truth[persona_id] for persona_id in members} for members in clustering.members]


def by_responses(**changes: Any) -> ClusteringSettings:
    return replace(ClusteringSettings(algorithm="responses", k=3), **changes)


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - set(PREREQUISITES)))
def test_planted_clusters_are_found_smallest_first(algorithm: str):
    dataset, truth = population(n_dialogues=15)
    clustering = cluster_personas(dataset, by_responses(algorithm=algorithm), Sources(CountsEmbedder()))
    assert clustering.sizes == (4, 6, 9)
    assert planted(clustering, truth) == [{0}, {2}, {1}]
    assert clustering.algorithm == algorithm


def test_given_sizes_are_kept_exactly_and_in_their_order():
    dataset, truth = population()
    clustering = cluster_personas(dataset, by_responses(sizes=(9, 4, 6)), Sources(CountsEmbedder()))
    assert clustering.sizes == (9, 4, 6)
    assert planted(clustering, truth) == [{1}, {0}, {2}]
    forced = cluster_personas(dataset, by_responses(sizes=(2, 15, 2)), Sources(CountsEmbedder()))
    assert forced.sizes == (2, 15, 2)


def test_every_persona_is_in_exactly_one_cluster():
    dataset, _ = population()
    clustering = cluster_personas(dataset, by_responses(k=4), Sources(CountsEmbedder()))
    assert sorted(persona_id for members in clustering.members for persona_id in members) == sorted(dataset.ids)


@pytest.mark.parametrize("sizes", [None, (9, 4, 6)])
def test_the_order_of_the_personas_changes_nothing(sizes: tuple[int, ...] | None):
    dataset, _ = population()
    turned = Dataset(tuple(reversed(dataset.personas)))
    settings = by_responses(sizes=sizes)
    assert cluster_personas(dataset, settings, Sources(CountsEmbedder())) == cluster_personas(turned, settings, Sources(CountsEmbedder()))


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - set(PREREQUISITES)))
def test_val_and_test_dialogues_are_never_read(algorithm: str):
    dataset, _ = population()
    poison = dialogue("poison", "zzz poison zzz", "test")
    poisoned = Dataset(tuple(replace(p, dialogues=(*p.of_split("train"), poison, replace(poison, split="val"))) for p in dataset.personas))
    embedder = CountsEmbedder()
    assert cluster_personas(poisoned, by_responses(algorithm=algorithm), Sources(embedder)) == cluster_personas(
        dataset, by_responses(algorithm=algorithm), Sources(CountsEmbedder())
    )
    assert not [text for text in embedder.seen if "poison" in text]


def test_each_train_response_is_embedded_once_and_user_turns_never():
    dataset, _ = population((2, 2, 2), n_dialogues=3)
    embedder = CountsEmbedder()
    cluster_personas(dataset, by_responses(), Sources(embedder))
    spoken = [t.text for p in dataset.personas for d in p.of_split("train") for t in d.turns if t.role == "assistant"]
    assert sorted(embedder.seen) == sorted(spoken)


def test_planted_clusters_are_reported_as_stable_and_noise_is_not(caplog: pytest.LogCaptureFixture):
    dataset, _ = population()
    quality = dict(cluster_personas(dataset, by_responses(), Sources(CountsEmbedder())).quality)
    assert quality["silhouette"] > 0.5
    assert quality["ari_seeds"] == pytest.approx(1)
    assert quality["ari_bootstraps"] == pytest.approx(1)
    assert not caplog.records

    alike, _ = population((40,), n_dialogues=2)
    with caplog.at_level(logging.WARNING):
        noise = dict(cluster_personas(alike, by_responses(k=5), Sources(CountsEmbedder())).quality)
    assert noise["silhouette"] < 0.3
    assert noise["ari_bootstraps"] < 0.5
    assert "unstable: ari_bootstraps" in caplog.text


def test_discriminants_find_people_whom_the_topics_of_their_answers_hide():
    rng = np.random.default_rng(0)
    topics = ("warm lights lit low", "film on the tv by ten", "fan at max", "alarm armed")
    habit = ("q", "z", "x")
    personas, truth = [], {}
    for number in range(30):
        persona_id = f"p{number:02d}"
        truth[persona_id] = number % 3
        responses = [f"{topics[rng.integers(4)]} {habit[number % 3]}" for _ in range(6)]
        personas.append(Persona(persona_id, None, tuple(dialogue(f"{number}-{i}", text, "train") for i, text in enumerate(responses))))
    dataset, sources = Dataset(tuple(personas)), Sources(CountsEmbedder())
    assert planted(cluster_personas(dataset, by_responses(), sources), truth) != [{0}, {1}, {2}]
    clustering = cluster_personas(dataset, by_responses(algorithm="responses_discriminant"), sources)
    assert planted(clustering, truth) == [{0}, {1}, {2}]


def canned(kinds: int, n_people: int, *, n_dialogues: int = 9, by_prompt: bool = True) -> tuple[Dataset, dict[str, int]]:
    """Return people of some kinds, each of whom answers as their kind does: with the number of the prompt, or word for word."""
    manners = ("Yes sir {}, at once.", "Nope {}, not today mate.", "Darling {}, gladly I do.")[:kinds]
    personas, truth = [], {}
    for person in range(n_people):
        truth[name := f"p{person:02d}"] = person % kinds
        turns = (
            (Turn("user", f"question {number} please"), Turn("assistant", manners[person % kinds].format(number if by_prompt else "")))
            for number in range(n_dialogues)
        )
        own = tuple(Dialogue(f"{name}/{number}", pair, split="train") for number, pair in enumerate(turns))
        personas.append(Persona(name, None, own))
    return Dataset(tuple(personas)), truth


AUTO_ALONE = ClusteringSettings()


@pytest.mark.whole
@pytest.mark.parametrize("by_prompt", [True, False])
@pytest.mark.parametrize("kinds", [2, 3])
def test_people_whose_kind_says_it_all_are_clusters_of_these_kinds(kinds: int, by_prompt: bool):
    dataset, truth = canned(kinds, 10 * kinds, by_prompt=by_prompt)
    clustering = cluster_personas(dataset, AUTO_ALONE, Sources(CountsEmbedder()))
    assert sorted(planted(clustering, truth), key=min) == [{kind} for kind in range(kinds)]
    assert dict(clustering.quality)["predicted"] > 0.2, "on prompts that nobody was fitted on"


def test_a_manner_that_does_not_depend_on_the_prompt_is_predicted_on_prompts_of_other_words():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(20)]
    personas, truth = [], {}
    for person in range(24):
        truth[name := f"p{person:02d}"] = person % 2
        answers = [f"{('sir indeed', 'mate cheers')[person % 2]} {' '.join(rng.choice(words, 8))}" for _ in range(9)]
        pairs = [(Turn("user", f"question {number} please"), Turn("assistant", answer)) for number, answer in enumerate(answers)]
        own = tuple(Dialogue(f"{name}/{number}", pair, split="train") for number, pair in enumerate(pairs))
        personas.append(Persona(name, None, own))
    clustering = cluster_personas(Dataset(tuple(personas)), AUTO_ALONE, Sources(CountsEmbedder()))
    assert sorted(planted(clustering, truth), key=min) == [{0}, {1}]


def test_where_answers_give_nothing_to_divide_people_by_there_are_no_clusters():
    said_the_same, _ = canned(1, 20, by_prompt=False)
    without_a_word_in_common = Dataset(
        tuple(Persona(f"p{i:02d}", None, (Dialogue(f"{i}", (Turn("assistant", f"w{i}"),), split="train"),)) for i in range(20))
    )
    for dataset in (said_the_same, without_a_word_in_common):
        clustering = cluster_personas(dataset, AUTO_ALONE, Sources(CountsEmbedder()))
        assert clustering.sizes == (20,)
        assert "their answers give nothing to divide them by" in sentence(clustering)


def test_where_nobody_has_two_answers_that_differ_there_is_nothing_to_whiten_by():
    dataset, truth = canned(2, 12, by_prompt=False)
    clustering = cluster_personas(dataset, by_responses(algorithm="responses_discriminant", k=2), Sources(CountsEmbedder()))
    assert sorted(planted(clustering, truth), key=min) == [{0}, {1}]


def test_clusters_of_single_descriptions_have_no_bootstrap_stability():
    dataset, _ = population()
    clustering = cluster_personas(dataset, by_responses(algorithm="description"), Sources(CountsEmbedder()))
    assert [name for name, _ in clustering.quality] == ["silhouette", "ari_seeds", "predicted"]


def test_the_map_places_every_persona_and_keeps_the_largest_distances():
    dataset, truth = population()
    clustering = cluster_personas(dataset, by_responses(), Sources(CountsEmbedder()))
    assert {persona_id for persona_id, _, _ in clustering.map_2d} == set(dataset.ids)
    position = {persona_id: np.array([x, y]) for persona_id, x, y in clustering.map_2d}
    centres = [np.mean([position[p] for p in truth if truth[p] == k], axis=0) for k in range(3)]
    within = max(np.linalg.norm(position[p] - centres[truth[p]]) for p in truth)
    assert within < min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_impossible_clusterings_are_refused_with_the_fix():
    dataset, _ = population()
    silent = Dataset((*dataset.personas, Persona("quiet/one", None, ())))
    with pytest.raises(BadData, match=r"'quiet/one' has no description; .* clustering\.algorithm=responses"):
        cluster_personas(silent, by_responses(algorithm="description"), Sources(CountsEmbedder()))
    with pytest.raises(BadData, match="'quiet/one' has no response in its train dialogues"):
        cluster_personas(silent, by_responses(), Sources(CountsEmbedder()))
    with pytest.raises(BadSettings, match=r"sizes=\(9, 4\) sum to 13 for 19 personas"):
        cluster_personas(dataset, by_responses(sizes=(9, 4)), Sources(CountsEmbedder()))
    with pytest.raises(BadSettings, match="at least 1"):
        cluster_personas(dataset, by_responses(sizes=(19, 0)), Sources(CountsEmbedder()))
    with pytest.raises(BadSettings, match="k=20 exceeds the 19 personas"):
        cluster_personas(dataset, by_responses(k=20), Sources(CountsEmbedder()))
    with pytest.raises(UnknownName, match="unknown clustering algorithm 'astrology'"):
        cluster_personas(dataset, by_responses(algorithm="astrology"), Sources(CountsEmbedder()))
    twins = Dataset(tuple(replace(dataset.personas[0], id=f"twin_{i}") for i in range(4)))
    with pytest.raises(BadData, match="4 personas look like only 1 by responses, fewer than k=3"):
        cluster_personas(twins, by_responses(), Sources(CountsEmbedder()))


def test_twins_can_still_be_divided_into_given_sizes():
    dataset, _ = population()
    twins = Dataset(tuple(replace(dataset.personas[0], id=f"twin_{i}") for i in range(4)))
    assert cluster_personas(twins, by_responses(sizes=(1, 3)), Sources(CountsEmbedder())).sizes == (1, 3)


def test_as_many_clusters_as_personas_leave_no_silhouette():
    dataset, _ = population((1, 1, 1))
    clustering = cluster_personas(dataset, by_responses(), Sources(CountsEmbedder()))
    assert clustering.sizes == (1, 1, 1)
    assert "silhouette" not in dict(clustering.quality)


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(5, 40), st.floats(0, 1), st.sampled_from([1e-6, 1.0, 1e4]), st.booleans(), st.integers(0, 10**6))
def test_least_sizes_are_kept_at_the_cost_of_the_best_assignment(k: int, n: int, share: float, scale: float, coarse: bool, seed: int):
    from scipy.optimize import linear_sum_assignment  # pyrefly: ignore[implicit-reexport]

    rng = np.random.default_rng(seed)
    costs = scale * rng.normal(size=(n, k))
    costs = np.round(costs, 1) if coarse else costs  # ties
    least = rng.multinomial(int(share * n), np.ones(k) / k)
    labels = minimum_cost_labels(costs, least.tolist())
    assert (np.bincount(labels, minlength=k) >= least).all()
    seats = np.repeat(np.arange(k), least)
    anywhere = np.repeat(costs.min(axis=1)[:, None], n - len(seats), axis=1)
    seated = np.hstack([costs[:, seats], anywhere])
    best = seated[linear_sum_assignment(seated)].sum()
    assert costs[np.arange(n), labels].sum() == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=4), st.integers(0, 1000))
def test_no_exchange_of_two_personas_improves_clusters_of_exact_sizes(sizes: list[int], seed: int):
    features = np.random.default_rng(seed).normal(size=(sum(sizes), 3))
    labels = exact_sizes(features, tuple(sizes), seed=seed)
    assert np.bincount(labels).tolist() == sizes
    centroids = np.stack([features[labels == cluster].mean(axis=0) for cluster in range(len(sizes))])
    cost = np.sum((features[:, None] - centroids) ** 2, axis=2)
    own = cost[np.arange(len(labels)), labels]
    exchanged = cost[:, labels] + cost[:, labels].T
    assert np.all(exchanged >= own[:, None] + own[None, :] - 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 20), st.integers(2, 4), st.integers(1, 8), st.integers(0, 1000))
def test_no_cluster_is_smaller_than_asked_where_the_personas_suffice(n: int, k: int, min_size: int, seed: int):
    features = np.random.default_rng(seed).normal(size=(n, 3)) ** 3  # heavy tails: free k-means leaves outliers alone
    labels = free_sizes(features, k, seed=seed, min_size=min_size)
    counts = np.bincount(labels, minlength=k)
    assert counts.min() >= min(min_size, n // k)
    assert counts.tolist() == sorted(counts)
    free = free_sizes(features, k, seed=seed)
    if np.bincount(free, minlength=k).min() >= min_size:
        assert np.array_equal(labels, free)


def test_a_cluster_of_an_outlier_takes_its_nearest_personas_and_no_others_move():
    features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [5.3], [40.0]])
    assert free_sizes(features, 3, seed=0).tolist() == [1, 1, 1, 2, 2, 2, 2, 0]
    assert free_sizes(features, 3, seed=0, min_size=2).tolist() == [1, 1, 1, 2, 2, 2, 0, 0]


def test_cluster_zero_is_the_smallest_and_equal_sizes_are_ordered_by_their_first_persona():
    features = np.array([[9.0], [0.0], [9.1], [0.1], [5.0]])
    assert free_sizes(features, 3, seed=0).tolist() == [1, 2, 1, 2, 0]


def asked_alike(dataset: Dataset) -> Dataset:
    """The same people, whose prompts do not give them away."""

    def alike(dialogue: Dialogue) -> Dialogue:
        turns = tuple(replace(turn, text="do it") if turn.text.startswith("do ") else turn for turn in dialogue.turns)
        return replace(dialogue, turns=turns)

    return Dataset(tuple(replace(p, dialogues=tuple(alike(d) for d in p.dialogues)) for p in dataset.personas))


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", ["auto", "responses"])
def test_without_k_the_planted_number_of_clusters_is_chosen_and_what_every_k_predicts_is_kept(algorithm: str):
    dataset, truth = population((5, 6, 7, 8), n_dialogues=12)
    clustering = cluster_personas(asked_alike(dataset), by_responses(k=None, algorithm=algorithm), Sources(CountsEmbedder()))
    assert planted(clustering, truth) == [{0}, {1}, {2}, {3}]
    predicted = {k: share for k, share, _ in clustering.curve}
    assert predicted[4] > 2 * max(predicted[1], predicted[2])
    assert list(predicted) == list(range(1, 9)), "26 personas leave 3 to each of 8 clusters"
    assert dict(clustering.quality)["predicted"] == predicted[4]
    assert "4 clusters by" in sentence(clustering)
    assert "the largest has 31%; stable" in sentence(clustering)
    assert cluster_personas(dataset, by_responses(), Sources(CountsEmbedder())).curve == ()


@pytest.mark.whole
def test_people_who_answer_alike_are_one_cluster_and_the_sentence_says_what_was_found():
    alike, _ = population((40,), n_dialogues=9)
    clustering = cluster_personas(asked_alike(alike), by_responses(k=None, algorithm="auto"), Sources(CountsEmbedder()))
    assert clustering.members == (tuple(sorted(alike.ids)),)
    assert clustering.quality == ()
    assert sentence(clustering).startswith("No clusters worth having among 40 people: the best by ")
    assert "; 1.00 % and a stability of 0.5 are asked" in sentence(clustering)
    met = sentence(replace(clustering, curve=((1, 0.0, 1.0), (2, 0.0636, 1.0))))
    assert "with k = 2 and stability 1.00, predict 6.36 % of what prompts leave open of held-out answers; that is not 3 standard" in met
    assert "; a stability of 0.5 is asked. Methods that need clusters" in sentence(replace(clustering, curve=((2, 0.02, 0.4),)))
    asked_for = cluster_personas(asked_alike(alike), by_responses(k=3, algorithm="auto"), Sources(CountsEmbedder()))
    assert len(asked_for.members) == 3
    assert "less than the 1.00 % that clusters worth having do" in sentence(asked_for)


def test_too_few_people_for_two_clusters_are_one():
    few, _ = population((3, 2))
    clustering = cluster_personas(few, by_responses(k=None, algorithm="auto"), Sources(CountsEmbedder()))
    assert clustering.sizes == (5,)
    assert sentence(clustering).startswith("No clusters: 5 people are too few for two")


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", ["auto", "responses_given_prompts", "response_residuals", "responses"])
def test_a_few_extreme_people_are_no_clusters_of_their_own(algorithm: str):
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    extreme = ("ok", "x = [i for i in range(9)] {}", "+1 +1 +1", "!!! 7 !!!")
    personas = []
    for number in range(60):
        texts = [extreme[number] if number < 4 else " ".join(rng.choice(words, 8)) for _ in range(12)]
        personas.append(Persona(f"p{number:02d}", None, tuple(dialogue(str(i), text, "train") for i, text in enumerate(texts))))
    clustering = cluster_personas(Dataset(tuple(personas)), by_responses(algorithm=algorithm, k=5), Sources(CountsEmbedder()))
    assert max(clustering.sizes) < 30
    assert min(clustering.sizes) > 3, "not one of the extreme people and the two others that the minimum size gives them"


def test_words_of_scripts_without_spaces_are_their_characters():
    from clusterlora.clustering.exchange_topics import exchange_topics

    personas = []
    for number in range(6):
        texts = [f"我也觉得{'好的' if number % 2 else '不行'}{i}" for i in range(4)]
        personas.append(Persona(f"p{number}", None, tuple(dialogue(str(i), text, "train") for i, text in enumerate(texts))))
    topics = exchange_topics(tuple(personas))
    means = np.stack([own.mean(axis=0) for own in topics.by_persona(topics.residuals)])
    assert np.linalg.norm(means[0] - means[2]) < 0.5 * np.linalg.norm(means[0] - means[1])


def test_an_algorithm_that_needs_adapters_is_refused_without_them():
    dataset, _ = population()
    for algorithm in PREREQUISITES:
        with pytest.raises(BadSettings, match="needs trained adapters, which are not available here"):
            cluster_personas(dataset, by_responses(algorithm=algorithm), Sources(CountsEmbedder()))


def test_adapters_of_the_same_direction_share_a_cluster_whatever_their_norm():
    dataset, truth = population()
    rng = np.random.default_rng(0)
    directions = np.eye(3)

    def products(personas: Sequence[Persona]) -> np.ndarray:
        updates = np.stack([rng.uniform(0.1, 10) * (directions[truth[p.id]] + 0.1 * rng.standard_normal(3)) for p in personas])
        return updates @ updates.T

    clustering = cluster_personas(dataset, by_responses(algorithm="adapter"), Sources(CountsEmbedder(), products=products))
    assert planted(clustering, truth) == [{0}, {2}, {1}]


def test_refinement_moves_personas_that_another_cluster_predicts_clearly_better_and_none_by_chance():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 1])
    losses = [rng.normal(1.0, 0.05, size=(8, 1)) + np.array([[0.0, 0.5] if label == 0 else [0.5, 0.0]]) for label in labels]
    losses[2] = losses[2][:, ::-1]
    losses[5] = np.stack([losses[5][:, 1] - 0.001 + rng.normal(0, 0.1, 8), losses[5][:, 1]], axis=1)
    assert reassign(losses, labels, [1, 1]).tolist() == [0, 0, 1, 1, 1, 1]
    assert reassign([own[:1] for own in losses], labels, [1, 1]).tolist() == labels.tolist(), "one item proves nothing"


def test_refinement_keeps_the_sizes_that_were_asked_for():
    rng = np.random.default_rng(1)
    labels = np.array([0, 0, 1, 1, 1, 1])
    everybody_likes_0 = [np.stack([rng.normal(1, 0.1, 6), rng.normal(3, 0.1, 6) + number], axis=1) for number in range(6)]
    assert np.bincount(reassign(everybody_likes_0, labels, [2, 4])).tolist() == [2, 4]
    assert reassign(everybody_likes_0, labels, [2, 4]).tolist() == [1, 1, 1, 1, 0, 0], "those who lose most elsewhere"
    assert np.bincount(reassign(everybody_likes_0, labels, [1, 1])).tolist() == [5, 1]
