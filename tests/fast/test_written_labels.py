"""Test rows that a train prompt of the same person answers are counted, however the prompts list what was rated; other lists are not."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner

from clusterlora.cli.data import data
from clusterlora.data.duplicates import duplicate_groups
from clusterlora.data.leaks import find_leaks, leak_note
from clusterlora.data.load import load, split
from clusterlora.data.problems import Problems
from clusterlora.data.source import SourceData
from clusterlora.data.validate import examine
from clusterlora.data.written_labels import written_labels
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Split, Turn

Rated = Sequence[tuple[str, str]]
Form = Callable[[Rated, str], str]

_FIRST = ("Silent", "Golden", "Broken", "Last", "Hidden", "Red", "Lost", "Deep")
_SECOND = ("River", "Empire", "Promise", "Garden", "Signal", "Castle", "Winter", "Road")
THINGS = {
    "films": [f"The {a} {b} ({1950 + 8 * i + j})" for i, a in enumerate(_FIRST) for j, b in enumerate(_SECOND)],
    "one word": [a + b.lower() for a in _FIRST for b in _SECOND],
    "of the": [f"{a} of the {b}" for a in _FIRST for b in _SECOND],
    "products": [f"B00{i:03d}FA64" for i in range(64)],
    "reviews": [" ".join(f"{word}{i}x{n}" for n in range(9) for word in ("so", "and", "what")) for i in range(64)],
    "chinese": [
        a + b
        for a in ("红色", "蓝色", "金色", "黑色", "白色", "银色", "青色", "紫色")
        for b in ("河流", "帝国", "花园", "冬天", "影子", "道路", "港口", "信号")
    ],
}
FORMS: dict[str, Form] = {
    "lines": lambda rated, thing: "".join(f"{a}: {x}\n" for a, x in rated) + f"How many stars for {thing}?",
    "newest first": lambda rated, thing: "So far:\n" + "".join(f"- {a}: {x}\n" for a, x in rated[::-1]) + f"How many stars for {thing}?",
    "one line": lambda rated, thing: "; ".join(f"{a} -> {x}.0" for a, x in rated) + f". Stars for {thing}? Answer with a number.",
    "json": lambda rated, thing: json.dumps([{"title": a, "rating": int(x)} for a, x in rated]) + f'\nRate "{thing}"',
    "escaped": lambda rated, thing: json.dumps("".join(f"Thing: {a}\nRating: {x}\n\n" for a, x in rated)) + f"\nRate {thing}",
    "turns": lambda rated, thing: "".join(f"User: how is {a}\nBot: {x}\n" for a, x in rated) + f"User: how is {thing}\nBot:",
    "closed": lambda rated, thing: "".join(f"Q: is {a} any good?\nA: {x}\n" for a, x in rated) + f"Q: is {thing} any good?\nA:",
    "html": lambda rated, thing: (
        "".join(f'<tr class="r"><td>{a}</td><td>{x}</td></tr>' for a, x in rated) + f"<p>How many stars for {thing}?</p>"
    ),
    "question first": lambda rated, thing: f"Rate {thing}.\n\nHistory:\n" + "\n".join(f"{a}\t{x}" for a, x in rated),
    "things alone": lambda rated, thing: "".join(f"{a} = {x}\n" for a, x in rated) + thing,
    "things in a line": lambda rated, thing: "".join(f"{a} = {x}, " for a, x in rated) + thing,
}


def rater(things: Sequence[str], form: Form, *, n: int = 16, others: bool = False, in_order: bool = False) -> Persona:
    """Return a person whose prompts list what they rated before, or as many `others`; `in_order` tests the last rows."""
    rng = Random(0)
    own = [(thing, str(rng.randint(1, 5))) for thing in rng.sample(things, 2 * n)]
    tested = range(12, n) if in_order else range(1, n, 4)
    rows: list[Dialogue] = []
    for i, (thing, rating) in enumerate(own[:n]):
        split: Split = "test" if i in tested else "train"
        listed = own[n : n + i] if others else own[:i]
        rows.append(Dialogue(f"{i}", (Turn("user", form(listed, thing)), Turn("assistant", rating)), split=split))
    return Persona("ann", None, tuple(rows))


@pytest.mark.parametrize("things", THINGS)
@pytest.mark.parametrize("form", FORMS)
def test_ratings_that_later_prompts_list_are_found_and_other_lists_are_none(form: str, things: str) -> None:
    assert answered([rater(THINGS[things], FORMS[form])]) == [("ann", f"{i}") for i in range(1, 16, 4)]
    assert answered([rater(THINGS[things], FORMS[form], others=True)]) == [], "profiles hold other things"
    assert answered([rater(THINGS[things], FORMS[form], in_order=True)]) == [], "what comes last stands in no prompt before"


def answered(personas: Sequence[Persona]) -> Sequence[tuple[str, str]]:
    return written_labels(personas)["test"]


def rows(*exchanges: tuple[str, str], tested: tuple[str, str], system: str | None = None) -> list[Persona]:
    """Return a person with these to train on, and one to test."""
    turns = [[*([Turn("system", system)] if system else ()), Turn("user", q), Turn("assistant", a)] for q, a in exchanges]
    test = Dialogue("tested", (Turn("user", tested[0]), Turn("assistant", tested[1])), split="test")
    return [Persona("ann", None, (*(Dialogue(f"{i}", tuple(t), split="train") for i, t in enumerate(turns)), test))]


@pytest.mark.parametrize(
    ("profile", "found"),
    [
        ("Toy Story: 2", True),
        ("Toy Story (2)", True),
        ("toy story – 2.0", True),
        ("1. Toy Story: 2", True),
        ("Toy Story: 2/5, Up: 3/5", True),
        ("Toy Story, rated 2; Up, rated 3", True),
        ("Toy Story: 4, 2; Up: 4, 3", False),
        ("1. Toy Story: 2, 2. Up: 3", True),
        ("1. Toy Story\n2. Up\n3. Tron", False),
        ("Toy Story: 4", False),
        ("Toy Story: 2.5", False),
        ("Toy Story 2: 4", False),
        ("Toy Story Returns: 2", False),
        ("A Toy Story: 2", False),
        ("Another Story: 2", False),
        ("Toy Story\nUp: 2", False),
        ("Toy: 2", False),
        ("2 Toy Story", False),
    ],
)
def test_the_whole_thing_must_stand_there_as_an_entry_before_its_label(profile: str, found: bool) -> None:
    prompts = [f"{profile}\nHow many stars for {thing}?" for thing in ("Cars", "Brave", "Finding Nemo")]
    people = rows(*((prompt, rating) for prompt, rating in zip(prompts, "345", strict=True)), tested=("How many stars for Toy Story?", "2"))
    assert bool(answered(people)) == found
    system = rows(
        *((f"How many stars for {t}?", r) for t, r in (("Cars", "3"), ("Up", "5"))),
        tested=("How many stars for Toy Story?", "2"),
        system=profile,
    )
    assert bool(answered(system)) == found, "in the system text of rows to train on"


@pytest.mark.parametrize(("label", "found"), [("science fiction", True), ("fiction", False), ("sci-fi", False), ("[1]", False)])
def test_a_label_may_be_several_words(label: str, found: bool) -> None:
    prompts = [f"Dune, tag: science fiction. Alien, tag: horror.\nTag of {film}" for film in ("Cars", "Brave")]
    people = rows((prompts[0], "horror"), (prompts[1], "science fiction"), tested=("Tag of Dune", label))
    assert bool(answered(people)) == found


@pytest.mark.parametrize(
    ("listed", "label", "found"),
    [
        ("★★★★", "★★★★", True),
        ("★★★★", "★★★", False),
        ("★★★☆☆", "★★★☆☆", True),
        ("👍", "👍", True),
        ("👍️", "👍", True),
        ("👎", "👍", False),
        ("C++", "C++", True),
        ("C++", "C", False),
        ("C", "C++", False),
        ("A+", "A", False),
        ("٤", "4", True),
        ("science fiction", "science", False),
        ("✅", "✅", True),
        ("❌", "✅", False),
    ],
)
def test_stars_emoji_and_marks_tell_labels_apart(listed: str, label: str, found: bool) -> None:
    forms = ("{}: {}", "{} ({})", "{}:{}", "|{}|{}|", '{{"title": "{}", "rating": "{}"}}', "<td>{}</td><td>{}</td>", "{} — **{}**")
    for form in forms:
        history = f"{form.format('Dune', listed)}\n{form.format('Tron', 'other')}"
        people = rows((f"{history}\nTag of Cars?", listed), (f"{history}\nTag of Brave?", "other"), tested=("Tag of Dune?", label))
        assert bool(answered(people)) == found, form


@pytest.mark.parametrize("listed", ['<item title="{}" rating="{}"/>', '<film name="{}">{}</film>', "<{}>: {}", "<b>{}</b>: {}"])
def test_things_in_tags_and_attributes_are_read(listed: str) -> None:
    history = f"{listed.format('Dune', 4)}\n{listed.format('Tron', 3)}"
    people = rows((f"{history}\nTag of Cars?", "4"), (f"{history}\nTag of Brave?", "3"), tested=("Tag of Dune?", "4"))
    assert answered(people) == [("ann", "tested")]


def test_a_label_is_no_word_between_a_thing_and_another_label() -> None:
    prompts = [f"Dune: horror, comedy. Alien: horror, drama.\nTag of {film}" for film in ("Cars", "Brave", "Up")]
    learnt = zip(prompts, ("horror", "comedy", "drama"), strict=True)
    assert answered(rows(*learnt, tested=("Tag of Dune", "comedy"))) == []


def test_labels_without_words_and_questions_without_any_are_no_problem() -> None:
    assert answered(rows(("Cars: ...\n Up?", "..."), ("...", "!"), tested=("Cars?", "..."))) == []
    assert answered(rows(("???", "4"), ("", "3"), tested=("!", "4"))) == []
    assert answered(rows(("???", "4"), ("Story: 2\nUp", "3"), tested=("Toy Story?", "2"))) == []
    assert answered([Persona("ann", None, ())]) == []


def growing() -> Iterator[dict[str, Any]]:
    rng = Random(1)
    for name in ("ann", "bob", "cem"):
        own = [(thing, rng.randint(1, 5)) for thing in rng.sample(THINGS["films"], 20)]
        for i, (thing, rating) in enumerate(own):
            listed = "".join(f"{a}: {x}\n" for a, x in own[:i])
            yield {"persona_id": name, "prompt": f"{listed}How many stars for {thing}?", "response": str(rating)}


def test_answered_test_rows_are_said_by_validate_by_a_study_and_in_its_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in growing()))
    settings = DataSettings(source="table", path=str(path), task="rating", train=12, val=4, test=4)
    with caplog.at_level(logging.WARNING):
        dataset = load(settings)
    expected = [
        (person.id, dialogue.id)
        for person in dataset.personas
        for dialogue in person.of_split("test")
        if any(
            f"{dialogue.turns[0].text.split('How many stars for ')[1][:-1]}: {dialogue.turns[1].text}\n" in learnt.turns[0].text
            for learnt in person.of_split("train")
        )
    ]
    n_test = sum(len(person.of_split("test")) for person in dataset.personas)
    assert len(expected) >= 6, "own splits know nothing of the order"
    assert answered(dataset.personas) == expected
    assert examine(settings).written_labels == len(expected)
    told = f"{len(expected)} of {n_test} test dialogues are answered in a train prompt of the same person"
    assert told in caplog.text
    assert str(leak_note(dataset.personas, labelled=True)).startswith(told)
    options = ["--data", str(path), "--set", "data.task=rating", "--set", "data.train=12", "--set", "data.val=4", "--set", "data.test=4"]
    shown = CliRunner().invoke(data, ["validate", *options])
    assert f"answered in a prompt     {len(expected)} of {n_test} test dialogues, in one to train on: a leak" in shown.stdout
    as_json = json.loads(CliRunner().invoke(data, ["validate", "--json", *options]).stdout)
    assert as_json["written_labels"] == len(expected)
    texts = examine(DataSettings(source="table", path=str(path), train=12, val=4, test=4))
    assert texts.written_labels is None, "answers are text"


def n_calls(person: Persona) -> int:
    """Return how many Python functions are called or resumed while a person's labels are looked for."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        list(written_labels([person]))
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("form", FORMS)
def test_twice_the_rows_are_twice_the_work_where_prompts_list_the_last_five(form: str) -> None:
    things = [f"thing {i} of the house" for i in range(1000)]

    def last_five(rated: Rated, thing: str) -> str:
        return FORMS[form](rated[-5:], thing)

    few, many = (n_calls(rater(things, last_five, n=n)) for n in (40, 160))
    assert many < 6 * few, "of four times as many"


