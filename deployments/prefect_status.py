"""What Prefect says of studies: cancelled, deleted, retried or suspended on its pages, whatever the database has recorded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clusterlora.errors import counted
from clusterlora.planning.ladder import awaits_decision
from clusterlora.planning.study_state import read_state
from clusterlora.settings import Study
from deployments.local_services import LocalServices
from deployments.prefect_client import parent_name
from deployments.study_results import stores_without_tracker
from deployments.waiting_runs import OPEN_STATES, WITH_LOGIN, Note, latest_runs, study_runs, why_waiting

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class StudyInPrefect:
    """The status of a study, and what is to be said beside it."""

    status: str
    notes: tuple[Note, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether nothing of the study goes on, although the database says that it runs."""
        return self.status in ("being cancelled", "cancelled", "failed") and bool(self.notes)


def local_studies(recorded: Mapping[str, str], services: LocalServices) -> dict[str, StudyInPrefect]:
    """Return what the local Prefect server says of these studies; arguments and errors as `studies_in_prefect`."""
    stores = stores_without_tracker(services)

    def decided_by(name: str) -> str | None:
        state = read_state(name, stores)
        return state.decisions[-1].by if state.decisions and not awaits_decision(state) else None

    return studies_in_prefect(recorded, services.environment(), decided_by=decided_by)


def studies_in_prefect(
    recorded: Mapping[str, str], environment: Mapping[str, str], *, decided_by: Callable[[str], str | None]
) -> dict[str, StudyInPrefect]:
    """Return what Prefect says of these studies, and of no other, one value each.

    Args:
        recorded: the status in the database by study; empty for a study that it does not know.
        environment: address and login of the server.
        decided_by: returns who decided on the gate of a suspended study; None where a decision is still to be made.

    Raises:
        ServiceDown: the server does not answer.
    """
    parents: dict[str, Mapping[str, Any]] = {}
    for run in latest_runs({"flows": {"name": {"any_": ["study"]}}}, environment):
        if (name := _study_of(run)) in recorded:
            parents.setdefault(name, run)
        if len(parents) == len(recorded):
            break
    return {name: _seen(name, status, parents.get(name), environment, decided_by) for name, status in recorded.items()}


def _seen(
    name: str, recorded: str, parent: Mapping[str, Any] | None, environment: Mapping[str, str], decided_by: Callable[[str], str | None]
) -> StudyInPrefect:
    again = f"continue it with: clusterlora study run --name {name}"
    if parent is None:
        if recorded != "running":
            return StudyInPrefect(recorded)
        gone = Note("Prefect has no run of it, so its run was deleted or its steps are run by hand", again)
        return StudyInPrefect("running by hand, or deleted in Prefect", (gone, *_left_over(name, environment)))
    kind, message = str(parent["state_type"]), str((parent.get("state") or {}).get("message") or "no reason given")
    match kind:
        case "CANCELLED":
            status, notes = "cancelled", (Note("its run was cancelled in Prefect", again),)
        case "CANCELLING":
            return StudyInPrefect("being cancelled", (Note("its run is being cancelled in Prefect", f"then {again}"),))
        case "FAILED" | "CRASHED":
            status, notes = "failed", (Note(f"its run {kind.lower()} ({message:.200})", again),)
        case "PAUSED":
            return _suspended(name, decided_by(name))
        case "SCHEDULED":
            status = "scheduled" if recorded in ("", "running") else f"scheduled again, after it was {recorded}"
            return StudyInPrefect(status, why_waiting(name, environment, parent=parent))
        case "PENDING" | "RUNNING":
            return StudyInPrefect("running", why_waiting(name, environment, parent=parent))
        case _:
            return StudyInPrefect(recorded)
    return StudyInPrefect(status, (*notes, *_left_over(name, environment)))


def _suspended(name: str, decided_by: str | None) -> StudyInPrefect:
    if decided_by is None:
        fix = f"decide: clusterlora study decide {name} --go-on (or --stop, --retry)"
        return StudyInPrefect("waits for a decision", (Note("its gate refused, and its run is suspended until somebody decides", fix),))
    what = f"the decision of {decided_by or 'nobody named'} is recorded, but its run in Prefect has not got it"
    return StudyInPrefect("waits for a recorded decision", (Note(what, f"deliver it with: clusterlora study run --name {name}"),))


def _left_over(name: str, environment: Mapping[str, str]) -> tuple[Note, ...]:
    """Return a note on the runs that go on although the study's own run does not."""
    states = [kind for kind in OPEN_STATES if kind != "CANCELLING"]
    left = [run for run in study_runs(name, environment, states=states) if run["name"] != parent_name(name)]
    if not left:
        return ()
    named = ", ".join(str(run["name"]) for run in left[:_MOST_NAMED]) + (", ..." if len(left) > _MOST_NAMED else "")
    ids = " ".join(str(run["id"]) for run in left)
    fix = f"cancel with: {WITH_LOGIN}for run in {ids}; do prefect flow-run cancel $run; done"
    return (Note(f"{counted(len(left), 'run')} of it not yet ended ({named})", fix),)


def _study_of(run: Mapping[str, Any]) -> str:
    """Return the study that a run of the flow `study` is of; its own parameter where it has not begun and has no tag."""
    tagged = next((str(tag).removeprefix("study:") for tag in run["tags"] if str(tag).startswith("study:")), None)
    given = run["parameters"]
    name = str(given.get("config", {}).get("name", Study().name))
    return tagged or str((given.get("preset") if name == Study().name else None) or name)
