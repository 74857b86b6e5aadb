"""The data of a refresh: splits without leaks, the user's own splits and conversations, and what ends a refresh in a line."""

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.data.leaks import find_leaks
from clusterlora.data.load import read
from clusterlora.data.refresh import Joined, joined
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData, BadSettings, NothingNew
from clusterlora.methods import METHODS
from clusterlora.models.base import usable_base
from clusterlora.ports.stores import Stores
from clusterlora.settings import DataSettings, PreparedStudy
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import champion_of, due, next_refresh, refreshed
from clusterlora.stages.register import register_models
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown

NAMES: tuple[Split, ...] = ("train", "val", "test")


def says(name: str, question: str, answer: str = "it is done", split: Split | None = None) -> Dialogue:
    return Dialogue(name, (Turn("user", question), Turn("assistant", answer)), split=split)


def person(name: str, *dialogues: Dialogue, description: str | None = None) -> Persona:
    return Persona(name, description, dialogues)


def known(name: str, *questions: str) -> Persona:
    """Return somebody with one dialogue in each split."""
    return person(name, *(says(str(i), q, f"answer to {q}", split) for i, (q, split) in enumerate(zip(questions, NAMES, strict=True))))


ANA = known("ana", "lamp on", "music off", "door shut")
BEN = known("ben", "heat up", "wake early", "feed cat")


def join(before: Sequence[Persona], *new: Persona, conversations: Mapping[tuple[str, str], str] | None = None) -> Joined:
    return joined(
        Dataset(tuple(before)), SourceData(Dataset(new), conversation_by_dialogue=conversations or {}), DataSettings(), revision="r1"
    )


def splits_of(result: Joined, persona_id: str, n_old: int = 3) -> list[Split | None]:
    return [d.split for d in result.dataset.by_id()[persona_id].dialogues[n_old:]]


OTHERS = ("alpha beta gamma", "delta epsilon", "zeta eta theta", "iota kappa", "lambda mu nu xi", "omicron pi")


@pytest.mark.parametrize("seed", range(6))
def test_a_new_dialogue_that_equals_somebody_elses_old_one_but_for_a_name_goes_into_that_ones_split(seed: int) -> None:
    of_light = "my dear friend please switch on the light for {}"
    ana = person("ana", says("0", of_light.format("tom"), split="train"), *ANA.dialogues[1:])
    said = [says(f"{seed}-{i}", question) for i, question in enumerate((of_light.format("jerry"), *OTHERS))]
    result = join((ana, BEN), person("ben", *said))
    assert splits_of(result, "ben")[0] == "train"
    assert find_leaks(result.dataset.personas) == frozenset()


def test_what_two_splits_of_before_would_claim_is_left_out() -> None:
    ana = known("ana", "please dim the light for tom", "music off", "door shut")
    ben = known("ben", "heat up", "wake early", "please dim the light for liz")
    old = [
        replace(p, dialogues=tuple(replace(d, turns=(d.turns[0], Turn("assistant", "well then"))) for d in p.dialogues)) for p in (ana, ben)
    ]
    result = join(old, person("cy", says("1", "please dim the light for joe", "well then"), says("2", "what else is there")))
    assert (result.n_left_out, splits_of(result, "cy", 0)) == (1, ["train"])


WORDS = ["lamp", "window", "kitchen", "music", "door", "heat", "cat", "tea", "rain", "sofa"]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_joined_no_split_repeats_what_a_later_one_is_scored_on(seed: int) -> None:
    rng = random.Random(seed)

    def some(name: str, n: int, *, marked: bool) -> Persona:
        questions = [f"please see to the {rng.choice(WORDS)} for {rng.choice((name, 'tom', 'liz'))}" for _ in range(n)]
        return person(name, *(says(f"{i}", q, split=rng.choice(NAMES) if marked else None) for i, q in enumerate(questions)))

    before = [some(name, 5, marked=True) for name in "ab"]
    leaking = find_leaks(before)
    before = [replace(p, dialogues=tuple(d for d in p.dialogues if (p.id, d.id) not in leaking)) for p in before]
    new = [some(name, 6, marked=rng.random() < 0.5) for name in ("a", "b", "c", "d")]
    conversations = {(p.id, d.id): f"c{int(d.id) // 2}" for p in new for d in p.dialogues} if seed % 2 else {}
    result = join(before, *new, conversations=conversations)
    ids = {(p.id, d.id) for p in before for d in p.dialogues}
    everything = [replace(p, dialogues=(*p.dialogues, *(d for n in new if n.id == p.id for d in n.dialogues))) for p in before]
    everything += [p for p in new if p.id not in "ab"]
    own = frozenset(w for w in "abcdtomliz" if sum(w in d.turns[0].text.split() for p in everything for d in p.dialogues) == 1)
    assert {one for one in find_leaks(result.dataset.personas, own) if one not in ids} == set()
    assert result.dataset.n_dialogues == sum(len(p.dialogues) for p in before) + result.n_new
    assert all(p.of_split("train") for p in result.dataset.personas if p.id in result.newcomers)


