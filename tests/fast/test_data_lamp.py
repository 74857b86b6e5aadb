"""LaMP and LongLaMP are read as they are published: profiles are learnt in the benchmark's own words, questions are scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from clusterlora.data import SOURCES
from clusterlora.data.load import load
from clusterlora.data.load import read as read_source
from clusterlora.data.source import SourceData
from clusterlora.errors import BadData, BadSettings
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset, Dialogue, Persona, Turn

RATE = "What is the score of the following review on a scale of 1 to 5? Just answer with 1, 2, 3, 4, or 5. review: "
TAG = "Which tag does this movie relate to among the following tags? Just answer with the tag name. tags: [comedy, classic] description: "
NEWS = "Which category does this article relate to among the following categories? categories: [sports, crime] article: "
CITE = 'For an author who has written the paper with the title "{}", which reference is related? [1]: "{}" [2]: "{}"'

COLOURS = ("red", "blue", "green", "white", "black", "grey", "pink", "brown")
ANIMALS = ("fox", "owl", "ant", "cat", "hen", "rat", "pig", "bear")


def things(who: str) -> list[str]:
    """Return what a person's entries are about: of everybody's words, as one that a single person says would count as a name."""
    return [f"{colour} {ANIMALS[(number + len(who) + ord(who[0])) % 8]}" for number, colour in enumerate(COLOURS)]


TASKS: Mapping[str, tuple[str, str, str, Sequence[Mapping[str, Any]], tuple[str, str]]] = {
    # task: (data.task, question, output, profile, (prompt, answer) learnt from the first entry)
    "LaMP_2": ("label", TAG + "A ship.", "classic", [{"description": "A dog {}.", "tag": "comedy"}], (TAG + "A dog {}.", "comedy")),
    "LaMP_2 of news": (
        "label",
        NEWS + "A race.",
        "sports",
        [{"text": "A goal {}.", "title": "x", "category": "sports"}],
        (NEWS + "A goal {}.", "sports"),
    ),
    "LaMP_3": ("rating", RATE + "It broke.", "2", [{"text": "Fine {}.", "score": 2}], (RATE + "Fine {}.", "2")),
    "LaMP_4": (
        "text",
        "Generate a headline for the following article: Rain fell.",
        "Rain",
        [{"text": "Snow fell {}.", "title": "Snow {}"}],
        ("Generate a headline for the following article: Snow fell {}.", "Snow {}"),
    ),
    "LaMP_5": (
        "text",
        "Generate a title for the following abstract of a paper: We prove it.",
        "Proof",
        [{"abstract": "We measure {}.", "title": "Measured {}"}],
        ("Generate a title for the following abstract of a paper: We measure {}.", "Measured {}"),
    ),
    "LaMP_6": (
        "text",
        "Generate a subject for the following email: Come at ten.",
        "Meeting",
        [{"text": "Lunch {}?", "title": "Lunch {}"}],
        ("Generate a subject for the following email: Lunch {}?", "Lunch {}"),
    ),
    "LaMP_7": ("text", "Paraphrase the following tweet: It is cold.", "brrr", [{"text": "so tired {}"}], ("Write a tweet.", "so tired {}")),
}


def entries(profile: Sequence[Mapping[str, Any]], who: str) -> list[dict[str, Any]]:
    """Return the entries of a person, one for each thing."""
    return [
        {"id": f"{who}{i}"}
        | {name: value.format(thing) if isinstance(value, str) else value for name, value in profile[i % len(profile)].items()}
        for i, thing in enumerate(things(who))
    ]


def publish(folder: Path, task: str, questions: Sequence[Mapping[str, Any]], outputs: Mapping[str, str], split: str = "dev") -> Path:
    (folder / f"{split}_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    golds = [{"id": name, "output": output} for name, output in outputs.items()]
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": task, "golds": golds}), encoding="utf-8")
    return folder


def read(path: Path, task: str, **more: Any) -> tuple[Persona, ...]:
    given: dict[str, Any] = {"source": "lamp", "path": str(path), "task": task, "train": 20, "val": 2, "test": 2}
    return load(DataSettings(**(given | more))).personas


def said(dialogue: Dialogue) -> tuple[str, ...]:
    return tuple(turn.text for turn in dialogue.turns)


@pytest.mark.parametrize("name", TASKS)
def test_profiles_are_learnt_in_the_words_of_the_question_which_is_the_test(name: str, tmp_path: Path):
    task, question, output, profile, learnt = TASKS[name]
    questions = [{"id": who, "input": f"{question} {who}", "profile": entries(profile, who)} for who in ("1", "2")]
    others = {"label": {"labels": ("comedy", "classic", "sports")}, "rating": {"labels": ("1", "2")}, "text": {}}[task]
    people = read(publish(tmp_path, name[:6], questions, dict.fromkeys("12", output)), task, **others)
    assert [person.id for person in people] == ["1", "2"]
    for person in people:
        (test,) = person.of_split("test")
        assert said(test) == (f"{question} {person.id}", output)
        assert (len(person.of_split("train")), len(person.of_split("val"))) == (6, 2), "a quarter of the profile is to choose by"
        learning = [said(d) for d in (*person.of_split("train"), *person.of_split("val"))]
        expected = [tuple(one.format(thing) for one in learnt) for thing in things(person.id)]
        assert sorted(learning) == sorted(expected)


def test_a_profile_that_answers_no_question_is_learnt_and_several_questions_are_val_and_test(tmp_path: Path):
    profile = [{"title": "On {}", "abstract": "We study {}."}]
    questions = [
        {"id": f"{who}{n}", "user_id": who, "input": CITE.format(who, f"A{n}", f"B{n}"), "profile": entries(profile, who)}
        for who in ("ann", "ben")
        for n in range(4)
    ]
    folder = publish(tmp_path, "LaMP_1", questions, {question["id"]: "[1]" for question in questions})
    for person in read(folder, "label", labels=("[1]", "[2]")):
        assert [len(person.of_split(split)) for split in ("train", "val", "test")] == [8, 2, 2]
        assert all(said(d)[0].startswith("Write the abstract of a paper with the title: On ") for d in person.of_split("train"))
        assert {said(d)[1] for split in ("val", "test") for d in person.of_split(split)} == {"[1]"}


LONG: Mapping[str, tuple[str, Mapping[str, str], tuple[str, str]]] = {
    "name": (
        "abstract",
        {"title": "On {}", "abstract": "We study {}.", "year": "2020"},
        ('Generate an abstract for the title "On {}"', "We study {}."),
    ),
    "author": ("post", {"summary": "my {}", "content": "So, {}."}, ("Generate the content for a reddit post my {}", "So, {}.")),
    "reviewerId": (
        "review",
        {"overall": "4.0", "description": "A lamp {}", "summary": "ok", "reviewText": "It shines {}."},
        (
            'Generate the review text written by a reviewer who has a given an overall rating of "4.0" for a product with description '
            '"A lamp {}". The summary of the review text is "ok".',
            "It shines {}.",
        ),
    ),
}


@pytest.mark.parametrize("who", LONG)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_longlamp_is_read_by_the_field_that_says_who_asks(who: str, kind: str, tmp_path: Path):
    what, entry, learnt = LONG[who]
    records = [
        {
            who: person,
            "input": f"Write the {what} of the {things(person)[n]}.",
            "output": f"The {things(person)[n]} went away.",
            "profile": entries([entry], person),
        }
        for person in ("ann", "ben")
        for n in range(3)
    ]
    text = json.dumps(records) if kind == "json" else "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / f"test.{kind}").write_text(text, encoding="utf-8")
    people = read(tmp_path, "text")
    assert [person.id for person in people] == ["ann", "ben"]
    for person in people:
        assert [len(person.of_split(split)) for split in ("train", "val", "test")] == [8, 1, 2]
        expected = [tuple(one.format(thing) for one in learnt) for thing in things(person.id)]
        assert sorted(said(d) for d in person.of_split("train")) == sorted(expected)


def test_people_of_several_files_are_told_apart_and_questions_without_outputs_are_left_out(tmp_path: Path):
    question = {
        "id": "1",
        "input": RATE + "It broke.",
        "profile": entries([{"text": "Fine {}.", "score": "2"}, {"text": "Bad {}.", "score": "1"}], "x"),
    }
    for split in ("train", "dev", "test"):
        publish(tmp_path, "LaMP_3", [question | {"input": RATE + f"It broke {split}."}], {"1": "2"}, split)
    (tmp_path / "test_outputs.json").unlink()
    assert [person.id for person in read(tmp_path, "rating")] == ["dev/1", "train/1"]


def test_another_task_than_the_benchmarks_is_refused_in_one_line(tmp_path: Path):
    profile = entries([{"text": "Fine {}.", "score": "2"}], "x")
    folder = publish(tmp_path, "LaMP_3", [{"id": "1", "input": RATE + "It broke.", "profile": profile}], {"1": "2"})
    with pytest.raises(BadSettings, match=r"data.task = 'text': dev_questions.json asks for a rating; set data.task=rating"):
        read(folder, "text")


def rated(*questions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return questions of LaMP_3 by one person."""
    profile = entries([{"text": "Fine {}.", "score": 2.0}, {"text": "Bad {}.", "score": "1"}], "x")
    return [{"user_id": "x", "input": RATE + "It broke.", "profile": profile, **question} for question in questions]


