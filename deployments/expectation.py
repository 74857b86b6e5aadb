"""What a command that follows a study says once it is known: its clusters, and how long it will take.

The latter is said again when its gate was judged, or, where it has none, when the first adapters are trained."""

from functools import cached_property

from clusterlora.cli.child import in_child
from clusterlora.clustering.summary import sentence
from clusterlora.metadata import Workers
from clusterlora.planning.ladder import gated
from clusterlora.planning.study_state import StudyState, read_state
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
            lines += in_child(self._how_long)
        if not n_judged and "trained" not in self._told and any(attempt.state == "done" for attempt in studies.attempts(name)):
            self._told.add("trained")
            lines += in_child(self._how_long_without_gate)
        return tuple(lines)

    def _how_long(self) -> tuple[str, ...]:
        return sentences(self._state())

    def _how_long_without_gate(self) -> tuple[str, ...]:
        state = self._state()
        return () if gated(state) else sentences(state)

    def _state(self) -> StudyState:
        # With connections of its own: those of another process cannot be used.
        return read_state(self._study_name, stores_without_tracker(self._services))
