"""Tables that unfold, columns that nobody reads, ids that look alike, keys that stand twice, cells that a spreadsheet would run."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterlora.csv_text import csv_text
from clusterlora.data.legacy_import import read_json
from clusterlora.data.load import load
from clusterlora.data.similar_ids import described, similar_ids
from clusterlora.data.validate import examine
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings

ROWS: list[dict[str, Any]] = [
    {"persona_id": name, "prompt": f"question {n}?", "response": f"answer {n} of {name}"} for name in ("ann", "bob") for n in range(5)
]


def settings(path: Path, **others: Any) -> DataSettings:
    return DataSettings(source="table", path=str(path), train=3, val=1, test=1, **others)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(**columns: pa.Array) -> pa.Table:
    read = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    for name, values in columns.items():
        read = read.append_column(name, values)
    return read


def test_a_column_that_nobody_reads_cannot_be_wrong(tmp_path: Path) -> None:
    beyond_every_calendar = pa.array([2**62] * len(ROWS), pa.timestamp("us"))
    pq.write_table(table(seen=beyond_every_calendar), tmp_path / "people.parquet")
    assert load(settings(tmp_path / "people.parquet")) == load(settings(jsonl(tmp_path / "people.jsonl", ROWS)))


def test_a_value_that_python_cannot_hold_is_told_by_its_row(tmp_path: Path) -> None:
    pq.write_table(table(dialogue_id=pa.array([2**62] * len(ROWS), pa.timestamp("us"))), tmp_path / "people.parquet")
    with pytest.raises(BadData, match=r"people.parquet:1: parquet: .*out of range; write the file again"):
        load(settings(tmp_path / "people.parquet"))


def test_texts_within_messages_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterlora.data.table.os.sysconf", lambda _name: 1000)
    turn = [{"role": "user", "text": "x" * 200_000}, {"role": "assistant", "text": "y"}]
    pq.write_table(pa.table({"persona_id": ["ann", "bob"], "messages": [turn, turn]}), tmp_path / "lists.parquet")
    with pytest.raises(BadData, match=r"lists.parquet: 2 rows take 0.0 GB as dialogues"):
        load(settings(tmp_path / "lists.parquet"))


@pytest.mark.whole
@pytest.mark.parametrize("rows", [40_000_000, 10])
def test_a_small_file_that_unfolds_to_more_than_the_machine_has_is_refused_by_its_size(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the number of rows before they are read, else by what was read so far."""
    text = "x" * (1 if rows > 10 else 90_000)
    if rows == 10:
        monkeypatch.setattr("clusterlora.data.table.os.sysconf", lambda _name: 1000)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows if rows == 10 else memoryview(bytes(rows)), pa.int8()), pa.array([text]))
    pq.write_table(pa.table({"persona_id": cells, "prompt": cells, "response": cells}), tmp_path / "bomb.parquet")
    with pytest.raises(BadData, match=r"bomb.parquet: [\d,]+ rows take [\d.]+ GB as dialogues, and a quarter of this machine's memory is"):
        load(settings(tmp_path / "bomb.parquet"))


def test_a_table_of_very_many_columns_is_read_like_any_other(tmp_path: Path) -> None:
    others = [f"c{n}" for n in range(200_000)]
    lines = [",".join([*ROWS[0], *others]), *(",".join([*row.values(), *[""] * len(others)]) for row in ROWS)]
    (tmp_path / "wide.csv").write_text("\n".join(lines), encoding="utf-8")
    assert load(settings(tmp_path / "wide.csv")) == load(settings(jsonl(tmp_path / "people.jsonl", ROWS)))
    (tmp_path / "other.csv").write_text("\n".join(line.replace("response", "reply", 1) for line in lines), encoding="utf-8")
    with pytest.raises(BadData, match=r"response: is not a column .*\(the file has: persona_id, prompt, reply, c0, .* and 199983 more\)"):
        load(settings(tmp_path / "other.csv"))


