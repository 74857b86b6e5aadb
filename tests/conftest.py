"""Test tiers by cost, the session that all workers share, and an environment without a developer's or another test's settings.

`fast` needs no server, no browser and no whole study; `whole` needs real Prefect and MLflow servers, or seconds; `all` needs more: other
hosts, a browser, PostgreSQL, broken services, minutes. A test's tier is its folder's, unless it or its parameter is marked with a
dearer one. What only a GPU can show, in `tests/gpu`, belongs to none of them.
"""

import atexit
import gc
import logging
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# They import what is dear only when a fixture asks: the process that hands out the tests runs none of them.
pytest_plugins = [
    "tests.fixtures.shapes",  # first: whatever is imported after it is checked by it
    "tests.fixtures.order",
    "tests.fixtures.rounding",
    "tests.fixtures.session",
    "tests.fixtures.servers",
    "tests.fixtures.prefect",
    "tests.fixtures.models",
    "tests.fixtures.registered",
    "tests.fixtures.studies",
]

TESTS = Path(__file__).parent
TIERS = ("fast", "whole", "all")
NUMERIC = "numeric and "
"""How `-m` of `make test-numeric` begins."""
SERVERS = {"chromium", "mlflow_server", "postgres_server", "prefect_server"}
"""Fixtures that start one."""

# Folders that tests make are homes of the program, which refuses one that others may write to; a developer's umask may leave that open.
os.umask(0o022)
# Threads of one product wait for each other by spinning: beside other workers, two on two cores take several times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton reads this when it is first imported: without an NVIDIA driver its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says how busy the machine is, not whether the code is right.
# Every run tries the same examples, so that none fails by luck; `make fuzz` searches for others.
hypothesis_settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25, derandomize=True
)
hypothesis_settings.register_profile("long", hypothesis_settings.get_profile("any-machine"), max_examples=4_000, derandomize=False)
hypothesis_settings.load_profile("any-machine")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without a test of what `-m` names, because their imports take seconds in every worker."""
    wanted = str(config.option.markexpr)
    tiers = wanted.removeprefix(NUMERIC).strip("()").split(" or ")
    if not set(tiers) <= set(TIERS) or collection_path.suffix != ".py" or not collection_path.is_relative_to(TESTS):
        return None
    text = collection_path.read_text(encoding="utf-8")
    if wanted.startswith(NUMERIC) and "mark.numeric" not in text:
        return True
    return None if _folder(collection_path) in tiers or any(f"mark.{tier}" in text for tier in tiers) else True


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while a million objects are imported, and look at none of them again: they stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # Libraries in C count what is left when the process ends; before that, pytest's own collections would take seconds.
        atexit.register(gc.unfreeze)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = _folder(item.path)
        *cheaper, tier = [None, *(tier for tier in TIERS if item.get_closest_marker(tier))]
        # A parameter's tier comes in place of its test's.
        item.own_markers = [mark for mark in item.own_markers if mark.name not in cheaper]
        if tier is None:
            item.add_marker(folder)
        elif folder in TIERS and TIERS.index(tier) < TIERS.index(folder):
            raise pytest.UsageError(f"{item.nodeid} is marked {tier}, a cheaper tier than its folder's; move it to tests/{tier}")
        if item.get_closest_marker("fast") and SERVERS & set(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid} starts a server; mark it whole")


def _folder(file: Path) -> str:
    """Return the name of the folder in `tests` that contains a file."""
    return file.relative_to(TESTS).parts[0]


@pytest.fixture(autouse=True)
def _no_addresses_of_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove addresses of a developer's stores and servers from the environment."""
    for name in ("CLUSTERLORA_DATABASE_URL", "CLUSTERLORA_HOME", "CLUSTERLORA_STACK_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process not wait until a disk has what was written; what a power cut leaves is tested in processes of their own."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture(autouse=True)
def _few_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure how stable clusters are by a sixth of the partitions: most studies of the tests are there for something else."""
    monkeypatch.setattr("clusterlora.clustering.cluster._RERUNS", 3)


@pytest.fixture(autouse=True)
def _audible_loggers() -> None:
    """Let our loggers propagate to the root, where caplog listens, after Prefect's logging setup changed them in this process."""
    for name in ("clusterlora", *(n for n in logging.root.manager.loggerDict if n.startswith("clusterlora."))):
        logger = logging.getLogger(name)
        logger.propagate, logger.disabled = True, False
