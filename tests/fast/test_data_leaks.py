"""Planted leaks of each kind are found: rows that hold the history so far, one conversation in several rows, and twins of other people."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.conversations import beginnings, overlapping_pairs
from clusterlora.data.leaks import find_leaks
from clusterlora.data.load import load, split
from clusterlora.data.problems import Problems
from clusterlora.data.source import SourceData
from clusterlora.data.split import SPLITS
from clusterlora.data.twins import near_twins, twins_note
from clusterlora.data.validate import examine
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

CASES = Path(__file__).parents[3] / "shared" / "cases"


def exchanges(persona_id: str, conversation: int, n: int) -> list[dict[str, str]]:
    """Return the messages of a conversation about its own things."""
    about = f"{persona_id} topic{conversation}"
    return [
        {"role": role, "content": f"{about} part{i} {text}"}
        for i in range(n)
        for role, text in (("user", "asks"), ("assistant", "answers"))
    ]


def growing(n_people: int = 3, n_conversations: int = 6, n: int = 4) -> list[dict[str, Any]]:
    """Return a row per exchange with the history so far, each under an id of its own."""
    return [
        {"persona_id": f"p{person}", "dialogue_id": f"{conversation}-{i}", "messages": exchanges(f"p{person}", conversation, n)[: 2 * i]}
        for person in range(n_people)
        for conversation in range(n_conversations)
        for i in range(1, n + 1)
    ]


def windows(width: int, n: int = 6, n_conversations: int = 6) -> list[dict[str, Any]]:
    """Return a row per exchange with the last exchanges before it."""
    return [
        {"persona_id": person, "messages": exchanges(person, conversation, n)[2 * max(0, i - width) : 2 * i]}
        for person in ("ann", "bob")
        for conversation in range(n_conversations)
        for i in range(1, n + 1)
    ]


def settings(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataSettings:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(**{"source": "table", "path": str(path), "train": 40, "val": 10, "test": 10} | changes)


def answers_in_train(dataset: Dataset) -> list[str]:
    """Return the test answers that stand verbatim anywhere in the same person's train split."""
    return [
        turn.text
        for persona in dataset.personas
        for turn in {t for d in persona.of_split("test") for t in d.turns if t.role == "assistant"}
        if any(turn in d.turns for d in persona.of_split("train"))
    ]


def test_rows_that_hold_the_history_so_far_are_one_conversation_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planted = settings(tmp_path, growing())
    with caplog.at_level(logging.WARNING):
        dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert {len(d.turns) for persona in dataset.personas for d in persona.dialogues} == {8}
    assert "54 of 72 dialogues are the beginning of another" in caplog.text
    assert "the 18 whole conversations are used" in caplog.text
    summary = examine(planted)
    assert (summary.beginnings, summary.dialogues, summary.leaks) == (54, 18, 0)


@pytest.mark.parametrize("width", [2, 3])
def test_rows_that_hold_the_last_exchanges_stay_on_one_side(tmp_path: Path, width: int) -> None:
    planted = settings(tmp_path, windows(width))
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert all(persona.of_split(split) for persona in dataset.personas for split in ("train", "val", "test"))
    assert examine(planted).leaks == 0


def test_a_person_with_a_single_conversation_in_many_rows_is_refused(tmp_path: Path) -> None:
    rows = windows(2, n_conversations=1)
    with pytest.raises(BadData, match="persona 'ann': has 5 dialogues but 1 conversation, since they share turns"):
        load(settings(tmp_path, rows))


def test_messages_of_several_rows_with_one_dialogue_id_are_one_conversation(tmp_path: Path) -> None:
    """They share no turn: only the id says so."""
    rows = [
        {"persona_id": person, "dialogue_id": f"talk {conversation}", "messages": exchanges(person, conversation, 4)[2 * i : 2 * i + 2]}
        for person in ("ann", "bob")
        for conversation in range(6)
        for i in range(4)
    ]
    dataset = load(settings(tmp_path, rows, train=16, val=4, test=4))
    for persona in dataset.personas:
        sides = {d.id.partition("/")[0]: set[Split | None]() for d in persona.dialogues}
        for d in persona.dialogues:
            sides[d.id.partition("/")[0]].add(d.split)
        assert [len(splits) for splits in sides.values()] == [1] * 6
        assert len(persona.dialogues) == 24