def table(path: Path, rows: Sequence[Mapping[str, object]]) -> SourceData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read(DataSettings(source="table", path=str(path)))


def test_the_users_own_splits_are_kept(tmp_path: Path) -> None:
    marks = ("test", "test", "train", "train", "train", "val")
    rows = [
        {"persona_id": "ana", "prompt": f"unique question {w}", "response": f"my answer {w}", "split": split}
        for w, split in zip(("kiwi", "pear", "plum", "fig", "lime", "mango"), marks, strict=True)
    ]
    result = joined(Dataset((ANA, BEN)), table(tmp_path / "a.jsonl", rows), DataSettings(), revision="r1")
    assert splits_of(result, "ana") == list(marks)
    again = says("9", "door shut!", "Answer to door shut", "train")
    result = join((ANA, BEN), person("ana", again, says("8", "some more", split="val")))
    assert (result.n_left_out, splits_of(result, "ana")) == (1, ["val"]), "what is scored is not learnt, whatever the file says"


def test_a_conversation_stays_in_one_split_also_with_what_is_known_of_it(tmp_path: Path) -> None:
    said = [
        ("x", "one"),
        ("x", "two"),
        ("x", "three"),
        ("y", "uno"),
        ("y", "dos"),
        ("y", "tres"),
        ("z", "eins"),
        ("z", "zwei"),
        ("z", "drei"),
    ]
    rows = [{"persona_id": "ana", "dialogue_id": c, "prompt": f"topic {c} number {w}", "response": f"re {w} {c}"} for c, w in said]
    first = joined(Dataset((ANA, BEN)), table(tmp_path / "b.jsonl", rows), DataSettings(), revision="r1").dataset
    split = {d.id.partition("/")[0]: d.split for d in first.by_id()["ana"].dialogues[3:]}
    assert [d.split for d in first.by_id()["ana"].dialogues[3:]] == [split[c] for c, _ in said]
    assert set(split.values()) == set(NAMES)
    more = [
        {"persona_id": "ana", "dialogue_id": c, "prompt": f"{c} {w} follows", "response": f"{w} {c}"}
        for c in "xyz"
        for w in ("viel", "mehr noch")
    ]
    second = joined(first, table(tmp_path / "c.jsonl", more), DataSettings(), revision="r2").dataset
    assert [d.split for d in second.by_id()["ana"].dialogues[12:]] == [split[c] for c in "xxyyzz"]


def test_a_conversation_that_stands_in_several_splits_goes_on_row_by_row() -> None:
    ana = person("ana", *(replace(d, id=f"chat/{d.id}") for d in ANA.dialogues))
    new = person("ana", *(says(f"chat/n{i}", question) for i, question in enumerate(OTHERS)))
    result = join((ana, BEN), new, conversations={("ana", d.id): "chat" for d in new.dialogues})
    assert result.n_left_out == 0
    assert set(splits_of(result, "ana")) == set(NAMES)


def test_somebody_new_is_learnt_first_and_who_cannot_be_is_left_out_and_counted() -> None:
    near = person(
        "zoe", says("0", "please dim the big lamp now", "ok"), says("1", "please dim the big lamp now", "ok!"), says("2", "order food")
    )
    result = join((ANA, BEN), near)
    assert splits_of(result, "zoe", 0) == ["train", "train", "test"]
    scored = person("yan", says("0", "feed cat", "answer to feed cat"))
    result = join((ANA, BEN), scored, person("ana", says("n", "something else")))
    assert (result.dataset.ids, result.newcomers, result.unlearnt, result.n_new, result.n_left_out) == (("ana", "ben"), (), ("yan",), 1, 0)
    assert "1 new persona left out with 1 dialogue, none of which can be trained on (first: 'yan')" in "; ".join(result.sentences)


