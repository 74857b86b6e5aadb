"""The import contracts of pyproject.toml hold, and every module is imported by another."""

from pathlib import Path

import grimp
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
