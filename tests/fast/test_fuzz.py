"""Any content of a file or a setting is used, or refused in printable lines.

Of each, the fast tier tries as many cases as the profile in tests/conftest.py says, the tier `all` 500, `make fuzz` 4,000.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterlora.config import PRESETS, as_mapping, from_mapping, parse_setting, resolve
from clusterlora.data.legacy_import import read_clusters, read_results, read_splits
from clusterlora.data.load import load
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.settings import DataSettings

# How long they take depends on what is asked for.
pytestmark = [pytest.mark.timeout(0)]

MANY = 100


@pytest.fixture(params=["some", pytest.param("many", marks=pytest.mark.all)])
def fuzz(request: pytest.FixtureRequest) -> settings:
    """Return how a case is tried: as often as the profile says, or many times."""
    return settings(max_examples=settings.default.max_examples if request.param == "some" else MANY)  # pyrefly: ignore[missing-attribute]


PEOPLE = ("ann", "bob")
ODD_TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(["\ud800", "\x00", "\x1b[2J", "\u2028", "../../x", "NaN", "9" * 30, "-1"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT | st.sampled_from([10**30, 2**63, 999_999_999])
FIELDS: tuple[str, ...] = ("persona_id", "prompt", "response", "messages", "persona_description", "dialogue_id", "split")


def tree(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return values of any shape whose objects have these names."""
    return st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8)


def outcome(use: Callable[[], object]) -> object:
    """Return what is made of the input, or None when it is refused as data and settings are."""
    return outcome_of(use, refusals=(BadData, BadSettings, UnknownName))


def outcome_of(use: Callable[[], object], *, refusals: type[Exception] | tuple[type[Exception], ...]) -> object:
    """Return what is made of the input, or None when it is refused as it should be; any other exception is the failure looked for."""
    try:
        return use()
    except refusals as refusal:
        message = str(refusal)
        assert message.strip()
        message.encode()  # it can be printed
        for line in message.split("\n"):
            assert line.strip()
            assert not set(line) & {"\r", "\x00", "\x1b", "\u2028"}, line
        return None


def row(name: str, number: int) -> dict[str, Any]:
    return {"persona_id": name, "prompt": f"{name} asks for number {number} please", "response": f"{number * 7} is what {name} gets"}


ROLES = st.sampled_from(["role", "text", "content", "user"])
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "robot"]), "text": ODD_TEXT})
MESSAGES = st.lists(TURN | tree(ROLES), max_size=4)
CHANGE: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(FIELDS), tree(ROLES) | MESSAGES | MESSAGES.map(json.dumps), max_size=3
)
GOOD_ROWS = [row(name, number) for name in PEOPLE for number in range(4)]