def test_ids_that_look_alike_and_other_descriptions_are_told() -> None:
    tea = replace(ANA, description="likes tea")
    new = (person("ana ", says("1", "who is it")), person("ana", says("1", "it is me"), description="likes coffee"))
    result = join((tea, BEN), *new)
    told = "; ".join(result.sentences)
    assert "ids of new people look like others ('ana' and 'ana ')" in told
    assert "1 persona described otherwise than before (first: 'ana'): the earlier descriptions stay" in told
    assert result.dataset.personas[0].description == "likes tea"
    assert join((ANA, BEN), new[1]).sentences == ("1 dialogue read, 1 of them new",), "a description where there was none is taken"


def test_dialogues_without_their_context_are_those_of_before() -> None:
    morning = replace(ANA.dialogues[0], context=(("time", "morning"),))
    ana = replace(ANA, dialogues=(morning, *ANA.dialogues[1:]))
    evening = replace(morning, context=(("time", "evening"),), split=None)
    assert join((ana, BEN), person("ana", replace(morning, context=(), split=None))).n_repeated == 1
    assert join((ana, BEN), person("ana", evening)).n_new == 1


@pytest.fixture
def finished(finished_stores: Stores) -> Stores:
    """Return the stores of a finished study with a champion."""
    crown("small", finished_stores, champion="cluster")
    register_models("small", finished_stores, LOG)
    return finished_stores


def news(path: Path, n: int, *extra: Mapping[str, object]) -> str:
    rows = [{"persona_id": "persona_000", "prompt": q, "response": "it is done"} for q in OTHERS[:n]]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *extra)), encoding="utf-8")
    return str(path)


def refused(study: PreparedStudy, stores: Stores) -> None:
    refreshed(study, usable_base(study.model.base, study.model.quantisation).tokenizer, stores)


def test_news_without_a_test_item_are_no_news_yet(finished: Stores, tmp_path: Path) -> None:
    path = news(tmp_path / "two.jsonl", 2)
    with pytest.raises(NothingNew, match=r"2 of them new; none of them is a test item, .* send them again together with later ones"):
        refused(next_refresh("small", path, finished), finished)
    assert due("small", path, finished) is None
    partly = {"persona_id": "persona_001", "prompt": "marked", "response": "yes", "split": "train"}
    path = news(tmp_path / "partly.jsonl", 3, partly, {"persona_id": "persona_001", "prompt": "not marked", "response": "no"})
    with pytest.raises(BadData, match="persona 'persona_001': has 1 of 2 dialogues without a split"):
        refused(next_refresh("small", path, finished), finished)


def test_a_refresh_has_a_free_name_its_studys_source_and_says_what_it_cannot_challenge(
    finished: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = finished.studies.study("small")
    finished.studies.create_study(replace(champion, name="small.r1"))
    second = next_refresh("small", "more.jsonl", finished)
    assert (second.name, second.refresh.number, second.refresh.of, second.data.source) == ("small.r2", 2, "small", "table")
    of_lamp = replace(champion, name="lamp", data=replace(champion.data, source="lamp", path="LaMP_3"))
    finished.studies.create_study(of_lamp)
    with pytest.raises(BadData, match="let it finish first: clusterlora study run --name lamp"):
        champion_of("lamp", finished)
    finished.studies.set_status("lamp", "finished")
    finished.studies.save_dataset("lamp", finished.studies.dataset("small"))
    with pytest.raises(BadData, match="found none; run its dialogues and the new ones together as a study of another name"):
        champion_of("lamp", finished)
    monkeypatch.setattr(MemoryTracker, "champion", lambda _tracker, root: (root, "cluster"))
    assert next_refresh("lamp", "LaMP_4", finished).data == replace(of_lamp.data, path="LaMP_4")
    imported = next(name for name, method in METHODS.items() if method.needs_import)
    monkeypatch.setattr(MemoryTracker, "champion", lambda _tracker, root: (root, imported))
    with pytest.raises(BadSettings, match="trained elsewhere; refresh them where they come from"):
        next_refresh("lamp", "LaMP_4", finished)


def test_a_refresh_that_failed_before_training_is_replaced(finished: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = next_refresh("small", news(tmp_path / "six.jsonl", 6), finished)
    prepare_study(first, finished, LOG)
    with pytest.raises(BadSettings, match="has not ended"):
        next_refresh("small", "more.jsonl", finished)
    finished.studies.set_status("small.r1", "failed")
    assert due("small", "more.jsonl", finished) == first, "by itself it is tried again"
    with caplog.at_level(logging.WARNING):
        second = next_refresh("small", "more.jsonl", finished)
    assert (second.name, second.refresh.number, second.refresh.of) == ("small.r2", 2, "small")
    assert "refresh small.r1 failed before anything was trained and is replaced" in caplog.text