def test_a_dialogue_id_of_one_row_stays_the_id_of_its_dialogue(tmp_path: Path) -> None:
    rows = [{"persona_id": p, "dialogue_id": f"d{i}", "messages": exchanges(p, i, 2)} for p in ("ann", "bob") for i in range(5)]
    assert {d.id for persona in load(settings(tmp_path, rows)).personas for d in persona.dialogues} == {f"d{i}" for i in range(5)}


@pytest.mark.parametrize(("train", "test"), [(1, 4), (4, 1), (2, 3)])
def test_a_given_split_between_history_and_continuation_is_a_leak(tmp_path: Path, train: int, test: int) -> None:
    """Whichever of the two is trained on: the answers of the shorter row stand in both."""
    rows = [
        {"persona_id": p, "dialogue_id": f"{c}-{i}", "messages": exchanges(p, c, 4)[: 2 * i], "split": split}
        for p in ("ann", "bob")
        for c, i, split in ((0, 4, "train"), (1, 4, "val"), (2, 4, "test"), (3, train, "train"), (3, test, "test"))
    ]
    planted = settings(tmp_path, rows)
    assert examine(planted).leaks == 2
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert [len(persona.dialogues) for persona in dataset.personas] == [4, 4]


NAMES = ("ana", "ben", "cleo", "dan")


def twins(n: int = 12, *, ending: str = "{name}") -> list[dict[str, Any]]:
    """Return dialogues of four people that are equal but for a name."""
    return [
        {"persona_id": name, "prompt": f"light{i} room{i} please", "response": f"Warm light in room{i}, {ending.format(name=name)}"}
        for name in NAMES
        for i in range(n)
    ]


def test_dialogues_of_different_people_that_are_equal_but_for_a_name_stay_on_one_side(tmp_path: Path) -> None:
    dataset = load(settings(tmp_path, twins(), train=6, val=3, test=3))
    sides: dict[str, set[Split | None]] = {}
    for persona in dataset.personas:
        for d in persona.dialogues:
            sides.setdefault(d.turns[0].text, set()).add(d.split)
    assert [len(splits) for splits in sides.values()] == [1] * 12
    assert [len(persona.of_split("test")) for persona in dataset.personas] == [3] * 4