def test_questions_of_two_files_with_one_id_are_two_and_a_float_is_a_rating(tmp_path: Path):
    for split in ("train", "dev"):
        asked = [{"id": str(n), "input": RATE + f"It broke {split} {n}."} for n in range(2)]
        (tmp_path / f"{split}_questions.json").write_text(json.dumps(rated(*asked)), encoding="utf-8")
        golds = [{"id": 0, "output": 2.0}, {"id": "1", "output": 1}]
        (tmp_path / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}), encoding="utf-8")
    with pytest.raises(BadData, match="1 in the data, 2 needed"):
        read(tmp_path, "rating")
    (person,) = read_source(DataSettings(source="lamp", path=str(tmp_path), task="rating")).dataset.personas
    asked_of = {dialogue.id: said(dialogue)[1] for dialogue in person.dialogues if dialogue.id.startswith("question/")}
    assert asked_of == {"question/dev/0": "2", "question/dev/1": "1", "question/train/0": "2", "question/train/1": "1"}


def test_an_id_or_an_output_that_stands_twice_is_refused(tmp_path: Path):
    publish(tmp_path, "LaMP_3", rated({"id": "1"}, {"id": "1", "input": RATE + "It shone."}), {"1": "2"})
    with pytest.raises(BadData, match=r"\[1\].id: is '1', as that of an earlier question"):
        read(tmp_path, "rating")
    publish(tmp_path, "LaMP_3", rated({"id": "1"}), {"1": "2"})
    golds = [{"id": "1", "output": "2"}, {"id": 1, "output": "5"}]
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds}), encoding="utf-8")
    with pytest.raises(BadData, match="'1' has two outputs, '2' and '5'"):
        read(tmp_path, "rating")