def test_an_escape_in_a_header_never_reaches_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("persona_id,prompt,resp\x1b[31monse\nann,hello,hi\n", encoding="utf-8")
    with pytest.raises(BadData) as refusal:
        load(settings(tmp_path / "people.csv"))
    assert "\x1b" not in str(refusal.value)
    assert "resp\\x1b[31monse" in str(refusal.value)


def test_a_key_that_stands_twice_is_refused_wherever_it_is(tmp_path: Path) -> None:
    lines = ['{"persona_id": "ann", "prompt": "one", "prompt": "two", "response": "three"}']
    lines += ['{"persona_id": "ann", "messages": [{"role": "user", "text": "a", "text": "b"}, {"role": "assistant", "text": "c"}]}']
    (tmp_path / "people.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(BadData) as refusal:
        load(settings(tmp_path / "people.jsonl"))
    assert "people.jsonl:1: prompt: stands twice in an object; keep one of the two" in str(refusal.value)
    assert "people.jsonl:2: text: stands twice in an object; keep one of the two" in str(refusal.value)


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_saved_with_other_separators_is_told_in_one_line(separator: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(separator.join(("persona_id", "prompt", "response")) + "\n" + separator.join(("a", "b", "c")) + "\n", encoding="utf-8")
    with pytest.raises(BadData, match=f"people.csv: csv: its columns are separated by {name}; save the table with commas"):
        load(settings(path))


def test_ids_that_look_alike_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["zo\u00eb", "zoe\u0308", "Ana", " ana", "a\u200bna", "bob", "b ob", "carl"]
    groups = (("zo\u00eb", "zoe\u0308"), ("Ana", " ana", "a\u200bna"), ("bob", "b ob"))
    assert similar_ids(ids) == groups
    assert described(groups) == r"'zoë' and 'zoe\u0308'; 'Ana' and ' ana' and 'a\u200bna'; 'bob' and 'b ob'"
    rows = [{**row, "persona_id": name} for name in ids for row in ROWS[:5]]
    path = jsonl(tmp_path / "people.jsonl", rows)
    assert examine(settings(path)).similar_ids == groups
    load(settings(path))
    assert "3 groups of people have ids that look alike ('zoë' and 'zoe\\u0308'; " in caplog.text


@pytest.mark.parametrize("unseen", ["\ufe0f", "\u034f", "\u115f", "\u3164", "\u17b4", "\u2800", "\U000e0100", "\u200b", "\u2060"])
def test_characters_that_are_shown_as_nothing_make_no_other_id(unseen: str) -> None:
    groups = similar_ids(["ana", f"ana{unseen}", "anna"])
    assert groups == (("ana", f"ana{unseen}"),)
    assert described(groups).isascii(), "what differs is shown"


def test_ids_of_a_persons_dialogues_that_look_alike_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "dialogue_id": "D" if n % 5 == 0 else f"d{n}"} for n, row in enumerate(ROWS)] + [
        {**ROWS[0], "prompt": "more?", "dialogue_id": "d"}
    ]
    load(settings(jsonl(tmp_path / "people.jsonl", rows)))
    assert "1 group of a person's dialogue ids look alike ('D' and 'd' of 'ann'); if they are one dialogue each, write" in caplog.text


def test_a_csv_field_may_be_as_long_as_a_text_in_json(tmp_path: Path) -> None:
    turns = [{"role": role, "text": f"{role} {'word ' * 15_000}"} for role in ("user", "assistant") * 2]
    rows = [
        {"persona_id": name, "messages": json.dumps([*turns, {"role": "user", "text": f"{n}"}, *turns[1:2]])}
        for n in range(5)
        for name in "ab"
    ]
    (tmp_path / "people.csv").write_text(csv_text(rows), encoding="utf-8")
    assert {len(persona.dialogues) for persona in load(settings(tmp_path / "people.csv")).personas} == {5}


def test_an_id_that_stands_as_a_number_and_as_a_text_is_one_person_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "persona_id": 1 if n % 2 else "1"} for n, row in enumerate(ROWS[:5])] + ROWS[5:]
    path = jsonl(tmp_path / "people.jsonl", rows)
    summary = examine(settings(path))
    assert summary.personas == 2
    assert summary.similar_ids == ()
    assert summary.number_and_text == ("1",)
    with caplog.at_level("WARNING"):
        load(settings(path))
    assert "ids that stand as a number and as a text are read as one person each: '1'" in caplog.text


