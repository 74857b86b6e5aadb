"""The edgewise and table sources read what their schemas say, and refuse the rest with the place and the fix."""

import json
import logging
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clusterlora.data import SOURCES
from clusterlora.data.lines import MAX_LINE_BYTES
from clusterlora.data.load import load, read
from clusterlora.data.problems import LISTED, Problems
from clusterlora.data.prompts import items
from clusterlora.data.table import read_table
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.settings import DataSettings, PreparedModel
from clusterlora.values import Persona, Turn

ROOT = Path(__file__).parents[2]
MALFORMED = ROOT / "tests" / "malformed"
SHARED = ROOT.parent / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data is not at {SHARED}")


def settings(path: Path, **more: Any) -> DataSettings:
    source = "lamp" if "lamp" in path.name else "edgewise" if path.is_dir() else "table"
    task = {"lamp": "text" if path.name.startswith("long") else "label" if path.name == "lamp_one_question" else "rating"}
    given: dict[str, Any] = {"source": source, "path": str(path), "train": 1, "val": 1, "test": 1, "task": task.get(source, "text")}
    return DataSettings(**(given | more))


def rows(*names: str, n: int = 4) -> list[dict[str, Any]]:
    return [
        {"persona_id": name, "prompt": f"{name} asks question {i}", "response": f"answer {i} for {name}"}
        for name in names
        for i in range(n)
    ]


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def refusal(path: Path, **more: Any) -> str:
    with pytest.raises(BadData) as caught:
        load(settings(path, **more))
    return str(caught.value)


