"""What Prefect says of studies: cancelled, deleted, retried or suspended on its pages, whatever the database has recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterlora.errors import counted
from clusterlora.planning.ladder import awaits_decision
from clusterlora.planning.study_state import read_state
from clusterlora.settings import Study
from deployments import prefect_rest
from deployments.local_services import LocalServices
from deployments.prefect_client import parent_name
from deployments.study_results import stores_without_tracker

MOST_RUNS = 200
"""Prefect's limit on the number of objects that one request returns."""
_OPEN = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
_MOST_NAMED = 5
_WITH_LOGIN = 'eval "$(clusterlora up --exports)" && '


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a study that only Prefect knows, and the command that helps."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"


@dataclass(frozen=True, slots=True)
class StudyInPrefect:
    """The status of a study, and what is to be said beside it."""

    status: str
    notes: tuple[Note, ...] = ()


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
    parents = {_study_of(run): run for run in _runs({"flows": {"name": {"any_": ["study"]}}}, environment)[::-1]}
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
            return StudyInPrefect("scheduled" if recorded in ("", "running") else f"scheduled again, after it was {recorded}")
        case "PENDING" | "RUNNING":
            return StudyInPrefect("running")
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
    ours = {"tags": {"all_": [f"study:{name}"]}, "state": {"type": {"any_": [kind for kind in _OPEN if kind != "CANCELLING"]}}}
    left = [run for run in _runs({"flow_runs": ours}, environment) if run["name"] != parent_name(name)]
    if not left:
        return ()
    named = ", ".join(str(run["name"]) for run in left[:_MOST_NAMED]) + (", ..." if len(left) > _MOST_NAMED else "")
    ids = " ".join(str(run["id"]) for run in left)
    fix = f"cancel with: {_WITH_LOGIN}for run in {ids}; do prefect flow-run cancel $run; done"
    return (Note(f"{counted(len(left), 'run')} of it not yet ended ({named})", fix),)


def _runs(query: Mapping[str, Any], environment: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Return the latest runs that a query finds, latest first."""
    body = {**query, "sort": "EXPECTED_START_TIME_DESC", "limit": MOST_RUNS}
    return prefect_rest.request("flow_runs/filter", body, environment=environment, tries=1)


def _study_of(run: Mapping[str, Any]) -> str:
    """Return the study that a run of the flow `study` is of; its own parameter where it has not begun and has no tag."""
    tagged = next((str(tag).removeprefix("study:") for tag in run["tags"] if str(tag).startswith("study:")), None)
    given = run["parameters"]
    name = str(given.get("config", {}).get("name", Study().name))
    return tagged or str((given.get("preset") if name == Study().name else None) or name)
