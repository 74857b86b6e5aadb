"""The planted clusters of a synthetic population. Modules that cluster, plan or train must not import this one."""

import json
from dataclasses import dataclass
from pathlib import Path

from clusterlora.durable import write_durably


@dataclass(frozen=True, slots=True)
class Truth:
    """The planted cluster of each persona, in the order of the personas."""

    clusters: tuple[tuple[str, int], ...]

    @property
    def cluster_by_persona(self) -> dict[str, int]:
        """The planted cluster of each persona id."""
        return dict(self.clusters)


def write_truth(truth: Truth, path: Path) -> None:
    """Write `{"cluster_by_persona": {...}}` as JSON."""
    write_durably(path, (json.dumps({"cluster_by_persona": truth.cluster_by_persona}, indent=1) + "\n").encode())
