"""All stores of a study together, as a step takes them."""

from dataclasses import dataclass
from pathlib import Path

from clusterlora.ports.adapter_store import AdapterStore
from clusterlora.ports.study_store import StudyStore
from clusterlora.ports.tracker import Tracker
from clusterlora.values import AdapterSpec


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything the stages read from and write to. `home` is the folder of the studies' results."""

    studies: StudyStore
    adapters: AdapterStore
    tracker: Tracker
    home: Path

    def folder(self, study: str) -> Path:
        """Return the folder where people find a study's results, logs and adapters."""
        return self.home / study

    def exposed(self, study: str, spec: AdapterSpec) -> Path:
        """Return the folder where people find an adapter: models/lora_clusters/cluster_00, models/unified."""
        return self.folder(study) / "models" / spec.folder / spec.name.replace("-", "_")
