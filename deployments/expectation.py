"""What a command that follows a study says of how long it will take: once it was probed, and again when its gate was judged."""

from functools import cached_property

from clusterlora.metadata import Workers
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import sentences
from deployments.local_services import LocalServices
from deployments.study_results import stores_without_tracker


class Expectation:
    """The sentences about a study's duration, each time they have become better."""

    def __init__(self, study_name: str, services: LocalServices) -> None:
        self._study_name = study_name
        self._services = services
        self._n_judged: int | None = None

    @cached_property
    def _stores(self) -> Stores:
        return stores_without_tracker(self._services)

    def due_lines(self) -> tuple[str, ...]:
        """Return what is known now and was not at the last call; nothing most of the time."""
        studies, name = self._stores.studies, self._study_name
        if not any(name == study for study, *_ in studies.studies()) or studies.metadata(name, Workers) is None:
            return ()
        n_judged = len(studies.verdicts(name))
        if n_judged == self._n_judged:
            return ()
        self._n_judged = n_judged
        return sentences(read_state(name, self._stores))