REFUSED = {
    "empty.jsonl": "empty.jsonl: file: is empty;",
    "blank_lines.jsonl": "blank_lines.jsonl:3: file: has only blank lines;",
    "not_json.jsonl": "not_json.jsonl:3: json: Expecting value at character 32;",
    "list_instead_of_object.jsonl": ":3: json: a JSON list, not an object;",
    "nested_too_deep.jsonl": ":3: json: maximum recursion depth exceeded",
    "mixed_encodings.jsonl": ":3: encoding: byte 0xe9 at byte 36 of the line (224 of the file) is not UTF-8; save",
    "utf16.jsonl": "utf16.jsonl:1: encoding: the file is UTF-16; save it as UTF-8",
    "persona_with_one_example.jsonl": ":3: persona 'carl': has 1 dialogue; give it at least 3",
    "same_words_thrice.jsonl": ":3: persona 'carl': has 3 dialogues but 1 after (near) duplicates;",
    "missing_field.jsonl": ":3: response: is missing; write a string",
    "missing_persona.jsonl": ":3: persona_id: is missing;",
    "no_content.jsonl": ":3: messages: is missing: the row has neither messages nor prompt and response;",
    "number_as_prompt.jsonl": ":3: prompt: is int 7; write a string",
    "number_with_fraction_as_id.jsonl": ":3: persona_id: is float 1.5; write a string or a whole number",
    "list_as_id.jsonl": ":3: persona_id: is list ['ann'];",
    "empty_response.jsonl": ":3: response: is empty;",
    "nul_in_text.jsonl": ":3: response: holds a NUL character; remove it",
    "half_surrogate.jsonl": ":3: response: holds half a surrogate pair;",
    "id_of_300_characters.jsonl": ":3: persona_id: has 300 characters; use at most 200",
    "control_character_in_id.jsonl": r":3: persona_id: 'an\x1bn' holds the control character U+001B; remove it",
    "empty_id.jsonl": ":3: persona_id: is empty;",
    "unknown_split.jsonl": ":3: split: is 'training'; use train, val or test",
    "some_rows_without_split.jsonl": ":1: persona 'ann': has 3 of 4 dialogues without a split;",
    "no_val_in_split.jsonl": ":3: persona 'carl': has no val dialogue;",
    "unknown_role.jsonl": ":3: messages[1].role: is str 'robot'; use one of system, user, assistant",
    "system_turn_in_the_middle.jsonl": ":3: messages[1].role: a system turn in the middle;",
    "assistant_never_answers.jsonl": ":3: messages: the assistant never answers the user;",
    "no_turns.jsonl": ":3: messages: the assistant never answers the user;",
    "turn_without_text.jsonl": ":3: messages[0]: has neither text nor content;",
    "messages_as_text.jsonl": ":3: messages: is not JSON;",
    "two_descriptions.jsonl": ":4: persona_description: differs from that at two_descriptions.jsonl:1;",
    "missing_column.csv": "prompt: is not a column of the file; add it, or map one of yours to prompt with data.columns (the file has: ",
    "header_only.csv": "header_only.csv: file: has no rows;",
    "ragged.csv": "ragged.csv:3: csv: 2 fields, the header has 3;",
    "column_twice.csv": "column_twice.csv:1: prompt: is the name of two columns; rename one",
    "unclosed_quote.csv": "unclosed_quote.csv:3: csv: unexpected end of data;",
    "empty_cell.csv": "empty_cell.csv:8: response: is missing;",
    "not_parquet.parquet": "not_parquet.parquet:1: parquet: ",
    "dialogues.txt": "unknown file format '.txt'; the table source reads .jsonl, .csv, .parquet",
    "edgewise_no_sessions": "sessions.jsonl missing; the edgewise source needs characters.jsonl, routines.jsonl, sessions.jsonl",
    "edgewise_lines_differ": "sessions.jsonl:2: alignment: has 1 records, characters.jsonl has 2; keep line n",
    "edgewise_session_twice": "sessions.jsonl:2: sessions[3].session_id: '1' appears twice;",
    "edgewise_no_meta": "sessions.jsonl:2: sessions[3].meta: is missing;",
    "edgewise_many_problems": "9 problems in the data:\ncharacters.jsonl:1: character: is empty;",
    "lamp_gold_missing": "dev_questions.json: [1].output: is missing;",
    "lamp_entry_without_score": "dev_questions.json: [0].profile[0]: lacks one of text, score;",
    "lamp_no_profile": "dev_questions.json: [0].profile: is empty or no list;",
    "lamp_not_json": "dev_questions.json: json: ",
    "lamp_unknown_task": "dev_outputs.json: task: is 'LaMP_9', with golds of type list;",
    "lamp_only_test_questions": "no questions with outputs; LaMP publishes outputs of its train and dev questions alone",
    "lamp_other_words": "dev_questions.json: [0].input: does not hold 'review: ';",
    "lamp_one_question": "dev_questions.json: people: 1 of 1 ask 1 question each (first: '1')",
    "longlamp_nobody": "test.json: [0]: has none of name, reviewerId, author;",
}
ACCEPTED = {"path_like_id.jsonl"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_file_is_refused_with_its_line_and_the_fix(name: str) -> None:
    assert REFUSED[name] in refusal(MALFORMED / name)


def test_every_malformed_file_is_tried() -> None:
    assert {path.name for path in MALFORMED.iterdir()} == REFUSED.keys() | ACCEPTED


def test_a_persona_id_like_a_path_is_data() -> None:
    assert load(settings(MALFORMED / "path_like_id.jsonl")).ids == ("ann", "../../x", "bob")


def test_all_problems_are_listed_at_once() -> None:
    lines = refusal(MALFORMED / "edgewise_many_problems").splitlines()
    assert len(lines) == 1 + 9
    assert {line.split(":")[0] for line in lines[1:]} == {"characters.jsonl", "sessions.jsonl"}


def test_beyond_twenty_problems_only_their_number_is_given(tmp_path: Path) -> None:
    lines = refusal(jsonl(tmp_path / "bad.jsonl", [{"persona_id": "ann"}] * 100)).splitlines()
    assert lines[0] == "101 problems in the data:"  # one per row, and a persona without a dialogue
    assert len(lines) == 1 + LISTED + 1
    assert lines[-1] == "... and 81 more"


def test_a_line_of_50_megabytes_is_refused_without_reading_it_into_memory(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "long.jsonl", rows("ann", "bob"))
    with path.open("a") as file:
        file.write('{"persona_id": "ann", "prompt": "')
        for _ in range(50):
            file.write("x" * 2**20)
        file.write('", "response": "y"}\n')
        file.write("not json\n")
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "long.jsonl:9: line: 52,428,8" in message
    assert "long.jsonl:10: json:" in message
    assert peak < 4 * MAX_LINE_BYTES


def test_a_text_of_a_million_characters_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "long.jsonl", [*rows("ann", "bob"), {"persona_id": "ann", "prompt": "x" * 10**6, "response": "y"}])
    assert "long.jsonl:9: prompt: has 1,000,000 characters; use at most 100,000" in refusal(path)


