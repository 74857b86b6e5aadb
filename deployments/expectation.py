"""What a command that follows a study says once it is known: its clusters, and how long it will take, again when its gate was judged."""

from functools import cached_property

from clusterlora.cli.child import in_child
from clusterlora.clustering.summary import sentence
from clusterlora.metadata import Workers
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import sentences
from deployments.local_services import LocalServices
from deployments.study_results import stores_without_tracker


class Expectation:
    """The sentences about a study's clusters, and about its duration, each time they have become better."""

    def __init__(self, study_name: str, services: LocalServices) -> None:
        self._study_name = study_name
        self._services = services
        self._told: set[str | int] = set()

    @cached_property
    def _stores(self) -> Stores:
        return stores_without_tracker(self._services)

    def due_lines(self) -> tuple[str, ...]:
        """Return what is known now and was not at the last call; nothing most of the time."""
        studies, name = self._stores.studies, self._study_name
        if not any(name == study for study, *_ in studies.studies()):
            return ()
        lines: list[str] = []
        if "clusters" not in self._told and (clustering := studies.clustering(name)) is not None:
            self._told.add("clusters")
            lines.append(sentence(clustering))
        n_judged = len(studies.verdicts(name))
        if n_judged not in self._told and studies.metadata(name, Workers) is not None:
            self._told.add(n_judged)
            try:
                lines += in_child(self._how_long, doing="estimating how long the study takes")
            except (RuntimeError, MemoryError, OSError) as error:
                # The study runs on all the same.
                lines.append(f"how long it will take is not known: {error}")
        return tuple(lines)

    def _how_long(self) -> tuple[str, ...]:
        # With connections of its own: those of another process cannot be used.
        return sentences(read_state(self._study_name, stores_without_tracker(self._services)))
