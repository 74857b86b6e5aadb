"""What a study leaves open is decided when it is prepared: base model, system prompt, and the lengths of sequences and answers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.cli import choose_base, main
from clusterlora.data.lengths import ExampleLength, covering
from clusterlora.data.load import load
from clusterlora.errors import BadSettings
from clusterlora.models.base import HOMELM_FOLDER, usable_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import (
    HOME_PROMPT,
    NEUTRAL_PROMPT,
    DataSettings,
    EvaluationSettings,
    Lengths,
    ModelSettings,
    PreparedStudy,
    Study,
    prepared,
)
from clusterlora.stages.base_checks import decided
from clusterlora.stages.prepare import prepare_study
from clusterlora.stores.resume import as_decided


def write(file: Path, responses: Sequence[str], prompt: str = "Light {}, please") -> Path:
    """Write two people who give these responses."""
    rows = [
        {"persona_id": name, "prompt": f"{name}: " + prompt.format(i), "response": response}
        for name in ("ann", "bob")
        for i, response in enumerate(responses)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def study(data: Path, **model: Any) -> Study:
    settings: dict[str, Any] = {"base": str(HOMELM_FOLDER), "dtype": "float32"} | model
    return Study(name="own", data=DataSettings(source="table", path=str(data), train=3, val=1, test=1), model=ModelSettings(**settings))


def five(text: str) -> list[str]:
    return [f"{text} {i}" for i in range(5)]


def lengths(*answers: int, prompt: int = 10) -> list[ExampleLength]:
    return [ExampleLength(prompt, prompt, answer, is_train=True) for answer in answers]


def test_own_data_without_a_base_model_are_refused_with_what_the_embedded_one_knows(stores: Stores, tmp_path: Path) -> None:
    asked = study(write(tmp_path / "a.jsonl", five("It is on")), base=None)
    with pytest.raises(BadSettings) as refusal:
        prepare_study(asked, stores, SilentLog())
    (line,) = str(refusal.value).splitlines()
    for words in ("model.base", "homelm knows the invented smart-home dialogues", "--base-model homelm", "smollm2-135m"):
        assert words in line
    assert list(stores.studies.studies()) == []


def test_the_command_asks_for_a_base_model_in_a_terminal_and_refuses_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stores: Stores
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    data = write(tmp_path / "a.jsonl", five("It is on"))
    assert main(["study", "run", "--data", str(data)]) == 1
    assert "--base-model homelm" in capsys.readouterr().err

    monkeypatch.setattr(choose_base.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(choose_base.click, "prompt", lambda *_, **__: " homelm ")
    assert choose_base.with_base(study(data, base=None), stores).model.base == "homelm"
    assert "no other language or topic" in capsys.readouterr().err


def test_a_study_that_exists_keeps_its_base_model_and_is_not_asked_for_it(stores: Stores, tmp_path: Path) -> None:
    asked = study(write(tmp_path / "a.jsonl", five("It is on")))
    prepare_study(asked, stores, SilentLog())
    again = replace(asked, model=replace(asked.model, base=None))
    assert choose_base.with_base(again, stores) == again
    prepare_study(again, stores, SilentLog())
    kept = stores.studies.study("own")
    assert as_decided(again, kept) == kept


def test_the_sentence_about_homes_belongs_to_synthetic_people_alone(tmp_path: Path) -> None:
    assert prepared(Study(), "float32").model.system_prompt == HOME_PROMPT
    own = study(tmp_path / "a.jsonl")
    assert prepared(own, "float32").model.system_prompt == NEUTRAL_PROMPT
    assert "home" not in NEUTRAL_PROMPT
    assert prepared(replace(own, model=replace(own.model, system_prompt="")), "float32").model.system_prompt == ""


def test_synthetic_people_have_the_base_model_and_the_lengths_they_were_made_for() -> None:
    assert prepared(Study(), "float32") == PreparedStudy()
    assert decided(Study(), "float32", usable_base("homelm")) == PreparedStudy()
    assert (PreparedStudy().model.base, PreparedStudy().model.max_length, PreparedStudy().evaluation.max_new_tokens) == ("homelm", 512, 64)


def test_limits_hold_nineteen_of_twenty_train_answers() -> None:
    some = lengths(*[20] * 18, 90, 400)
    chosen = covering(some, n_positions=None, n_in_memory=None)
    assert chosen.max_new_tokens == 96
    assert sum(length.answer <= chosen.max_new_tokens for length in some) == 19
    assert chosen.max_length == 416, "the last exchange of every dialogue can be asked"


def test_a_long_answer_of_the_test_split_changes_no_limit_of_answers() -> None:
    some = [*lengths(*[20] * 20), *(replace(length, is_train=False) for length in lengths(*[500] * 20))]
    assert covering(some, n_positions=None, n_in_memory=None) == Lengths(512, 24)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n_positions": 128, "n_in_memory": None}, Lengths(64, 64)),
        ({"n_positions": None, "n_in_memory": 80}, Lengths(80, 200)),
        ({"n_positions": None, "n_in_memory": None, "max_new_tokens": 8}, Lengths(224, 8)),
        ({"n_positions": 256, "n_in_memory": None, "max_length": 100}, Lengths(100, 50)),
    ],
)
def test_limits_stay_within_positions_memory_and_what_is_given(given: dict[str, Any], expected: Lengths) -> None:
    assert covering(lengths(*[200] * 20), **given) == expected


def test_a_prompt_leaves_a_quarter_for_the_answer_and_room_for_shots() -> None:
    some = lengths(*[10] * 20, prompt=90)
    assert covering(some, n_positions=None, n_in_memory=None).max_length == 128
    assert covering(some, n_positions=None, n_in_memory=None, n_shots=3).max_length == 544


def test_own_data_get_the_lengths_their_answers_need_and_keep_them(stores: Stores, tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", five("Turned on, " + "and on and off " * 30))
    prepare_study(study(data), stores, SilentLog())
    kept = stores.studies.study("own")
    assert kept.evaluation.max_new_tokens > 64
    write(data, five("Turned on, " + "and on and off " * 31))
    assert as_decided(study(data), kept) == kept, "a relaunch takes what was decided, whatever the data have become"


def test_given_lengths_stay(stores: Stores, tmp_path: Path) -> None:
    asked = replace(study(write(tmp_path / "a.jsonl", five("It is on")), max_length=200), evaluation=EvaluationSettings(max_new_tokens=7))
    prepare_study(asked, stores, SilentLog())
    kept = stores.studies.study("own")
    assert (kept.model.max_length, kept.evaluation.max_new_tokens) == (200, 7)


def test_a_long_dialogue_that_no_split_uses_can_be_asked_too(stores: Stores, tmp_path: Path) -> None:
    def written(long: frozenset[str]) -> Path:
        rows = [
            {"persona_id": name, "dialogue_id": f"{name}-{i}", "prompt": f"{name}: light {i}", "response": f"It is on {i}"}
            for name in ("ann", "bob")
            for i in range(9)
        ]
        long_rows = [row | {"prompt": f"{row['prompt']} {'please ' * 90}"} if row["dialogue_id"] in long else row for row in rows]
        file = tmp_path / "people.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in long_rows), encoding="utf-8")
        return file

    def used_of(asked: Study) -> set[str]:
        return {dialogue.id.partition("/")[0] for person in load(asked.data).personas for dialogue in person.dialogues}

    used = used_of(study(written(frozenset())))
    unused = frozenset(f"{name}-{i}" for name in ("ann", "bob") for i in range(9)) - used
    asked = study(written(frozenset(sorted(unused)[:1])))
    assert used_of(asked) == used
    prepare_study(asked, stores, SilentLog())
    assert stores.studies.study("own").model.max_length > 100