def test_a_dialogue_whose_id_stands_as_a_number_and_as_a_text_is_one_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**row, "dialogue_id": (n, str(n))[n % 2] if n else "1"} for n, row in enumerate(ROWS)]
    rows += [{**ROWS[0], "prompt": "more?", "dialogue_id": 1}]
    path = jsonl(tmp_path / "people.jsonl", rows)
    load(settings(path))
    said = f"read as one dialogue each: '1' of {ROWS[0]['persona_id']!r}"
    assert f"dialogue ids that stand as a number and as a text are {said}" in caplog.text
    assert caplog.text.count("' of '") == 1


def test_no_cell_is_run_by_a_spreadsheet_and_numbers_stay_numbers() -> None:
    cells = ["=1+1", "+x", "-x", "@sum", "\tx", "\rx", "x=1", "", None, -3.5, 7]
    written = csv_text([{"a": cell, "b": n} for n, cell in enumerate(cells)])
    read = [row[0] for row in csv.reader(io.StringIO(written, newline=""))][1:]
    assert read == ["'=1+1", "'+x", "'-x", "'@sum", "'\tx", "'\rx", "x=1", "", "", "-3.5", "7"]


@pytest.mark.parametrize("cell", ["\n=1+1", "\uff1d1+1", "\uff0bx", "\uff0dx", "\uff20sum"])
def test_full_width_signs_and_line_breaks_before_a_formula_are_no_formula(cell: str) -> None:
    assert next(csv.reader(io.StringIO(csv_text([{"a": cell}]).split("\n", 1)[1], newline=""))) == [f"'{cell}"]


def test_a_key_that_stands_twice_in_messages_as_text_is_refused(tmp_path: Path) -> None:
    text = '[{"role": "user", "text": "a", "text": "b"}, {"role": "assistant", "text": "c"}]'
    (tmp_path / "people.jsonl").write_text(json.dumps({"persona_id": "ann", "messages": text}), encoding="utf-8")
    with pytest.raises(BadData, match=r"people\.jsonl:1: messages\.text: stands twice in an object; keep one of the two"):
        load(settings(tmp_path / "people.jsonl"))


def test_two_parquet_columns_of_one_name_are_refused_as_those_of_csv_are(tmp_path: Path) -> None:
    columns = [pa.array(["ann"] * 4), *(pa.array([f"{column} {n}" for n in range(4)]) for column in ("why", "so", "no"))]
    pq.write_table(pa.table(columns, names=["persona_id", "prompt", "response", "response"]), tmp_path / "people.parquet")
    with pytest.raises(BadData, match=r"people\.parquet: response: is the name of two columns; rename one"):
        load(settings(tmp_path / "people.parquet"))


@pytest.mark.parametrize(
    "text",
    [
        '{"ann": 0, "ann": 1, "bob": 1}',
        '{"train": {"ann": ["a"]}, "train": {"ann": ["b"]}}',
        '{"results": {"ann": {"nll": 1.0, "nll": 2.0}}}',
    ],
    ids=["clusters", "splits", "results"],
)
def test_a_key_that_stands_twice_in_a_file_of_another_study_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadData, match=r"file\.json: cannot be read as JSON \('\w+' stands twice in an object; keep one of the two\)"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize(
    ("which", "text"), [("questions", '[{"id": "1", "id": "2"}]'), ("outputs", '{"task": "LaMP_3", "golds": [], "golds": []}')]
)
def test_a_key_that_stands_twice_in_a_benchmark_is_refused(tmp_path: Path, which: str, text: str) -> None:
    files = {"questions": "[]", "outputs": '{"task": "LaMP_3", "golds": []}'} | {which: text}
    for name, content in files.items():
        (tmp_path / f"dev_{name}.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=rf"dev_{which}\.json: json: '\w+' stands twice in an object"):
        load(DataSettings(source="lamp", path=str(tmp_path), task="rating"))
