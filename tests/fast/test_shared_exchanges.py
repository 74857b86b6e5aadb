"""Test dialogues that have an exchange in common with somebody else's train split are counted, formulas are not."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.leaks import leak_note
from clusterlora.data.load import load
from clusterlora.data.shared_exchanges import sharing_dialogues
from clusterlora.data.twins import near_twins
from clusterlora.data.validate import examine
from clusterlora.settings import DataSettings
from clusterlora.values import Dialogue, Persona, Split, Turn

SPANS = {"ana": (0, 2), "ben": (0, 4), "cleo": (0, 6), "dan": (2, 6)}


def said(*texts: str, split: Split, system: str | None = None) -> Dialogue:
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Dialogue("-".join(texts), (Turn("system", system), *turns) if system else turns, split=split)


def people(*dialogues: Dialogue) -> list[Persona]:
    """Return a person per dialogue, each with one of their own to train on."""
    return [
        Persona(f"p{i}", None, (said(f"what is number {i} to me", f"only number {i}, as ever it was", split="train"), dialogue))
        for i, dialogue in enumerate(dialogues)
    ]


def spans(n_threads: int = 12) -> list[dict[str, Any]]:
    """Return a row per person and thread of a group, with the exchanges that they saw of it."""
    return [
        {
            "persona_id": name,
            "dialogue_id": f"{thread}",
            "messages": [
                {"role": role, "content": " ".join(f"{role}{thread}x{i}{letter}" for letter in "abcd")}
                for i in range(first, last)
                for role in ("user", "assistant")
            ],
        }
        for name, (first, last) in SPANS.items()
        for thread in range(n_threads)
    ]


def test_spans_of_a_group_conversation_that_several_people_have_are_a_leak_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in spans()))
    settings = DataSettings(source="table", path=str(path), train=6, val=3, test=3)
    with caplog.at_level(logging.WARNING):
        dataset = load(settings)
    learnt = {
        person.id: {turn.text for dialogue in person.of_split("train") for turn in dialogue.turns if turn.role == "assistant"}
        for person in dataset.personas
    }
    leaking = [
        (person.id, dialogue.id)
        for person in dataset.personas
        for dialogue in person.of_split("test")
        if any(turn.text in learnt[somebody] for turn in dialogue.turns for somebody in learnt.keys() - {person.id})
    ]
    assert near_twins(dataset.personas)["test"] == leaking
    assert len(leaking) == examine(settings).near_twins >= 4, "own splits know nothing of spans"
    told = f"{len(leaking)} of 12 test dialogues nearly repeat a train dialogue of somebody else, or share an exchange with one"
    assert told in caplog.text
    assert str(leak_note(dataset.personas)).startswith(f"{told}: a leak for unified and clusters")
    assert leak_note(dataset.personas, labelled=True) is None, "many label the same things"


@pytest.mark.parametrize(
    ("asked", "answer", "counts"),
    [
        ("Who brings the boat tomorrow?", "Ida does.", True),
        ("who brings the BOAT tomorrow", "Ida does", True),
        ("Turn on the light", "Done.", False),
        ("好的，明天早上七点见面", "好的。", True),
        ("好的", "好的。", False),
    ],
)
def test_an_exchange_counts_if_question_and_answer_have_six_words(asked: str, answer: str, counts: bool) -> None:
    learnt = said(asked, answer, "And what is there to eat?", "Bread and cheese for all of us", split="train")
    tested = said("What did Tom say of all that?", "Nothing at all, he slept so long", asked.upper(), f"{answer} ", split="test")
    expected = frozenset({("p1", tested.id)} if counts else ())
    assert sharing_dialogues(people(learnt, tested)) == expected
    assert set(near_twins(people(learnt, tested))["test"]) == expected


def test_another_question_another_answer_or_a_shared_system_text_share_nothing() -> None:
    learnt = said(
        "Who brings the boat tomorrow?", "Ida does, with her brother.", split="train", system="You know the boats of the village."
    )
    for asked, answer in (("Who brings the oars tomorrow?", "Ida does, with her brother."), ("Who brings the boat tomorrow?", "Tom.")):
        tested = said(asked, answer, "And who rows?", "You and me.", split="test", system="You know the boats of the village.")
        assert sharing_dialogues(people(learnt, tested)) == frozenset()


def test_exchanges_are_shared_with_train_splits_of_others_only() -> None:
    exchange = ("Who brings the boat tomorrow?", "Ida does, with her brother.")
    for split in ("val", "test"):
        assert sharing_dialogues(people(said(*exchange, split=split), said(*exchange, split="test"))) == frozenset()
    alone = Persona("ann", None, (said(*exchange, split="train"), said(*exchange, "And why?", "She has one.", split="test")))
    assert sharing_dialogues([alone]) == frozenset()


@pytest.mark.parametrize("n_own", [2, 3])
@pytest.mark.parametrize("is_end", [False, True])
def test_a_greeting_or_thanks_amid_three_different_things_of_a_person_is_a_formula(n_own: int, is_end: bool) -> None:
    formula = ("Good morning!", "Good morning, what can I do for you today?")

    def talk(number: int, split: Split) -> Dialogue:
        own = (f"What of number {number}?", f"It went away with number {number}.")
        return said(*own, *formula, split=split) if is_end else said(*formula, *own, split=split)

    ann = Persona("ann", None, (said(*formula, split="train"), *(talk(i, "train") for i in range(n_own))))
    bob = Persona("bob", None, (said(*formula, split="test"),))
    assert len(sharing_dialogues([ann, bob])) == (n_own < 3)
    several = [Persona(f"p{i}", None, (talk(2 * i, "train"), talk(2 * i + 1, "test"))) for i in range(n_own)]
    assert sharing_dialogues(several) == frozenset(), "whoever says it"


def test_what_is_long_is_no_formula_however_differently_it_goes_on() -> None:
    boats = " and that ".join(f"boat {i} is tied up" for i in range(8))
    told = ("What has the captain told you of all the boats?", f"He told me that {boats}")
    talks = [said(*told, f"And {i}?", f"No, not {i}.", split="train" if i else "test") for i in range(5)]
    people = [Persona(f"p{i}", None, (talk,)) for i, talk in enumerate(talks)]
    assert len(sharing_dialogues(people)) == 1


def test_windows_of_a_shared_conversation_are_no_formula() -> None:
    """Each exchange stands in several rows of a person, but always amid the same turns."""
    talk = [text for i in range(6) for text in (f"What of number {i} today?", f"It went away with number {i}.")]
    rows = [talk[2 * i : 2 * i + 8] for i in range(3)]
    ann = Persona("ann", None, tuple(said(*row, split="train") for row in rows))
    bob = Persona("bob", None, tuple(said(*row, split="test") for row in rows))
    assert len(sharing_dialogues([ann, bob])) == 3


def test_words_that_all_questions_of_a_person_share_do_not_tell() -> None:
    def person(name: str, *wishes: str, split: Split) -> Persona:
        rows = (said(f"Answer like a good butler would: {wish}", "ok", "and you?", f"fine {name}{wish}", split=split) for wish in wishes)
        return Persona(name, None, tuple(rows))

    assert sharing_dialogues([person("ann", "up", "down", split="train"), person("bob", "up", "left", split="test")]) == frozenset()
    assert len(sharing_dialogues([person("ann", "up", split="train"), person("bob", "up", split="test")])) == 1, "nothing to compare with"


@given(data=st.data())
def test_shared_exchanges_are_those_found_by_comparing_every_pair(data: st.DataObject) -> None:
    """Nobody has an exchange amid three different things."""
    kinds = st.sampled_from([f"{n}a {n}b {n}c" for n in range(4)])
    talks = st.lists(st.tuples(kinds, kinds), min_size=1, max_size=2)
    splits: tuple[Split, ...] = ("train", "test")

    def person(name: str) -> Persona:
        rows = data.draw(st.lists(st.tuples(talks, st.sampled_from(splits)), max_size=2))
        return Persona(
            name,
            None,
            tuple(Dialogue(f"{i}", said(*sum(talk, ()), split=split).turns, split=split) for i, (talk, split) in enumerate(rows)),
        )

    def exchanges(dialogue: Dialogue) -> set[tuple[str, str]]:
        texts = [turn.text for turn in dialogue.turns]
        return set(zip(texts[::2], texts[1::2], strict=True))

    personas = [person(name) for name in "abc"]
    assert sharing_dialogues(personas) == {
        (person.id, dialogue.id)
        for person in personas
        for dialogue in person.of_split("test")
        for somebody in personas
        for other in somebody.of_split("train")
        if somebody.id != person.id and exchanges(dialogue) & exchanges(other)
    }
