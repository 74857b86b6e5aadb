"""The experiment tracker that the steps report to when they train, judge and compare."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clusterlora.ports.model_registry import ModelRegistry
from clusterlora.values import Dataset, Verdict


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A tracker's run that has not ended; the study's parent run has no training group and no attempt."""

    run_id: str
    name: str
    group: str | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class TrialRun:
    """A recipe that a method tries: `loss` is its val loss in this round, on so many people; None where training diverged."""

    name: str
    params: Mapping[str, Any]
    method: str
    round: int
    n_personas: int
    loss: float | None


class AdapterRun(Protocol):
    """An open child run."""

    run_id: str

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Log many points of one metric in one request."""
        ...

    def metrics(self, values: Mapping[str, float]) -> None: ...

    def tag(self, values: Mapping[str, str]) -> None: ...

    def artifacts(self, what: Path, path: str) -> str:
        """Upload a folder, or a file whose name the path ends with; return its URI."""
        ...


class StudyTracker(Protocol):
    """The runs of a study in the experiment tracker (MLflow)."""

    def start_study(self, study: str, *, params: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset, running: bool = True) -> str:
        """Create or find the study's experiment and parent run; return the parent run's id.

        The parent run is then running; without `running` one that was there stays in its status, and one that is made has ended.
        """
        ...

    def log_verdict(self, study: str, verdict: Verdict) -> None: ...

    def log_trials(self, study: str, trials: Sequence[TrialRun]) -> None:
        """Log a round of trials, each in a child run of its own, which all its rounds share; logging it again changes nothing."""
        ...

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float], description: str = "") -> None:
        """Log everything under `folder` (tables, figures) and the summary metrics to the parent run, and describe the experiment."""
        ...

    def page(self, study: str) -> str | None:
        """Return the address of the study's parent run in the tracker's UI, if it has one."""
        ...

    def link(self, study: str, name: str, address: str) -> None:
        """Set the address of another system's page as a tag of the parent run."""
        ...

    def end_study(
        self, study: str, *, status: str, seconds: Mapping[str, float] | None = None, costs: Mapping[str, float] | None = None
    ) -> None:
        """End the study's parent run, with the seconds of each phase, and what it all cost, as metrics."""
        ...

    def open_runs(self, study: str) -> tuple["OpenRun", ...]:
        """Return the study's runs that have not ended, its parent run included."""
        ...

    def kill_run(self, run_id: str) -> None:
        """End a run whose process no longer exists."""
        ...

    @property
    def address(self) -> str | None:
        """The server's address, with which `mlflow gc` finds artifacts; None where nothing is tracked."""
        ...

    def run_ids(self, study: str) -> frozenset[str]:
        """Return the runs of a study."""
        ...

    def has_run(self, run_id: str) -> bool:
        """Return whether there is such a run, and it is not deleted."""
        ...

    def forget_studies(self, studies: Sequence[str]) -> tuple[str, ...]:
        """Remove studies' runs, their artifacts, and the versions that they registered; return experiments that are only marked as deleted.

        A champion among these hands its alias back to the last one before it that is left. The studies can be started again.
        """
        ...


class AdapterTracker(Protocol):
    """The runs and artifacts of adapters in the experiment tracker."""

    def adapter_run(
        self, study: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> AbstractContextManager["AdapterRun"]:
        """Open a child run for one adapter; it ends FINISHED, or FAILED when the block raises."""
        ...

    @property
    def keeps_adapters(self) -> bool:
        """Whether any process can download the adapters that were uploaded."""
        ...

    def download(self, uri: str, folder: Path) -> bool:
        """Fill an existing folder with the folder, or put the file into it, that was uploaded; false: nothing is under this URI."""
        ...

    def discard(self, uri: str) -> None:
        """Delete what was uploaded under this URI; nothing happens when it is not there."""
        ...

    def upload(self, study: str, what: Path, path: str, *, run_id: str | None) -> tuple[str, str]:
        """Upload a folder or a file again, to that run if it exists, else to the study's; return (run id, URI)."""
        ...


class Tracker(StudyTracker, AdapterTracker, ModelRegistry, Protocol):
    """Experiment tracker and model registry together: an MLflow server is both."""