def test_what_longlamp_asks_of_an_author_twice_is_two_questions(tmp_path: Path):
    profile = entries([{"summary": "my {}", "content": "So, {}."}], "ann")
    record = {"author": "ann", "input": "Write of rain.", "output": "Rain!", "profile": profile}
    (tmp_path / "test.json").write_text(json.dumps([record, record | {"output": "Snow?"}]), encoding="utf-8")
    (person,) = read_source(DataSettings(source="lamp", path=str(tmp_path))).dataset.personas
    assert sorted(said(d)[1] for d in person.dialogues if d.id.startswith("question/")) == ["Rain!", "Snow?"]
    assert len({dialogue.id for dialogue in person.dialogues}) == len(person.dialogues)


def test_a_source_that_names_two_dialogues_of_a_person_alike_is_refused(monkeypatch: pytest.MonkeyPatch):
    twice = Persona("ann", None, (Dialogue("1", (Turn("user", "a"), Turn("assistant", "b"))),) * 2)
    monkeypatch.setitem(SOURCES, "lamp", lambda _settings, _problems: SourceData(Dataset((twice,))))
    with pytest.raises(BadData, match="persona 'ann', dialogue '1': stands 2 times"):
        read_source(DataSettings(source="lamp"))


def test_that_val_asks_something_else_than_test_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _, question, output, profile, _ = TASKS["LaMP_7"]
    questions = [{"id": who, "input": f"{question} {who}", "profile": entries(profile, who)} for who in ("1", "2")]
    read(publish(tmp_path, "LaMP_7", questions, dict.fromkeys("12", output)), "text")
    assert "2 of 2 people ask 1 question each" in caplog.text
    assert "which answer something else: 'Write a tweet.'" in caplog.text
    caplog.clear()
    _, question, output, profile, _ = TASKS["LaMP_4"]
    questions = [{"id": who, "input": f"{question} {who}", "profile": entries(profile, who)} for who in ("1", "2")]
    read(publish(tmp_path, "LaMP_4", questions, dict.fromkeys("12", output)), "text")
    assert "something else" not in caplog.text


def test_an_answer_that_stands_in_no_profile_is_refused_with_the_labels_that_the_questions_list(tmp_path: Path):
    _, question, output, profile, _ = TASKS["LaMP_2"]
    questions = [{"id": who, "input": f"{question} {who}", "profile": entries(profile, who)} for who in ("1", "2")]
    folder = publish(tmp_path, "LaMP_2", questions, dict.fromkeys("12", output))
    with pytest.raises(BadData) as refusal:
        read(folder, "label")
    assert "golds: 'classic' answers a question and stands in no profile" in str(refusal.value)
    assert """--set 'data.labels=["classic","comedy"]'""" in str(refusal.value)
    assert read(folder, "label", labels=("classic", "comedy"))


def test_citations_with_one_question_each_are_refused_in_one_line_for_all_who_ask(tmp_path: Path):
    profile = [{"title": "On {}", "abstract": "We study {}."}]
    questions = [{"id": str(n), "input": CITE.format(f"T{n}", "A", "B"), "profile": entries(profile, f"x{n}")} for n in range(8)]
    folder = publish(tmp_path, "LaMP_1", questions, dict.fromkeys(map(str, range(8)), "[1]"))
    with pytest.raises(BadData) as refusal:
        read(folder, "label", labels=("[1]", "[2]"))
    line = str(refusal.value).splitlines()[-1]
    assert len(str(refusal.value).splitlines()) <= 2
    assert "people: 8 of 8 ask 1 question each (first: '0')" in line
    assert "use LaMP_2 to LaMP_7" in line
