"""Files and functions stay small enough to be read at once, and the repository names no package index."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGES = ("clusterlora", "deployments", "flows", "tasks")

FIELD_TERM_BY_COINED_NAME = {
    "crew": "WorkerThreads",
    "deal": "partition_by_load",
    "dealing": "load_balancing",
    "desk": "DecodeBatch",
    "like_size": "bucket_size",
    "lora_pass": "lora_backend",
    "prefix_pass": "prefix_backend",
    "replays": "CudaGraphCache",
    "seat": "ActiveJob",
    "set_aside": "quarantine, mark_diverged",
    "site_slots": "adapter_slots",
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
    "name", ["requirements.lock", "docs/requirements.lock", "docker/requirements.lock", "benchmarks/requirements.lock"]
)
def test_the_locks_pin_every_package_by_hash_and_name_no_index(name: str) -> None:
    lock = (REPOSITORY / name).read_text(encoding="utf-8")
    pinned = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock


@pytest.mark.parametrize("name", ["docs/requirements.lock", "benchmarks/requirements.lock"])
def test_what_is_installed_on_top_changes_no_version(name: str) -> None:
    """`make docs` and `make bench` install into the environment of `make install`."""

    def versions(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", (REPOSITORY / lock).read_text(encoding="utf-8"), re.MULTILINE))

    installed, added = versions("requirements.lock"), versions(name)
    assert {package: version for package, version in added.items() if installed.get(package, version) != version} == {}


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
