"""The tracker of an installation without MLflow: it records nothing and has nothing to download."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterlora.errors import BadSettings
from clusterlora.ports.adapter_store import AdapterSet
from clusterlora.ports.model_registry import About, ModelVersion
from clusterlora.ports.tracker import AdapterRun, OpenRun, TrialRun
from clusterlora.values import Dataset, Verdict


@dataclass(slots=True)
class NullRun:
    """An AdapterRun that records nothing."""

    run_id: str = "untracked"

    def curve(self, name: str, points: Sequence[tuple[int, float]]) -> None: ...

    def metrics(self, values: Mapping[str, float]) -> None: ...

    def tag(self, values: Mapping[str, str]) -> None: ...

    def artifacts(self, what: Path, path: str) -> str:  # noqa: ARG002
        """Return a URI under which no tracker has anything."""
        return f"untracked:/{path}"


class NullTracker:
    """A Tracker without a server: runs record nothing, and there is no registry."""

    def start_study(
        self,
        study: str,
        *,
        params: Mapping[str, Any],  # noqa: ARG002
        tags: Mapping[str, str],  # noqa: ARG002
        dataset: Dataset,  # noqa: ARG002
        running: bool = True,  # noqa: ARG002
    ) -> str:
        return study

    @contextmanager
    def adapter_run(
        self,
        study: str,  # noqa: ARG002
        *,
        name: str,  # noqa: ARG002
        params: Mapping[str, Any],  # noqa: ARG002
        tags: Mapping[str, str],  # noqa: ARG002
    ) -> Generator[AdapterRun]:
        yield NullRun()

    def log_verdict(self, study: str, verdict: Verdict) -> None: ...

    def log_trials(self, study: str, trials: Sequence[TrialRun]) -> None: ...

    def log_results(self, study: str, *, folder: Path, metrics: Mapping[str, float], description: str = "") -> None: ...

    def page(self, study: str) -> str | None:  # noqa: ARG002
        return None

    def link(self, study: str, name: str, address: str) -> None: ...

    def register_router(
        self,
        study: str,  # noqa: ARG002
        *,
        routes: Mapping[str, Any],  # noqa: ARG002
        adapters: AdapterSet,  # noqa: ARG002
        champion: bool,  # noqa: ARG002
        model: str | None = None,  # noqa: ARG002
        about: About | None = None,  # noqa: ARG002
        root: str | None = None,  # noqa: ARG002
    ) -> str | None:
        return None

    def champion(self, name: str) -> tuple[str, str] | None:  # noqa: ARG002
        return None

    def end_study(
        self, study: str, *, status: str, seconds: Mapping[str, float] | None = None, costs: Mapping[str, float] | None = None
    ) -> None: ...

    @property
    def keeps_adapters(self) -> bool:
        return False

    def download(self, uri: str, folder: Path) -> bool:  # noqa: ARG002
        return False

    def discard(self, uri: str) -> None: ...

    def upload(self, study: str, what: Path, path: str, *, run_id: str | None) -> tuple[str, str]:  # noqa: ARG002
        raise BadSettings(f"{what} cannot be uploaded: nothing is tracked; set MLFLOW_TRACKING_URI")

    def open_runs(self, study: str) -> tuple[OpenRun, ...]:  # noqa: ARG002
        return ()

    @property
    def address(self) -> str | None:
        return None

    def run_ids(self, study: str) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    def has_run(self, run_id: str) -> bool:  # noqa: ARG002
        return False

    def forget_studies(self, studies: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def kill_run(self, run_id: str) -> None: ...

    def versions(self, study: str) -> tuple[ModelVersion, ...]:  # noqa: ARG002
        return ()

    def drop_version(self, name: str, version: str) -> None: ...
