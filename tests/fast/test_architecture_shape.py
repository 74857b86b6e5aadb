"""Files and functions stay small enough to be read at once, and the repository names no package index."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGES = ("clusterlora", "deployments", "flows", "tasks")

FIELD_TERM_BY_COINED_NAME = {
    "bring_in": "import_outputs",
    "crew": "WorkerThreads",
    "deal": "partition_by_load",
    "dealing": "load_balancing",
    "desk": "DecodeBatch",
    "letter": "payload",
    "like_size": "bucket_size",
    "lora_pass": "lora_backend",
    "prefix_pass": "prefix_backend",
    "replays": "CudaGraphCache",
    "seat": "ActiveJob",
    "see_through": "run_attempt",
    "set_aside": "quarantine, mark_diverged",
    "site_slots": "adapter_slots",
    "stand_in_line": "wait_for_run_of",
    "step_aside": "lower_priority",
    "that_fit": "n_rows_that_fit",
    "through_decoder": "decoder_backend",
    "through_transformers": "transformers_backend",
    "underlay": "frozen_adapter",
}
"""Names without leading underscores and in lower case that no module, class, function, argument or variable has."""

# A migration is a list of columns, frozen once it has run somewhere.
SOURCES = sorted(file for name in PACKAGES for file in (REPOSITORY / name).rglob("*.py") if file.parent.name != "versions")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_file_has_a_docstring_and_at_most_400_lines_and_its_functions_at_most_70(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{file.name} does not say what it is"
    assert len(text.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert n_lines <= 70, f"{node.name} has {n_lines} lines"


@pytest.mark.parametrize(
    "name", ["requirements.lock", "quantised.lock", "docs/requirements.lock", "docker/requirements.lock", "benchmarks/requirements.lock"]
)
def test_the_locks_pin_every_package_by_hash_and_name_no_index(name: str) -> None:
    lock = (REPOSITORY / name).read_text(encoding="utf-8")
    pinned = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock


@pytest.mark.parametrize("name", ["quantised.lock", "docs/requirements.lock", "benchmarks/requirements.lock"])
def test_what_is_installed_on_top_changes_no_version(name: str) -> None:
    """`make quantised`, `make docs` and `make bench` install into the environment of `make install`."""

    def versions(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", (REPOSITORY / lock).read_text(encoding="utf-8"), re.MULTILINE))

    installed, added = versions("requirements.lock"), versions(name)
    assert {package: version for package, version in added.items() if installed.get(package, version) != version} == {}


@pytest.mark.whole
def test_no_coined_name_stands_for_a_term_of_the_field() -> None:
    coined = {
        f"{file.relative_to(REPOSITORY)}: {name} (say {FIELD_TERM_BY_COINED_NAME[plain]})"
        for file in SOURCES
        for name in _identifiers(file)
        if (plain := name.lstrip("_").lower()) in FIELD_TERM_BY_COINED_NAME
    }
    assert not coined, "\n".join(sorted(coined))


def _identifiers(file: Path) -> set[str]:
    """Return the name of a module and every name that it defines."""
    names = {file.stem}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


PARSERS = ("partition", "rpartition", "split", "rsplit", "startswith", "endswith", "removeprefix", "removesuffix", "find", "index")
OF_ADAPTERS = (
    *(
        "adapters",
        "chat",
        "cli",
        "comparison",
        "methods",
        "planning",
        "progress",
        "registry",
        "report",
        "results",
        "serving",
        "stages",
        "stores",
    ),
)
"""Rooms of the core in which a name is a study's: of an adapter, a method, a training group, a rung. In others it is a tensor's, say."""
OTHER_NAMES = {
    ("clusterlora/adapters/import_checks.py", "name"): "of tensors and base models",
    ("clusterlora/cli/orchestration.py", "name"): "of variables of the environment",
    ("clusterlora/comparison/table.py", "label"): "of a metric",
    ("clusterlora/report/sections.py", "name"): "of measures of a clustering",
    ("clusterlora/serving/export.py", "name"): "of a model's layers",
    ("clusterlora/stages/train.py", "group"): "rendered as the name of a log file",
    ("clusterlora/stores/mlflow_models.py", "name"): "what a person types: model, alias or version",
}


def parsed_names(tree: ast.Module) -> list[tuple[str, int]]:
    """Return (variable or attribute, line) of every name that is taken apart: by a string's method, `re`, a slice or `in`."""
    found: list[tuple[str, int]] = []

    def is_name(node: ast.expr) -> str | None:
        last = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        # `name`, `adapter_name`, `spec.label`, `method`, `group`, `rung` and the like, but no collection of them.
        return last if re.fullmatch(r"(\w*_)?(name|label|adapter|method|model|group|rung|title)", last) else None

    for node in ast.walk(tree):
        subject: ast.expr | None = None
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("re")), args=[*_, last]):
                subject = last
            case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in PARSERS:
                subject = value
            case ast.Subscript(value=value, slice=ast.Slice()):
                subject = value
            case ast.Compare(left=ast.Constant(value=str()), ops=[ast.In() | ast.NotIn()], comparators=[comparator]):
                subject = comparator
            case _:
                pass
        if subject is not None and (name := is_name(subject)):
            found.append((name, subject.lineno))
    return found


@pytest.mark.parametrize(
    "file",
    [
        file
        for file in SOURCES
        if file.is_relative_to(REPOSITORY / "tasks")
        or file.is_relative_to(REPOSITORY / "flows")
        or file.relative_to(REPOSITORY).parts[:2] in {("clusterlora", room) for room in OF_ADAPTERS}
    ],
    ids=lambda file: str(file.relative_to(REPOSITORY)),
)
def test_no_name_of_an_adapter_or_method_is_parsed_for_meaning(file: Path) -> None:
    where = file.relative_to(REPOSITORY).as_posix()
    parsed = [(name, line) for name, line in parsed_names(ast.parse(file.read_text(encoding="utf-8"))) if (where, name) not in OTHER_NAMES]
    assert not parsed, f"{where} takes names apart: {parsed}; give the value a field, or say in OTHER_NAMES whose name it is"


@pytest.mark.parametrize(
    "code",
    [
        'spec.name.partition("-")',
        'adapter_name.startswith("persona")',
        'x = re.sub(r"-0*", "_", group)',
        "stem = name[:7]",
        'if "+" in rung: pass',
    ],
)
def test_every_way_to_take_a_name_apart_is_seen(code: str) -> None:
    assert parsed_names(ast.parse(code))


@pytest.mark.parametrize("code", ['"-".join(names)', 'name.replace("-", "_")', "names[:7]", '"x" in names', 'uri.startswith("runs:/")'])
def test_rendering_a_name_and_parsing_something_else_are_allowed(code: str) -> None:
    assert not parsed_names(ast.parse(code))
