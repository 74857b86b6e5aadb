"""Composition root: creates the stores from addresses in the environment. Used by tasks and by the command line."""

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clusterlora.ports.stores import Stores
from clusterlora.private_files import make_home
from clusterlora.stores.departures import refuse_unforgotten

if TYPE_CHECKING:
    from clusterlora.stores.mlflow_models import Registry


def from_environment(environment: Mapping[str, str] = os.environ, *, before_forgetting: bool = False) -> Stores:
    """Return the stores at the addresses in the environment.

    CLUSTERLORA_HOME (results; ./studies), CLUSTERLORA_DATABASE_URL (a SQLite file there), MLFLOW_TRACKING_URI (none: nothing is tracked).
    Adapters are kept in a folder here; one that was trained elsewhere is brought from where MLflow keeps it, and checked.

    Args:
        before_forgetting: also where a restored backup still has people who left since.

    Raises:
        BadSettings: it has, or the folder of the results belongs to another user, may be written to by others, or is a file.
    """
    from clusterlora.adapters.stored import keep_recorded
    from clusterlora.adapters.weights import refuse_other_weights, sha256_in
    from clusterlora.stores.files import FileAdapterStore
    from clusterlora.stores.sql import SqlStudyStore

    home = results_home(environment)
    make_home(home)
    if not before_forgetting:
        refuse_unforgotten(home)
    studies = SqlStudyStore(environment.get("CLUSTERLORA_DATABASE_URL") or f"sqlite:///{home / 'clusterlora.db'}")
    uri = environment.get("MLFLOW_TRACKING_URI")
    if not uri:
        from clusterlora.stores.null_tracker import NullTracker

        return Stores(studies, FileAdapterStore(home / ".adapters"), NullTracker(), home)

    from clusterlora.stores.mlflow_tracker import MlflowTracker

    tracker = MlflowTracker(uri, outbox=home / ".outbox")

    def fetch(key: str, folder: Path) -> bool:
        adapter = studies.adapter(key)
        if adapter is None or adapter.uri is None or not tracker.download(adapter.uri, folder):
            return False
        refuse_other_weights(key, adapter.weights_sha256, sha256_in(folder, key))
        keep_recorded(folder, studies)
        return True

    return Stores(studies, FileAdapterStore(home / ".adapters", fetch), tracker, home)


def registry_from_environment(environment: Mapping[str, str] = os.environ) -> "Registry":
    """Return the model registry at MLFLOW_TRACKING_URI.

    Raises:
        BadSettings: the variable is not set, or a restored backup still has people who left since.
    """
    from clusterlora.stores.mlflow_models import registry_at

    refuse_unforgotten(results_home(environment))
    return registry_at(environment.get("MLFLOW_TRACKING_URI"))


def results_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the results: CLUSTERLORA_HOME, else ./studies; set to nothing is as not set."""
    return Path(os.path.realpath(environment.get("CLUSTERLORA_HOME") or "studies"))


def forget_what_can_be_read_again() -> None:
    """Drop the data set and the plans that this process keeps of studies: what waits for hours for other processes needs none of them."""
    from clusterlora.planning.trials import forget_steps
    from clusterlora.planning.work_plan import forget_plans
    from clusterlora.stores.sql import forget_dataset

    forget_steps()
    forget_plans()
    forget_dataset()
    return_freed_memory()


def return_freed_memory() -> None:
    """Give back to the system what the C library keeps of freed memory."""
    with suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def services_from_environment(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the servers of this machine, CLUSTERLORA_STACK_HOME; None where nobody says."""
    folder = environment.get("CLUSTERLORA_STACK_HOME")
    return Path(folder) if folder else None


__all__ = [
    "Stores",
    "forget_what_can_be_read_again",
    "from_environment",
    "registry_from_environment",
    "results_home",
    "return_freed_memory",
    "services_from_environment",
]
