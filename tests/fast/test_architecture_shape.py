"""Files and functions stay small enough to be read at once, and the repository names no package index."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGES = ("clusterlora", "deployments", "flows", "tasks")

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


def test_the_lock_pins_every_package_by_hash_and_names_no_index() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    pinned = [line for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pinned) > 50
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock
