"""What commands print is never narrower than its numbers."""

import io
import sys
from pathlib import Path

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from clusterlora import cli
from clusterlora.cli import main
from clusterlora.cli.chat import _print_table as print_answers
from clusterlora.cli.printing import echo_columns, print_whole
from clusterlora.config import resolve
from clusterlora.errors import harmless
from clusterlora.evaluation.markdown import markdown_table
from deployments.study_results import _print_markdown

NUMBERS = tuple(f"+{n}5.8312345" for n in range(1, 9))


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_a_piped_table_has_every_number_whole_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table(*(f"a long heading {n}" for n in range(8)), box=box.SIMPLE_HEAD, caption="a sentence below the table " * 20)
    table.add_row(*NUMBERS)
    print_whole(table)
    lines = capsys.readouterr().out.splitlines()
    assert any(all(number in line for number in NUMBERS) for line in lines)
    assert "…" not in "".join(lines)


def test_a_narrow_terminal_gets_a_table_of_results_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    cells = " | ".join(NUMBERS)
    markdown = f"**A sentence.**\n\n| {' | '.join('abcdefgh')} |\n|{'---:|' * 8}\n| {cells} |\n\nA sentence after the table.\n"
    _print_markdown(Console(file=out, force_terminal=True, width=40), markdown)
    assert all(number in out.getvalue() for number in NUMBERS)
    assert "…" not in out.getvalue()


def test_a_narrow_terminal_wraps_headings_but_cuts_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    table = Table(*(f"a long heading {n}" for n in range(8)), box=box.SIMPLE_HEAD)
    table.add_row(*NUMBERS)
    print_whole(table)
    assert any(all(number in line for number in NUMBERS) for line in terminal.getvalue().splitlines())


def test_lists_have_headings_above_their_columns_and_say_nothing_when_empty(capsys: pytest.CaptureFixture[str]) -> None:
    echo_columns(("STUDY", "STATUS"), [("a-long-name", "running"), ("b", "finished")])
    assert capsys.readouterr().out == "STUDY        STATUS\na-long-name  running\nb            finished\n"
    echo_columns(("STUDY", "STATUS"), [])
    assert capsys.readouterr().out == ""


def test_columns_stand_below_each_other_whatever_the_width_of_their_characters(capsys: pytest.CaptureFixture[str]) -> None:
    echo_columns(("WHO", "WHERE"), [("李小龙", "a"), ("cafe\u0301", "b"), ("Ann", "c")])
    assert capsys.readouterr().out == "WHO     WHERE\n李小龙  a\ncafe\u0301    b\nAnn     c\n"


def test_no_command_prints_a_table_of_numbers_in_whatever_width_there_is() -> None:
    commands = Path(cli.__file__).parent.glob("*.py")
    # The answers of a chat are words, which may be folded.
    assert [path.name for path in commands if "Console().print(" in path.read_text(encoding="utf-8")] == ["chat.py"]


def test_piped_markdown_has_no_entities_and_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    _print_markdown(Console(file=io.StringIO()), markdown_table(["who"], [["a<b> & [c]|`d`"]], right=[False]))
    assert "| a<b> & [c]|`d` |" in capsys.readouterr().out


ESCAPES = "\x1b]52;c;aGk=\x07 \x9b31m first\r\n\tsecond \u00e9 \u4e2d"


def test_a_text_of_people_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert harmless(ESCAPES) == "\\x1b]52;c;aGk=\\x07 \\x9b31m first\\r\n\tsecond \u00e9 \u4e2d"
    print_answers({"unified": {"answered_by": "unified", "text": ESCAPES}})
    printed = capsys.readouterr().out
    assert "second" in printed
    assert not set(printed) & {"\x1b", "\x07", "\x9b", "\r"}


def test_control_characters_of_settings_and_of_what_was_typed_are_refused_or_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", "--show-settings", "--set", 'runtime.currency="\\u001b[31m"']) == 1
    assert "runtime.currency = '\\x1b[31m': holds control characters" in capsys.readouterr().err
    for broken in ("a\nb", "a\u2028b", "a\n"):
        assert main(["data", "validate", "--base-model", broken]) == 1
        assert f"model.base = {broken!r}: holds line breaks" in capsys.readouterr().err
    assert main(["study", "\x1b[31m"]) == 2
    assert "\\x1b[31m" in (told := capsys.readouterr().err)
    assert "\x1b" not in told
    assert main(["data", "template", str(tmp_path / "\x1b[31m")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    echo_columns(("NAME",), (("\x1b[31m",),))
    assert capsys.readouterr().out == "NAME\n\\x1b[31m\n"


def test_a_system_prompt_may_hold_the_line_breaks_of_any_system() -> None:
    assert resolve("quick", None, {"model.system_prompt": "Be kind.\r\nBe short."}).name


def test_a_column_may_have_a_name_of_several_lines() -> None:
    assert resolve("quick", None, {"data.columns": [["prompt", "asked\n(as typed)"]]}).name


def test_what_is_wrong_with_the_services_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = tmp_path / "stack"
    stack.mkdir(mode=0o700)
    (stack / "stack.json").write_text("{")
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(stack))
    for _ in range(2):
        assert main(["study", "list"]) == 0
        printed = capsys.readouterr()
        assert printed.err.count("which says what servers run, is damaged") == 1
        assert "no studies yet" in printed.out


def test_a_base_is_not_built_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["models", "build", "homelm", "--out", str(tmp_path / "file" / "model")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file' / 'model'}: ")
