"""The synthetic source: planted clusters, what reveals them, and equal bytes from equal seeds."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from clusterlora.data.duplicates import normalised_text
from clusterlora.data.generator.home import DEVICES
from clusterlora.data.generator.rules import Choice, Mood, Taste
from clusterlora.data.load import load
from clusterlora.data.synthetic import SyntheticPopulation, generate, write_population
from clusterlora.errors import BadSettings
from clusterlora.settings import DataSettings, SyntheticSettings
from clusterlora.values import Dialogue

FILES = ("characters.jsonl", "routines.jsonl", "sessions.jsonl", "truth.json")


def population(**settings: Any) -> SyntheticPopulation:
    given: dict[str, Any] = {"cluster_sizes": (4, 6), "dialogues": 12}
    return generate(SyntheticSettings(**(given | settings)))


def dialogues(**settings: object) -> list[Dialogue]:
    return [dialogue for persona in population(**settings).dataset.personas for dialogue in persona.dialogues]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    for folder, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_population(population(seed=seed), tmp_path / folder)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_the_words_are_the_ones_the_embedded_base_model_has_learned() -> None:
    assert population().dataset.digest == "5ef83dbb28f2bba9"


def test_written_people_are_read_back_by_the_edgewise_source(tmp_path: Path) -> None:
    people = population()
    write_population(people, tmp_path)
    read = load(DataSettings(source="edgewise", path=str(tmp_path), train=6, val=3, test=3))
    assert read.ids == people.dataset.ids
    for ours, theirs in zip(people.dataset.personas, read.personas, strict=True):
        assert ours.description == theirs.description
        assert {d.id: (d.turns, d.context) for d in ours.dialogues} == {d.id: (d.turns, d.context) for d in theirs.dialogues}


def test_clusters_have_the_sizes_asked_for_and_the_order_of_personas_does_not_reveal_them(tmp_path: Path) -> None:
    people = generate(SyntheticSettings(cluster_sizes=(16, 52, 25), dialogues=3))
    clusters = [cluster for _, cluster in people.truth.clusters]
    assert Counter(clusters) == {0: 16, 1: 52, 2: 25}
    assert clusters != sorted(clusters)
    assert tuple(people.truth.cluster_by_persona) == people.dataset.ids
    write_population(people, tmp_path)
    assert json.loads((tmp_path / "truth.json").read_text()) == {"cluster_by_persona": people.truth.cluster_by_persona}
    assert "cluster" not in "".join((tmp_path / name).read_text() for name in FILES[:3])


def test_no_two_dialogues_of_a_population_have_the_same_words() -> None:
    # One person with thousands of dialogues would repeat herself if repetitions were not invented again.
    texts = [normalised_text(dialogue) for dialogue in dialogues(cluster_sizes=(1,), dialogues=3000, seed=4)]
    assert len(set(texts)) == len(texts) == 3000


def test_a_dialogue_is_one_to_three_exchanges_of_short_turns_in_a_described_situation() -> None:
    lengths = Counter(len(dialogue.turns) // 2 for dialogue in dialogues(cluster_sizes=(20, 20)))
    assert set(lengths) == {1, 2, 3}
    assert lengths[2] > max(lengths[1], lengths[3])
    for dialogue in dialogues():
        assert [turn.role for turn in dialogue.turns] == ["user", "assistant"] * (len(dialogue.turns) // 2)
        assert max(len(turn.text.split()) for turn in dialogue.turns) <= 36
        assert [name for name, _ in dialogue.context] == ["time_of_day", "day_of_week", "sun_phase", "weather", "outdoor_temp"]


def test_what_the_user_spells_out_is_in_the_answer() -> None:
    spelled_out = 0
    for dialogue in dialogues(cluster_sizes=(20, 20)):
        for question, answered in zip(dialogue.turns[::2], dialogue.turns[1::2], strict=True):
            for value in re.findall(r"\d+ degrees|\d+%|volume \d+|Netflix|YouTube|HDMI\d|bass boost|treble boost", question.text):
                spelled_out += 1
                assert value.removeprefix("volume ") in answered.text
    assert spelled_out > 50


def test_routines_set_devices_to_values_they_have() -> None:
    for line in population().routines:
        for routine in line["routines"]:
            assert routine["triggers"]
            for device, actions in routine["actions"].items():
                assert all(value in DEVICES[device][name] for name, value in actions.items())


def test_one_common_rule_gives_everybody_the_same_routines() -> None:
    alike = population(cluster_share=0.0, persona_share=0.0, noise_share=0.0)
    assert len({str(line) for line in alike.routines}) == 1


def test_cluster_rules_are_the_same_inside_a_cluster_and_differ_between_clusters() -> None:
    people = population(cluster_share=1.0, persona_share=0.0, noise_share=0.0)
    routines_by_cluster: dict[int, set[str]] = {}
    for (_, cluster), line in zip(people.truth.clusters, people.routines, strict=True):
        routines_by_cluster.setdefault(cluster, set()).add(str(line))
    assert [len(kinds) for kinds in routines_by_cluster.values()] == [1, 1]
    assert routines_by_cluster[0] != routines_by_cluster[1]


def test_cluster_persona_and_noise_decide_their_configured_shares_of_the_choices() -> None:
    shares = SyntheticSettings(cluster_sizes=(2, 2), cluster_share=0.4, persona_share=0.2, noise_share=0.2)
    one, peer, stranger = (Taste(shares, persona=p, cluster=k) for p, k in ((0, 0), (1, 0), (2, 1)))
    choices = [Choice("dial", str(i), tuple(range(60))) for i in range(2000)]

    def agree(other: Taste) -> float:
        return sum(one.rule(choice) == other.rule(choice) for choice in choices) / len(choices)

    # Two people agree where their cluster decides for both, or the common rule does: shares of the 0.8 that noise leaves.
    assert agree(stranger) == pytest.approx(0.25**2, abs=0.04)
    assert agree(peer) == pytest.approx(0.5**2 + 0.25**2, abs=0.05)
    today = Mood(one, Random(0))
    assert sum(today.settle(choice) != one.rule(choice) for choice in choices) / len(choices) == pytest.approx(0.2, abs=0.04)


def test_a_random_choice_is_the_same_throughout_a_dialogue() -> None:
    taste = Taste(SyntheticSettings(cluster_share=0.0, persona_share=0.0, noise_share=1.0), persona=0, cluster=0)
    mood, choice = Mood(taste, Random(0)), Choice("dial", "x", tuple(range(10_000)))
    assert mood.settle(choice) == mood.settle(choice)
    assert Mood(taste, Random(1)).settle(choice) != mood.settle(choice)


def test_names_as_a_form_of_address_are_never_a_rule_of_a_cluster() -> None:
    people = population(cluster_share=1.0, persona_share=0.0, noise_share=0.0)
    answers = " ".join(turn.text for p in people.dataset.personas for d in p.dialogues for turn in d.turns if turn.role == "assistant")
    assert not re.search(r"\b(Mr|Ms) ", answers)


def test_shares_over_one_are_refused_by_name() -> None:
    with pytest.raises(BadSettings, match=r"cluster_share 0.6 .* = 1.1 is more than 1"):
        population(cluster_share=0.6, persona_share=0.4, noise_share=0.1)


def test_the_loaded_synthetic_population_is_split_as_asked() -> None:
    settings = DataSettings(synthetic=SyntheticSettings(cluster_sizes=(3, 3), dialogues=12), train=6, val=3, test=2)
    for persona in load(settings).personas:
        assert [len(persona.of_split(split)) for split in ("train", "val", "test")] == [6, 3, 2]
