"""The composition root: addresses in the environment become stores. Used by the tasks and by the command line."""

import os
from collections.abc import Mapping
from pathlib import Path

from clusterlora.ports import Stores


def from_environment(environment: Mapping[str, str] = os.environ) -> Stores:
    """Return the stores that the environment names.

    CLUSTERLORA_HOME (results; ./studies), CLUSTERLORA_DATABASE_URL (a SQLite file there), MLFLOW_TRACKING_URI (none: nothing is tracked).
    Adapters are kept in a folder here; one that was trained elsewhere is brought from where MLflow keeps it.
    """
    from clusterlora.stores.files import FileAdapterStore
    from clusterlora.stores.sql import SqlStudyStore

    home = Path(environment.get("CLUSTERLORA_HOME", "studies")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    studies = SqlStudyStore(environment.get("CLUSTERLORA_DATABASE_URL", f"sqlite:///{home / 'clusterlora.db'}"))
    uri = environment.get("MLFLOW_TRACKING_URI")
    if not uri:
        from clusterlora.stores.memory import MemoryTracker

        return Stores(studies, FileAdapterStore(home / ".adapters"), MemoryTracker(), home)

    from clusterlora.stores.mlflow_tracker import MlflowTracker

    tracker = MlflowTracker(uri)

    def fetch(key: str, folder: Path) -> bool:
        adapter = studies.adapter(key)
        return adapter is not None and adapter.uri is not None and tracker.download(adapter.uri, folder)

    return Stores(studies, FileAdapterStore(home / ".adapters", fetch), tracker, home)


__all__ = ["Stores", "from_environment"]
