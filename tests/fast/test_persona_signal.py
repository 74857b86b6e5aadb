"""The persona signal of data: its counts, its ranking of planted data, and its verdict."""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import load
from clusterlora.data.split import SPLITS
from clusterlora.errors import BadData
from clusterlora.persona_signal.masked_exchanges import MASK, masked, masked_exchanges
from clusterlora.persona_signal.measure import MOST_PERSONAS, PersonaSignal, Recognition, measure
from clusterlora.persona_signal.summary import LITTLE, expectation, markdown, shares, verdict
from clusterlora.settings import ClusteringSettings, DataSettings, Study, SyntheticSettings
from clusterlora.stages.persona_signal import signal_of_data
from clusterlora.values import Clustering, Dataset, Dialogue, Persona, Turn


class WordsEmbedder:
    """A text is its words, each hashed to one of 128 numbers; of unit length."""

    name = "words"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.zeros((len(texts), 128), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+|…", text.lower()):
                counts[row, zlib.crc32(word.encode()) % 128] += 1
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


class Counting:
    """A run log that knows how much was announced and done."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def phase(self, name: str, *, total: int, unit: str) -> None:
        assert name
        assert unit
        self.total += total

    def advance(self, units: int = 1, **values: float) -> None:
        del values
        self.done += units

    def metric(self, name: str, value: float, *, step: int) -> None: ...

    def note(self, message: str) -> None: ...


def spoken(name: str, *turns: str, split: str = "train") -> Dialogue:
    roles = ("user", "assistant") * len(turns)
    return Dialogue(name, tuple(Turn(role, text) for role, text in zip(roles, turns, strict=False)), (("time", "late_evening"),), split)  # pyrefly: ignore[bad-argument-type]


@cache
def planted(cluster_share: float, persona_share: float, seed: int) -> PersonaSignal:
    synthetic = SyntheticSettings(
        cluster_sizes=(6, 12, 6, 8, 8), dialogues=20, cluster_share=cluster_share, persona_share=persona_share, seed=seed
    )
    dataset = load(DataSettings(source="synthetic", train=12, val=6, test=2, synthetic=synthetic))
    # By one algorithm for all data sets: what is compared is their signal, not what is chosen for each.
    settings = ClusteringSettings(algorithm="responses_given_prompts", sizes=(6, 12, 6, 8, 8))
    clustering = cluster_personas(dataset, settings, Sources(WordsEmbedder()))
    return measure(dataset.personas, clustering, WordsEmbedder(), Counting())


@pytest.mark.whole
@pytest.mark.parametrize("seed", [pytest.param(101, marks=pytest.mark.numeric), 102, 103])
def test_data_sets_are_ranked_by_their_planted_personal_share(seed: int):
    measured = [planted(cluster, persona, seed) for cluster, persona in ((0.0, 0.0), (0.2, 0.1), (0.5, 0.25))]
    for signals in (
        [s.persona_beyond_prompts.accuracy for s in measured],
        [s.cluster_beyond_prompts.accuracy - s.cluster_beyond_prompts.chance for s in measured],
        [s.persona_explains for s in measured],
        [s.distance_between - s.distance_within for s in measured],
    ):
        assert signals == sorted(signals), signals
    assert measured[0].persona_explains < LITTLE < measured[2].persona_explains
    assert expectation(measured[2]) in ("people", "people and clusters")


@pytest.mark.whole
def test_without_anything_personal_people_are_recognised_as_often_as_by_chance():
    hits = [planted(0.0, 0.0, seed).persona_beyond_prompts for seed in (101, 102, 103)]
    assert sum(hit.low <= hit.chance <= hit.high for hit in hits) >= 2
    assert all(hit.accuracy < 3 * hit.chance for hit in hits)


@pytest.mark.whole
@pytest.mark.numeric
def test_what_is_personal_but_not_shared_is_found_in_people_and_not_in_clusters():
    measured = planted(0.0, 0.6, 104)
    assert measured.persona_beyond_prompts.low > measured.persona_beyond_prompts.chance
    assert measured.persona_explains > 2 * measured.cluster_explains


def test_test_dialogues_are_not_read():
    def people(secret: str) -> list[Persona]:
        return [
            Persona(
                name,
                None,
                (
                    *(spoken(f"{name}{i}", f"do {i} thing", f"certainly {name} number {i} {i * i}") for i in range(4)),
                    spoken(f"{name}v", "do the other", f"surely {name}", split="val"),
                    spoken(f"{name}t", "ask", f"{secret} {name}", split="test"),
                ),
            )
            for name in "abcd"
        ]

    clustering = Clustering("given", (("a", "b"), ("c", "d")))
    one, other = (measure(people(secret), clustering, WordsEmbedder(), Counting()) for secret in ("x", "something else"))
    assert one == other


def test_progress_ends_where_it_was_announced():
    log = Counting()
    people = [Persona(n, None, (spoken("1", "do it", n), spoken("2", "do that", n * 2, split="val"))) for n in "abc"]
    measure(people, Clustering("given", (("a", "b", "c"),)), WordsEmbedder(), log)
    assert log.done == log.total == 12


def test_of_many_personas_an_evenly_spaced_sample_is_measured():
    ids = [f"p{i:03d}" for i in range(3 * MOST_PERSONAS)]
    people = [Persona(n, None, (spoken("1", "do it", n), spoken("2", "do that", n * 2, split="val"))) for n in ids]
    members = (tuple(ids[:MOST_PERSONAS]), tuple(ids[MOST_PERSONAS:]))
    measured = measure(people, Clustering("given", members), WordsEmbedder(), Counting())
    assert measured.n_personas == MOST_PERSONAS
    assert measured.cluster_beyond_prompts.n_classes == 2


def test_words_of_earlier_turns_are_masked():
    assert masked("Dimming the LIGHTS to 30, sir.", given="dim the lights, to 30") == f"Dimming {MASK} {MASK} {MASK} {MASK}, sir."
    persona = Persona("a", None, (spoken("1", "It is dark", "Lights on, my lord", "thanks", "My lord, this evening is yours"),))
    first, second = masked_exchanges(persona, "train", limit=9)
    assert first.answer == "Lights on, my lord"
    assert second.answer == f"{MASK} {MASK}, this {MASK} {MASK} yours"
    assert second.prompt == "thanks\nlate evening"


def test_equal_dialogues_count_once():
    same = [spoken(str(i), "Lights on please!", "Yes, of course") for i in range(3)]
    assert len(masked_exchanges(Persona("a", None, tuple(same)), "train", limit=9)) == 1
    different = [spoken(str(i), f"Lights {i} on", f"Yes {i}") for i in range(3)]
    assert len(masked_exchanges(Persona("a", None, tuple(different)), "train", limit=2)) == 2


def test_too_few_people_or_no_val_dialogues_are_refused():
    with pytest.raises(BadData, match="at least 2 personas, not 1"):
        measure([Persona("a", None, (spoken("1", "x", "y"),))], Clustering("given", (("a",),)), WordsEmbedder(), Counting())
    people = [Persona(n, None, (spoken("1", "x", "y"),)) for n in "ab"]
    with pytest.raises(BadData, match=r"'a' has no val dialogues; raise data\.val"):
        measure(people, Clustering("given", (("a", "b"),)), WordsEmbedder(), Counting())


def a_signal(**changes: Any) -> PersonaSignal:
    hidden = Recognition(accuracy=0.03, low=0.02, high=0.04, chance=0.025, n_classes=40)
    clear = Recognition(accuracy=0.3, low=0.2, high=0.4, chance=0.025, n_classes=40)
    cluster = Recognition(accuracy=0.6, low=0.5, high=0.7, chance=0.3, n_classes=5)
    measured = PersonaSignal(
        n_personas=40,
        n_exchanges=900,
        persona_from_prompts=hidden,
        persona_beyond_prompts=clear,
        cluster_beyond_prompts=cluster,
        persona_explains=0.12,
        cluster_explains=0.08,
        random_explains=0.01,
        distance_within=0.5,
        distance_between=0.6,
    )
    return replace(measured, **changes)


def test_the_verdict_follows_from_the_numbers():
    chance = Recognition(accuracy=0.03, low=0.01, high=0.045, chance=0.025, n_classes=40)
    assert verdict(a_signal()) == (
        "The right one of 40 people is recognised by 30.0% of the answers (2.5% by chance), the right one of 5 clusters by 60.0% "
        "(30.0% for random groups): adapters per cluster and per person have something to win."
    )
    assert "expect gains per person rather than per cluster" in verdict(a_signal(cluster_explains=0.01))
    hardly = Recognition(accuracy=0.04, low=0.03, high=0.05, chance=0.025, n_classes=40)
    assert "explains only 0.4%" in verdict(a_signal(persona_explains=0.004, persona_beyond_prompts=hardly))
    assert "explains nothing of" in verdict(a_signal(persona_explains=-0.001)), "recognised by a word or two that similarity does not see"
    assert "something to win" in verdict(a_signal(persona_explains=0.004)), "people who are recognised leave traces, however small"
    nothing = verdict(a_signal(persona_beyond_prompts=chance))
    assert "are not shown to tell people apart" in nothing
    assert f"where chance is {chance.chance:.1%}): expect no method" in nothing


def test_an_interval_that_holds_chance_and_what_would_be_enough_to_train_decides_nothing():
    wide = Recognition(accuracy=0.25, low=0.043, high=0.52, chance=0.083, n_classes=12)
    undecided = a_signal(persona_beyond_prompts=wide)
    assert expectation(undecided) == "undecided"
    assert verdict(undecided).endswith(
        "(25.0% recognised, 4.3% to 52.0%, where chance is 8.3%): what to expect stays open, and only a comparison of the methods tells."
    )
    assert "expect no method" not in verdict(undecided)
    assert expectation(a_signal(persona_beyond_prompts=replace(wide, high=1.99 * wide.chance))) == "nothing"


def test_people_who_are_alike_within_their_clusters_are_expected_to_gain_by_cluster():
    nobody = Recognition(accuracy=0.25, low=0.043, high=0.52, chance=0.083, n_classes=12)
    alike = a_signal(persona_beyond_prompts=nobody, cluster_explains=0.12, cluster_explains_low=0.05)
    assert expectation(alike) == "clusters"
    assert verdict(alike) == (
        "The right one of 5 clusters is recognised by 60.0% of the answers (30.0% for random groups), while people within them are not "
        "shown to be told apart (25.0% recognised, 4.3% to 52.0%, where chance is 8.3%): expect gains per cluster rather than per person."
    )
    by_chance = replace(alike.cluster_beyond_prompts, low=alike.cluster_beyond_prompts.chance)
    assert expectation(replace(alike, cluster_beyond_prompts=by_chance)) == "undecided"
    assert expectation(replace(alike, random_explains=0.06)) == "undecided", "random groups explain as much"


def test_prompts_that_give_people_away_are_named_before_the_verdict():
    clear = Recognition(accuracy=0.425, low=0.4, high=0.45, chance=0.025, n_classes=40)
    told = verdict(a_signal(persona_from_prompts=clear))
    assert told.startswith("Prompts give people away: the right one of 40 is recognised by 42.5% of the prompts alone (2.5% by chance)")
    assert told.endswith(verdict(a_signal()))


def test_a_negative_explained_share_is_none_in_the_table():
    cells = dict(shares(a_signal(persona_explains=0.012, cluster_explains=-0.003, random_explains=0.0)))
    assert list(cells.values())[:3] == ["1.2%", "none", "none"]


def test_without_clusters_nothing_is_said_of_recognising_them():
    one = Recognition(accuracy=1.0, low=1.0, high=1.0, chance=1.0, n_classes=1)
    alone = a_signal(cluster_beyond_prompts=one, cluster_explains=0.0, random_explains=0.0)
    assert "no clusters worth having: expect gains per person" in verdict(alone)
    assert "which of 1 clusters" not in markdown(alone)
    assert "random groups" not in markdown(alone)


def test_every_cluster_is_in_the_sample_and_the_basis_says_of_how_many_people_it_is():
    ids = [f"p{i:03d}" for i in range(5 * MOST_PERSONAS)]
    people = [Persona(n, None, (spoken("1", "do it", n), spoken("2", "do that", n * 2, split="val"))) for n in ids]
    between = (tuple(ids[:98]), tuple(ids[98:100]), tuple(ids[100:]))
    measured = measure(people, Clustering("given", between), WordsEmbedder(), Counting())
    assert measured.cluster_beyond_prompts.n_classes == 3
    assert measured.n_personas == MOST_PERSONAS + 2
    assert "exchanges of 42 of 200 people, some of every cluster" in markdown(measured)


def test_labels_are_not_said_to_be_masked():
    people = [Persona(n, None, (spoken("1", "do it", n), spoken("2", "do that", n * 2, split="val"))) for n in "abcd"]
    between, log = Clustering("given", (("a", "b"), ("c", "d"))), Counting()
    assert "are masked" in markdown(measure(people, between, WordsEmbedder(), log))
    assert "masked" not in markdown(measure(people, between, WordsEmbedder(), log, labelled=True))


def test_for_labels_it_is_what_the_person_explains_that_counts():
    hidden = Recognition(accuracy=0.03, low=0.02, high=0.04, chance=0.025, n_classes=40)
    labels = a_signal(
        labelled=True, persona_beyond_prompts=hidden, persona_explains=1.0, persona_explains_low=0.99, cluster_explains_low=0.06
    )
    labels = replace(labels, persona_explains_high=1.0)
    assert expectation(labels) == "people and clusters", "a few labels name nobody of forty"
    assert "the person explains 100.0% (95% interval 99.0% to 100.0%), the cluster 8.0% and random groups 1.0%: adapters per" in verdict(
        labels
    )
    assert expectation(replace(labels, cluster_explains_low=0.005)) == "people"
    assert "expect gains per person rather than per cluster" in verdict(replace(labels, cluster_explains_low=0.005))
    assert expectation(replace(labels, persona_explains=LITTLE / 2, persona_explains_low=LITTLE / 4)) == "little"
    undecided = replace(labels, persona_explains=0.1, persona_explains_low=-0.01, persona_explains_high=0.2)
    assert expectation(undecided) == "undecided"
    assert "explains 10.0% (95% interval none to 20.0%): what to expect stays open" in verdict(undecided)
    nothing = replace(labels, persona_explains=0.001, persona_explains_low=-0.01, persona_explains_high=LITTLE / 2)
    assert expectation(nothing) == "nothing"
    assert "explains 0.1% (95% interval none to 0.2%), which is not shown to be anything: expect no method" in verdict(nothing)


def test_the_table_holds_every_number():
    shown = markdown(a_signal())
    assert all(part in shown for part in ("| 30.0% | 20.0% to 40.0% | 2.5% |", "| 60.0% | 50.0% to 70.0% | 30.0% |", "0.500", "12.0%"))


@pytest.mark.whole
def test_dialogues_shuffled_between_personas_carry_no_persona_signal():
    synthetic = SyntheticSettings(cluster_sizes=(6, 12, 6, 8, 8), dialogues=20, seed=105)
    dataset = load(DataSettings(source="synthetic", train=12, val=6, test=2, synthetic=synthetic))
    rng = np.random.default_rng(0)
    dealt = {
        split: iter(rng.permutation(np.array([d for p in dataset.personas for d in p.of_split(split)], dtype=object)).tolist())
        for split in SPLITS
    }
    mixed = Dataset(
        tuple(replace(p, dialogues=tuple(next(dealt[split]) for split in SPLITS for _ in p.of_split(split))) for p in dataset.personas)
    )
    clustering = cluster_personas(mixed, ClusteringSettings(sizes=(6, 12, 6, 8, 8)), Sources(WordsEmbedder()))
    measured = measure(mixed.personas, clustering, WordsEmbedder(), Counting())
    person = measured.persona_beyond_prompts
    assert person.low <= person.chance
    assert measured.persona_explains < LITTLE < planted(0.5, 0.25, 101).persona_explains
    assert "expect no method" in verdict(measured)


def test_personas_with_one_dialogue_each_are_recognised_within_it(tmp_path: Path):
    lines = [
        {
            "persona_id": f"p{number}",
            "dialogue_id": "1",
            "messages": [
                {"role": "user", "text": f"lights at {number}"},
                {"role": "assistant", "text": f"{style} lights {number} set"},
                {"role": "user", "text": f"and the fan at {number + 30}"},
                {"role": "assistant", "text": f"{style} lights {number} and fan {number + 30} set"},
            ],
        }
        for number, style in enumerate(["aye", "certainly", "sure", "done", "gladly", "right"])
    ]
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    study = Study(data=DataSettings(source="table", path=str(path)), clustering=ClusteringSettings(k=2))
    measured, _ = signal_of_data(study, Counting())
    assert (measured.within_dialogues, measured.n_personas, measured.n_exchanges) == (True, 6, 12)
    assert "the true signal is at most this" in markdown(measured)

    lines[0]["messages"] = lines[0]["messages"][:2]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]), encoding="utf-8")
    with pytest.raises(BadData, match="1 people have a dialogue with two answers"):
        signal_of_data(study, Counting())