@pytest.mark.parametrize("things", THINGS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [40, 5])
def test_rows_with_lists_that_grow_are_different_and_can_be_split_in_order_of_time(
    form: str, things: str, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    """They differ in a line each: nearly all words of one are in the next; asked again, a thing is a duplicate however long the list."""
    rng = Random(0)
    own = [(thing, str(rng.randint(1, 5))) for thing in rng.sample(THINGS[things], 40)]
    sizes: dict[Split, int] = {"train": 24, "val": 8, "test": 8}
    order: list[Split] = [split for split, n in sizes.items() for _ in range(n)]

    def row(i: int, listed: int, split: Split | None) -> Dialogue:
        prompt = FORMS[form](own[max(listed - window, 0) : listed], own[i][0])
        return Dialogue(f"{i}-{listed}", (Turn("user", prompt), Turn("assistant", own[i][1])), split=split)

    dialogues = tuple(row(i, i, split) for i, split in enumerate(order))
    assert len(duplicate_groups(dialogues, labelled=True)) == 40
    # What two people were asked alike is no leak, however long the list.
    people = ("ann", "bob") if window < 40 else ("ann",)
    reading = SourceData(Dataset(tuple(Persona(name, None, dialogues) for name in people)))
    settings, problems = DataSettings(source="table", path="rows.jsonl", task="rating", train=24, val=8, test=8), Problems()
    with caplog.at_level(logging.WARNING):
        done = split(reading, settings, problems).dataset
    problems.raise_any()
    assert done == reading.dataset, "nothing is left out"
    assert not caplog.records, "what rows to train on list comes before"
    by_chance = Dataset(tuple(replace(p, dialogues=tuple(replace(d, split=None) for d in p.dialogues)) for p in done.personas))
    with caplog.at_level(logging.WARNING):
        done = split(replace(reading, dataset=by_chance), settings, problems).dataset
    problems.raise_any()
    assert [len(person.of_split("test")) for person in done.personas] == [8] * len(people)
    assert "test dialogues are answered in a train prompt of the same person" in caplog.text


def test_a_thing_that_is_asked_again_is_a_duplicate_although_its_list_has_grown() -> None:
    rated = [(thing, "3") for thing in THINGS["films"][:40]]
    asked = [*((i, i) for i in range(40)), (36, 38)]
    dialogues = [Dialogue(f"{i}-{n}", (Turn("user", FORMS["lines"](rated[:n], rated[i][0])), Turn("assistant", "3"))) for i, n in asked]
    assert [group for group in duplicate_groups(dialogues, labelled=True) if len(group) > 1] == [(36, 40)]


def divided(dialogues: tuple[Dialogue, ...]) -> Dataset:
    """Return two people with these dialogues, split 24/8/8 where they have no splits."""
    reading = SourceData(Dataset(tuple(Persona(name, None, dialogues) for name in ("ann", "bob"))))
    settings, problems = DataSettings(source="table", path="rows.jsonl", task="rating", train=24, val=8, test=8), Problems()
    done = split(reading, settings, problems).dataset
    problems.raise_any()
    return done


QUOTED: dict[str, Form] = {
    "chatml": lambda rated, thing: (
        "".join(f"<|im_start|>user\n{a}<|im_end|>\n<|im_start|>assistant\n{x}<|im_end|>\n" for a, x in rated) + thing
    ),
    "messages": lambda rated, thing: (json.dumps([{"user": a, "assistant": x} for a, x in rated]) + "\n" if rated else "") + thing,
    "the label": lambda rated, thing: "".join(f"{a}\nThe label: {x}\n\n" for a, x in rated) + thing,
    "labelled": lambda rated, thing: "".join(f'"{a}" was labelled {x}\n' for a, x in rated) + thing,
}


@pytest.mark.parametrize("form", QUOTED)
def test_whole_questions_that_are_quoted_with_their_labels_keep_rows_together_or_are_left_out(form: str) -> None:
    """Every second row quotes the one before. Of given splits train rows are left out that quote later ones, and none that these quote."""
    rated = [(thing, "12345"[i % 5]) for i, thing in enumerate(THINGS["reviews"][:40])]
    prompts = [QUOTED[form](rated[i - 1 : i] if i % 2 else [], thing) for i, (thing, _) in enumerate(rated)]
    dialogues = tuple(Dialogue(f"{i}", (Turn("user", prompts[i]), Turn("assistant", rated[i][1]))) for i in range(40))
    done = divided(dialogues)
    assert [len(done.personas[0].of_split(name)) for name in ("train", "val", "test")] == [24, 8, 8]
    assert all(d.split == {d.id: d.split for d in done.personas[0].dialogues}[f"{int(d.id) ^ 1}"] for d in done.personas[0].dialogues)

    def given(later: int) -> Dataset:
        order: list[Split] = [("test" if i % 2 == later else "train") for i in range(40)]
        return Dataset(
            tuple(Persona(n, None, tuple(replace(d, split=s) for d, s in zip(dialogues, order, strict=True))) for n in ("ann", "bob"))
        )

    assert len(find_leaks(given(later=0).personas, labelled=True)) == 40, "train quotes test"
    assert len(written_labels(given(later=0).personas)["test"]) == 40
    assert not find_leaks(given(later=1).personas, labelled=True), "test quotes train"


@pytest.mark.parametrize("n_listed", [1, 3])
def test_a_genre_that_several_rows_name_is_no_thing_that_is_rated(n_listed: int) -> None:
    genres, rng = ("Drama", "Noir", "Comedy", "Crime", "Horror", "Western"), Random(0)
    asked, others = THINGS["films"][:40], THINGS["films"][40:]

    def row(thing: str, rating: str = "") -> str:
        return f"Title: {thing}\nGenre: {rng.choice(genres)}{rating}"

    prompts = [
        "\n\n".join(
            ["Earlier:", *(row(o, f"\nRating: {rng.randint(1, 5)}") for o in rng.sample(others, n_listed)), "Now rate:", row(thing)]
        )
        for thing in asked
    ]
    dialogues = tuple(Dialogue(f"{i}", (Turn("user", p), Turn("assistant", str(rng.randint(1, 5))))) for i, p in enumerate(prompts))
    done = divided(dialogues)
    assert [len(done.personas[0].of_split(name)) for name in ("train", "val", "test")] == [24, 8, 8]
    assert written_labels(done.personas) == {"test": [], "val": []}


@pytest.mark.parametrize("n_outside", [0, 1, 2, 3])
def test_a_list_that_grows_leaves_every_split_its_share_whatever_stands_beside_it(n_outside: int) -> None:
    rated = [(thing, "3") for thing in THINGS["reviews"][:40]]
    n_listed = 40 - n_outside
    prompts = [FORMS["lines"](rated[: i if i < n_listed else 0], thing) for i, (thing, _) in enumerate(rated)]
    done = divided(tuple(Dialogue(f"{i}", (Turn("user", prompt), Turn("assistant", "3"))) for i, prompt in enumerate(prompts)))
    assert [len(done.personas[0].of_split(name)) for name in ("train", "val", "test")] == [24, 8, 8]