def test_jsonl_csv_and_parquet_give_the_same_dialogues(tmp_path: Path) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    records = rows("ann", "bob")
    records[0]["prompt"] = 'she said: "well,\nwell", twice'
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    one = load(settings(jsonl(tmp_path / "rows.jsonl", records)))
    assert one.personas[0].dialogues[0].turns
    assert load(settings(tmp_path / "rows.csv")) == one
    assert load(settings(tmp_path / "rows.parquet")) == one


def test_messages_are_read_from_lists_parquet_structs_and_json_text_in_a_cell(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [
        {
            "persona_id": name,
            "messages": [{"role": "user", "content": f"{name} {word}"}, {"role": "assistant", "content": f"to {name}: {word}"}],
        }
        for name in ("ann", "bob")
        for word in ("one", "two", "three")
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "talks.parquet")
    one = load(settings(jsonl(tmp_path / "talks.jsonl", records)))
    in_cells = [record | {"messages": json.dumps(record["messages"])} for record in records]
    assert load(settings(tmp_path / "talks.parquet")) == one
    assert load(settings(jsonl(tmp_path / "cells.jsonl", in_cells))) == one
    assert {turn.text for dialogue in one.personas[0].dialogues for turn in dialogue.turns} >= {"ann one", "to ann: two"}


def test_columns_of_other_names_can_be_mapped(tmp_path: Path) -> None:
    renamed = [{"who": row["persona_id"], "q": row["prompt"], "a": row["response"]} for row in rows("ann", "bob")]
    mapping = (("persona_id", "who"), ("prompt", "q"), ("response", "a"))
    assert load(settings(jsonl(tmp_path / "renamed.jsonl", renamed), columns=mapping)).ids == ("ann", "bob")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_columns_and_fields_of_turns_that_nothing_reads_are_told(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    records: list[dict[str, Any]] = [
        {
            "persona_id": name,
            "stars": 5,
            "prompt": "said before",
            "messages": json.dumps(
                [
                    {"role": "user", "content": f"{name} {word}", "name": "x"},
                    {"role": "assistant", "text": f"to {name}: {word}", "content": "another", "tool_calls": None},
                ]
            ),
        }
        for name in ("ann", "bob")
        for word in ("one", "two", "three")
    ]
    path = tmp_path / f"talks.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        jsonl(path, records)
    problems = Problems()
    assert set(read_table(settings(path), problems).unread) == {"stars", "prompt", "messages.name", "messages.content"}
    assert problems.count == 0
    load(settings(path))
    assert "not read of the rows: stars, " in caplog.text
    caplog.clear()
    nothing: list[dict[str, Any]] = [row | {"": None} for row in rows("ann", "bob")]
    load(settings(jsonl(tmp_path / "plain.jsonl", nothing)))
    assert "not read" not in caplog.text


def test_a_column_without_a_name_as_pandas_writes_it_is_told_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "index.csv").write_text("\n" + pd.DataFrame(rows("ann", "bob")).to_csv(), encoding="utf-8")
    load(settings(tmp_path / "index.csv"))
    assert "not read of the rows: a column without a name; " in caplog.text


def test_a_mapping_of_a_column_we_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="'person' is not one of our columns; use persona_id"):
        load(settings(jsonl(tmp_path / "rows.jsonl", rows("ann", "bob")), columns=(("person", "who"),)))


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "marked.csv"
    path.write_text(
        "\ufeffpersona_id,prompt,response\n" + "".join(f"{r['persona_id']},{r['prompt']},{r['response']}\n" for r in rows("ann", "bob"))
    )
    assert load(settings(path)).ids == ("ann", "bob")


def test_dialogue_ids_do_not_depend_on_the_order_of_rows_and_equal_rows_are_numbered(tmp_path: Path) -> None:
    records = [*rows("ann", n=5), *rows("ann", n=1), *rows("bob")]
    forward, backward = (read(settings(jsonl(tmp_path / f"{step}.jsonl", records[::step]))) for step in (1, -1))
    ids = {persona.id: {dialogue.id for dialogue in persona.dialogues} for persona in forward.dataset.personas}
    assert ids == {persona.id: {dialogue.id for dialogue in persona.dialogues} for persona in backward.dataset.personas}
    assert len(ids["ann"]) == 6
    assert sum(name.endswith(".2") for name in ids["ann"]) == 1