@st.composite
def spoilt_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw the rows of two people, of which some say something odd."""
    rows = [dict(good) for good in GOOD_ROWS]
    for index in draw(st.lists(st.integers(0, len(rows) - 1), max_size=3)):
        rows[index] |= draw(CHANGE)
    return rows + draw(st.lists(CHANGE, max_size=1))


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a file of which a piece is lost, doubled, or replaced by anything."""
    start, end = sorted(draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    return whole[:start] + draw(st.binary(max_size=8) | st.just(whole[start:end] * 2)) + whole[end:]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join([",".join(FIELDS[:3]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]).encode()


def parquet_of(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


TABLES: dict[str, st.SearchStrategy[bytes]] = {
    "rows.jsonl": spoilt_rows().map(lines),
    "bytes.jsonl": spoilt_bytes(lines(GOOD_ROWS)),
    "bytes.csv": spoilt_bytes(csv_of(GOOD_ROWS)),
    "bytes.parquet": spoilt_bytes(parquet_of({name: [row[name] for row in GOOD_ROWS] for name in FIELDS[:3]})),
}


@pytest.mark.parametrize("name", TABLES)
def test_any_table_is_read_or_refused_in_one_line_per_problem(name: str, tmp_path: Path, fuzz: settings) -> None:
    file = tmp_path / name

    @fuzz
    @given(TABLES[name])
    def case(content: bytes) -> None:
        file.write_bytes(content)
        outcome(lambda: load(DataSettings(source="table", path=str(file), train=1, val=1, test=1)))

    case()


def test_any_edgewise_folder_is_read_or_refused_in_one_line_per_problem(tmp_path: Path, fuzz: settings) -> None:
    @fuzz
    @given(st.lists(tree(st.sampled_from(["character", "sessions", "session_id", "meta", "messages", "role", "text", "a\nb"])), max_size=2))
    def case(odd: list[Any]) -> None:
        turns = [{"role": "user", "text": "hello there"}, {"role": "assistant", "text": "good evening"}]
        sessions = [{"session_id": number, "meta": {"weather": "sunny"}, "messages": turns} for number in range(3)]
        spoilt = [{"sessions": odd}, {"sessions": [*sessions, *(dict(sessions[0]) | o for o in odd if isinstance(o, dict))]}]
        contents = {
            "characters.jsonl": [{"character": odd[0] if odd else "calm"}, {"character": "loud"}],
            "routines.jsonl": [{}, {}],
            "sessions.jsonl": spoilt,
        }
        for name, records in contents.items():
            (tmp_path / name).write_bytes(lines(records))
        outcome(lambda: load(DataSettings(source="edgewise", path=str(tmp_path), train=1, val=1, test=1)))

    case()


OLDER = tree(st.sampled_from([*PEOPLE, "train", "test", "0", "cluster_1", "persona_id", "cluster", "splits", "results", "x\ny"]))


def test_any_file_of_older_scripts_is_read_or_refused_in_one_line_per_problem(tmp_path: Path, fuzz: settings) -> None:
    @fuzz
    @given(OLDER.map(json.dumps).map(str.encode) | spoilt_bytes(b'{"train": {"ann": [0, "b"]}, "test": {"bob": ["a"]}}'))
    @example(b'{"ann": 0, "bob": 999999999}')
    @example(b"[" * 100_000)
    @example(b"9" * 5000)
    @example(b'{"ann": 1' + b"0" * 400 + b"}")
    def case(content: bytes) -> None:
        file = tmp_path / "older.json"
        file.write_bytes(content)
        for use in (
            lambda: read_splits(file, dict.fromkeys(PEOPLE, ("a", "b"))),
            lambda: read_clusters(file, PEOPLE),
            lambda: read_results(file, PEOPLE),
        ):
            outcome(use)

    case()


def names_in(settings: Any) -> set[str]:
    return {n for name, value in settings.items() for n in {name} | (names_in(value) if isinstance(value, dict) else set())}


DEMO = as_mapping(resolve("demo"))
NAMES = st.sampled_from(sorted(names_in(DEMO) | {"name", "init", "typo", "a.b", "x\ny"}))
SECTIONS = st.sampled_from([*sorted(DEMO), "typo"])
DOTTED = st.one_of(
    SECTIONS,
    st.tuples(SECTIONS, NAMES).map(".".join),
    st.sampled_from([f"{section}.{name}" for section, inner in DEMO.items() if isinstance(inner, dict) for name in inner]),
    ODD_TEXT,
)


def test_any_overrides_give_a_study_or_are_refused_in_one_line_per_problem(fuzz: settings) -> None:
    @fuzz
    @given(st.sampled_from([None, *PRESETS]), st.dictionaries(DOTTED, tree(NAMES), max_size=4))
    def case(preset: str | None, overrides: dict[str, Any]) -> None:
        study = outcome(lambda: resolve(preset, overrides=overrides))
        assert study is None or from_mapping(as_mapping(study)) == study  # pyrefly: ignore[bad-argument-type]

    case()


def test_any_configuration_file_is_a_study_or_refused_in_one_line_per_problem(tmp_path: Path, fuzz: settings) -> None:
    @fuzz
    @given(
        spoilt_bytes(b'methods = ["unified"]\n[recipe]\nepochs = 1\n[[gate.ladder]]\nname = "a"\nepochs = 2\n[data.synthetic]\nseed = 1\n'),
        st.sampled_from([None, *PRESETS]),
    )
    @example(b"x = " + b"[" * 100_000, None)
    @example(b"x = " + b"9" * 5000, None)
    def case(content: bytes, preset: str | None) -> None:
        file = tmp_path / "study.toml"
        file.write_bytes(content)
        outcome(lambda: resolve(preset, file))

    case()


def test_any_flag_is_a_setting_or_refused_in_one_line_per_problem(fuzz: settings) -> None:
    @fuzz
    @given(st.tuples(DOTTED | ODD_TEXT, ODD_TEXT | st.text("[]{}=\"'1e.-_ax, ", max_size=12)).map("=".join))
    @example("recipe.epochs=" + "9" * 5000)
    @example("recipe.epochs=" + "[" * 100_000)
    @example("clustering=5")
    @example("data.synthetic=1")
    @example("clustering=none")
    @example("=".join(("recipe.epochs", "1\nrank = 3")))
    def case(text: str) -> None:
        outcome(lambda: resolve("quick", overrides=dict([parse_setting(text)])))

    case()
