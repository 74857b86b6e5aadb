"""Dialogues are shown as they are trained on: every token, which are learnt, and what is cut."""

import json
from pathlib import Path

import pytest

from clusterlora.cli import main
from clusterlora.data.preview import LEARNT, markdown, previews
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.models.base import base_folder
from clusterlora.models.loading import load_tokenizer
from clusterlora.settings import PreparedEvaluation, PreparedModel, PreparedStudy
from clusterlora.values import Dialogue, Persona, Turn

STUDY = PreparedStudy(model=PreparedModel(system_prompt="You are a house."), evaluation=PreparedEvaluation(max_new_tokens=8))


def person(name: str, *answers: str) -> Persona:
    turns = tuple(turn for answer in answers for turn in (Turn("user", f"please, {name}"), Turn("assistant", answer)))
    return Persona(name, None, (Dialogue(f"{name}-0", turns, split="train"),))


def test_what_is_shown_is_what_is_trained_on() -> None:
    tokenizer = load_tokenizer(base_folder("homelm"))
    ann = person("ann", "Lamp on.", "Lamp off.")
    (shown,) = previews(STUDY, [ann], tokenizer)
    (sequence,) = prompt_encoder(tokenizer, STUDY.model).encode_dialogues([messages(STUDY.model, ann, ann.dialogues[0])])
    assert "".join(text for text, _ in shown.parts) == tokenizer.decode(list(sequence.ids))
    learnt = [text for text, is_learnt in shown.parts if is_learnt]
    assert [text.startswith(answer) for text, answer in zip(learnt, ("Lamp on.", "Lamp off."), strict=True)] == [True, True]
    assert (shown.n_tokens, shown.n_learnt) == (len(sequence.ids), sequence.n_response_tokens)
    assert "You are a house." in shown.parts[0][0]
    assert f"{LEARNT[0]}Lamp on." in shown.marked
    assert shown.heading.endswith("learnt; nothing is cut")


def test_the_shortest_a_median_and_the_longest_are_shown_with_what_is_cut() -> None:
    people = [person(name, "Lamp on. " * n) for name, n in (("ann", 1), ("bob", 40), ("cleo", 5))]
    long_history = person("dora", *["Lamp on. " * 20] * 12)
    shown = previews(STUDY, [*people, long_history], load_tokenizer(base_folder("homelm")))
    assert [preview.persona_id for preview in shown] == ["ann", "bob", "dora"]
    assert (shown[0].n_cut, shown[1].n_cut) == (0, 1)
    assert shown[2].n_dropped > 0
    assert "old turns dropped, 12 answers longer than evaluation.max_new_tokens" in shown[2].heading


def test_words_of_people_do_not_end_the_block_they_stand_in() -> None:
    shown = previews(STUDY, [person("ann", "```` <b>")], load_tokenizer(base_folder("homelm")))
    assert "`````text\n" in markdown(shown)


def test_the_command_shows_three_dialogues_with_marks_where_there_are_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "clustering.k=2", "--set", "data.synthetic.cluster_sizes=[2,2]", "--set", "data.synthetic.dialogues=6"]
    splits = ["--set", "data.train=3", "--set", "data.val=1", "--set", "data.test=1"]
    assert main(["data", "preview", *small, *splits]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"as base model homelm reads them; learnt text stands between {LEARNT[0]} and {LEARNT[1]}\n")
    assert printed.count("\ndialogue ") == 3
    assert printed.count(LEARNT[0]) > 3
    assert main(["data", "preview", *small, *splits, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_what_people_wrote_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "people.jsonl"
    rows = [
        {"persona_id": p, "prompt": f"question {n}", "response": f"\x1b]52;c;aGk=\x07 answer {n} of {p}"} for p in "ab" for n in range(5)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert main(["data", "preview", "--data", str(file), "--base-model", "homelm"]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b]52;c;aGk=\\x07 answer" in printed
    assert not set(printed) & {"\x1b", "\x07"}