def test_rows_of_one_dialogue_id_are_dialogues_of_one_conversation(tmp_path: Path) -> None:
    records = [row | {"dialogue_id": f"scene {i // 2}"} for i, row in enumerate(rows("ann", "bob", n=6))]
    reading = read(settings(jsonl(tmp_path / "scenes.jsonl", records)))
    assert [len(persona.dialogues) for persona in reading.dataset.personas] == [6, 6]
    assert set(reading.conversation_by_dialogue.values()) == {f"scene {i}" for i in range(6)}


def test_a_leading_system_turn_is_the_system_text_of_its_dialogue_verbatim(tmp_path: Path) -> None:
    text = "Call get_weather(user_id) when\nasked."
    messages = [{"role": "system", "text": text}, {"role": "user", "text": "hi"}, {"role": "assistant", "text": "ho"}]
    dialogue = read(settings(jsonl(tmp_path / "a.jsonl", [{"persona_id": "ann", "messages": messages}]))).dataset.personas[0].dialogues[0]
    assert dialogue.context == ()
    assert dialogue.turns == (Turn("system", text), Turn("user", "hi"), Turn("assistant", "ho"))
    item = items(PreparedModel(), Persona("ann", None, (replace(dialogue, split="test"),)), "test")[0]
    assert item.messages == (Turn("system", text), Turn("user", "hi"))
    described = items(PreparedModel(persona_in_prompt=True), Persona("ann", "a baker", (replace(dialogue, split="test"),)), "test")[0]
    assert described.messages[0] == Turn("system", f"{text}\nThe user: a baker")


def test_a_split_column_decides_and_validation_means_val(tmp_path: Path) -> None:
    sides = ["train", "train", "validation", "test"]
    records = [row | {"split": sides[i % 4]} for i, row in enumerate(rows("ann", "bob"))]
    for persona in load(settings(jsonl(tmp_path / "given.jsonl", records), train=2)).personas:
        assert [dialogue.split for dialogue in persona.dialogues] == ["train", "train", "val", "test"]


def test_only_the_first_personas_are_used_when_fewer_are_asked_for_and_missing_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path / "three.jsonl", rows("carl", "ann", "bob"))
    assert load(settings(path, personas=2)).ids == ("carl", "ann")
    with caplog.at_level(logging.WARNING):
        assert load(settings(path, personas=4)).ids == ("carl", "ann", "bob")
    assert "3 personas in the data, fewer than data.personas = 4: all are used" in caplog.text


def test_a_study_of_one_persona_is_refused(tmp_path: Path) -> None:
    assert "personas: 1 in the data, 2 needed" in refusal(jsonl(tmp_path / "one.jsonl", rows("ann")))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    assert "nowhere.jsonl: no such file; the table source reads" in refusal(tmp_path / "nowhere.jsonl")
    assert f"{tmp_path / 'gone'}: no such folder; give one with characters.jsonl" in refusal(tmp_path / "gone", source="edgewise")
    with pytest.raises(UnknownName, match="unknown data source 'excel'; known: ") as unknown:
        load(DataSettings(source="excel"))
    assert set(str(unknown.value).partition("known: ")[2].split(", ")) == {*SOURCES}


@pytest.mark.whole
def test_a_hub_data_set_that_cannot_be_fetched_names_the_local_alternative() -> None:
    script = (
        "from clusterlora.data.load import load; from clusterlora.settings import DataSettings; "
        "load(DataSettings(source='edgewise', path='nobody/nothing'))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("clusterlora.errors.BadData: nobody/nothing: no folder of this name, and the hub data set cannot be fetched (")
    )
    assert "copy characters.jsonl, routines.jsonl, sessions.jsonl into a folder" in done.stderr


def test_reading_settings_and_sources_imports_nothing_heavy() -> None:
    script = (
        "import sys; import clusterlora.data.validate, clusterlora.data.synthetic; "
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_shared
def test_shakespeare_is_read_and_split_by_scene() -> None:
    dataset = load(DataSettings(source="table", path=str(SHARED / "shakespeare_200x30.jsonl"), train=10, val=4, test=4))
    assert len(dataset.personas) == 200
    assert sum(len(persona.of_split("train")) == 10 for persona in dataset.personas) == 200
    assert sum(len(persona.of_split("test")) == 4 for persona in dataset.personas) > 180