def test_a_given_split_between_twins_leaves_the_one_to_train_on_out(tmp_path: Path) -> None:
    order: tuple[Split, ...] = ("train", "train", "val", "test")
    rows = [row | {"split": order[(i + i // 12) % 4]} for i, row in enumerate(twins())]
    planted = settings(tmp_path, rows)
    n_leaks = sum(row["split"] != "test" for row in rows)
    assert examine(planted).leaks == n_leaks, "of every dialogue somebody has the twin in test"
    with pytest.raises(BadData, match="has all its train and val dialogues in a later split too"):
        load(planted)


def test_near_twins_in_somebody_elses_train_split_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They differ in a word that others say, too, so it is no name; each is tested on one person and learnt from two."""
    long = " ".join(f"word{i}" for i in range(30))
    order: tuple[Split, ...] = ("train", "train", "val", "test")
    planted = settings(
        tmp_path,
        [
            {
                "persona_id": name,
                "prompt": f"talk{i} first{i} {long}",
                "response": f"other{(i + j) % 5} third{i}",
                "split": order[(i + j) % 4],
            }
            for j, name in enumerate(NAMES)
            for i in range(12)
        ],
    )
    with caplog.at_level(logging.WARNING):
        dataset = load(planted)
    assert len(near_twins(dataset.personas)) == expected_twins(dataset) == examine(planted).near_twins == 12
    told = "12 of 12 test dialogues nearly repeat a train dialogue of somebody else"
    assert told in caplog.text
    assert str(twins_note(dataset.personas)).startswith(f"{told}: a leak for unified and clusters")
    assert twins_note(dataset.personas[:1]) is None


def expected_twins(dataset: Dataset) -> int:
    """Return the number of near twins, by comparing every pair."""
    from clusterlora.data.duplicates import normalised_text
    from clusterlora.data.near_sets import NEAR

    def words(dialogue: Dialogue) -> set[str]:
        return set(normalised_text(dialogue).split())

    return sum(
        any(
            len(words(d) & words(other)) >= NEAR * len(words(d) | words(other))
            for somebody in dataset.personas
            if somebody.id != persona.id
            for other in somebody.of_split("train")
        )
        for persona in dataset.personas
        for d in persona.of_split("test")
    )


TEXTS = st.lists(st.sampled_from([f"w{i}" for i in range(8)]), min_size=1, max_size=12).map(" ".join)


@given(rows=st.lists(st.tuples(st.sampled_from(NAMES), TEXTS, st.sampled_from(["train", "val", "test"])), max_size=30))
def test_near_twins_are_those_found_by_comparing_every_pair(rows: list[tuple[str, str, Split]]) -> None:
    people = Dataset(
        tuple(
            Persona(
                name,
                None,
                tuple(
                    Dialogue(f"d{i}", (Turn("user", text), Turn("assistant", "yes")), split=split)
                    for i, (owner, text, split) in enumerate(rows)
                    if owner == name
                ),
            )
            for name in NAMES
        )
    )
    assert len(near_twins(people.personas)) == expected_twins(people)


def spoken(*texts: str, split: Split | None = None, system: str | None = None) -> Dialogue:
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
    return Dialogue("-".join(texts), ((Turn("system", system),) if system else ()) + turns, split=split)


def test_a_beginning_has_the_split_and_the_system_text_of_the_longer_dialogue() -> None:
    longer = spoken("a", "b", "c", "d")
    assert beginnings([spoken("a", "b"), longer]) == {0}
    assert beginnings([longer, spoken("A,", "b!")]) == {1}
    assert beginnings([spoken("a", "b"), spoken("a", "b")]) == frozenset(), "equal dialogues are duplicates"
    assert beginnings([spoken("c", "d"), longer]) == frozenset()
    assert beginnings([spoken("a", "b", split="train"), spoken("a", "b", "c", "d", split="test")]) == frozenset()
    assert beginnings([spoken("a", "b", system="be brief"), longer]) == frozenset()


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        (("a", "b"), ("a", "b", "c", "d"), True),
        (("c", "d"), ("a", "b", "c", "d"), True),
        (("c", "d", "e", "f"), ("a", "b", "c", "d"), True),
        (("a", "b"), ("c", "d"), False),
        (("a", "b"), ("a", "c"), False),
        (("d", "x"), ("a", "b", "c", "d"), False),
    ],
    ids=["beginning", "end", "end and beginning", "nothing", "the question", "an answer that is asked about"],
)
def test_dialogues_that_share_an_answered_question_where_they_meet_are_related(
    one: tuple[str, ...], other: tuple[str, ...], related: bool
) -> None:
    for pair in ((one, other), (other, one)):
        assert bool(list(overlapping_pairs([spoken(*texts) for texts in pair]))) == related


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the failing cases are not at {CASES}")
def test_the_export_that_once_had_all_its_test_answers_in_train_has_none(tmp_path: Path) -> None:
    import runpy
    import sys

    sys.argv = ["make_cases.py", str(tmp_path)]
    runpy.run_path(str(CASES / "make_cases.py"), run_name="__main__")
    planted = DataSettings(source="table", path=str(tmp_path / "history_grows.jsonl"), train=3, val=1, test=1)
    dataset = load(planted)
    assert answers_in_train(dataset) == []
    assert not find_leaks(dataset.personas)
    assert examine(planted).beginnings == 8 * 5 * 4


def test_words_of_dropped_dialogues_still_tell_people_apart() -> None:
    # Levels and numbers are shared by several people in all that was read, and by nobody in the four dialogues that each one keeps.
    rooms = ("kitchen", "bedroom", "garage", "hall", "study", "attic")
    people = Dataset(
        tuple(
            Persona(
                f"p{number}",
                None,
                tuple(
                    Dialogue(
                        f"d{n}",
                        (
                            Turn("user", f"Lights in the {room}, please, as person {number} likes"),
                            Turn("assistant", f"{room} {10 * number + n}, done, as always and for ever."),
                        ),
                    )
                    for n, room in enumerate(rooms)
                ),
            )
            for number in range(0, 8, 2)
        )
    )
    done = split(SourceData(people), DataSettings(train=2, val=1, test=1), Problems())
    assert [[len(persona.of_split(name)) for name in SPLITS] for persona in done.dataset.personas] == [[2, 1, 1]] * 4
