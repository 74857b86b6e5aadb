"""The import contracts of pyproject.toml hold, and every module is imported by another."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter import cli

REPOSITORY = Path(__file__).resolve().parents[2]

# Reached by name, not by an import: the command line's entry, scripts that are run, what servers serve, and what orchestration.py loads.
ENTRY_POINTS = (
    "clusterlora.cli",
    "clusterlora.serving.router_model",
    "clusterlora.stores.migrations",
    "deployments.apply",
    "deployments.auth_middleware",
    "deployments.backup",
    "deployments.restore",
    "deployments.launch",
    "deployments.local_worker",
    "deployments.mlflow_server",
    "flows.",
)


def test_the_import_contracts_hold() -> None:
    assert cli.lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True) == 0


def test_every_module_is_used_by_another() -> None:
    graph = grimp.build_graph("clusterlora", "deployments", "flows", "tasks", cache_dir=None)
    packages = {module.rpartition(".")[0] for module in graph.modules}
    orphans = [
        module
        for module in sorted(graph.modules - packages)
        if not graph.find_modules_that_directly_import(module) and not module.startswith(ENTRY_POINTS)
    ]
    assert not orphans, f"nothing imports {', '.join(orphans)}; enter it in its catalog, or delete it"


@pytest.mark.whole  # a process of its own imports PyTorch
def test_the_engine_imports_nothing_of_a_study(tiny_base_folder: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from clusterlora.engine import AdapterJob, Recipe, generate, train_adapters
dialogue = [{{"role": "user", "content": "hi"}}, {{"role": "assistant", "content": "hello"}}]
results = train_adapters({str(tiny_base_folder)!r}, [AdapterJob("a", [dialogue], Recipe(rank=2, epochs=1))], folder={str(tmp_path)!r})
generate({str(tiny_base_folder)!r}, [dialogue[:1]], adapters=results, max_new_tokens=1)
parts = {{"clusterlora." + part for part in ("config", "data", "methods", "planning", "stages", "stores", "wiring")}}
services = ("prefect", "mlflow", "sqlalchemy", "alembic", "pydantic")
loaded = {{name for name in sys.modules if name in parts or name.split(".")[0] in services}}
sys.exit(repr(sorted(loaded)) if loaded else 0)
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
