"""Prefect's and MLflow's pages in use: forms with choices and validation, a gate that awaits a decision, the champion's page."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from browser.chromium import Tab
from browser.prefect_pages import PrefectPages
from clusterlora.config import as_mapping
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import ComparisonSummary
from clusterlora.methods import METHODS
from clusterlora.planning.study_state import read_state
from clusterlora.settings import Study
from tests.fixtures.runs import runs_of, state_of, stores_here, wait_for

pytestmark = pytest.mark.timeout(900)


def test_the_models_of_a_study_are_found_in_the_pages_of_mlflow(finished: Study, site: dict[str, str], tab: Tab):
    tab.open(f"{site['MLFLOW_TRACKING_URI']}/#/models", until="document.querySelector('input[placeholder^=Search]')")
    # Whoever comes for the first time is told what is new.
    tab.click("document.querySelector('.du-bois-light-modal-close')")
    tab.write("document.querySelector('input[placeholder^=Search]')", finished.name)
    tab.press("Enter")
    name = f"{finished.name}-unified"
    model = f"[...document.querySelectorAll('[role=row]')].find(row => row.querySelector('a')?.innerText === '{name}')"
    tab.wait_until(f"{model} !== undefined")
    assert f"study: {finished.name}" in tab.value(f"{model}.innerText")
    tab.click(f"{model}.querySelector('a[href$=\"/versions/1\"]')")
    outcome = stores_here(site).studies.metadata(finished.name, ComparisonSummary)
    assert outcome is not None
    tab.wait_for_text(outcome.sentence)


def test_the_form_offers_choices_and_refuses_what_is_out_of_range(pages: PrefectPages):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("study/study")
        pages.form(deployment.id)
        assert pages.choices(["config", "Gate", "On Failure"]) == ["stop", "ask", "continue"]
        assert pages.choices(["config", "Recipe", "Schedule"]) == ["linear", "cosine", "constant"]
        assert pages.choices(["config", "Evaluation", "Headline"]) == list(METRICS)
        assert pages.choices(["config", "Methods"]) == list(METHODS)
        pages.fill(["config", "Recipe", "Rank"], "999")
        assert pages.submit(expect="999 is greater than the maximum of 256")
        assert not runs_of(Study(), name="study · ")


def launched_by_hand(pages: PrefectPages, finished: Study, study: Study) -> UUID:
    """Return the run that starts when the form of an earlier study's run is changed to these settings."""

    def submitted() -> bool | None:
        pages.copy_to_new_run(runs_of(finished, name="study · ")[0].id)
        pages.fill(["config", "Name"], study.name)
        pages.add(["config", "Methods"], "merge")
        pages.fill(["config", "Gate", "Mean Similarity"], "1")
        pages.choose(["config", "Gate", "On Failure"], "ask")
        return pages.submit(expect="scheduled") or None

    wait_for(submitted)
    pages.leave()
    return wait_for(lambda: next((run.id for run in runs_of(study, name="study · ")), None))


def agrees(asked: Any, decided: Any) -> bool:
    """Return whether all that was asked for is so; what the form leaves open was decided when the study was prepared."""
    if isinstance(asked, dict):
        return all(agrees(value, decided[name]) for name, value in asked.items())
    return asked is None or asked == decided


def test_a_copied_run_retries_a_refused_gate_and_then_continues_past_it(finished: Study, site: dict[str, str], pages: PrefectPages):
    """Another try is asked for first: it fails, too, and is asked about again."""
    strict = replace(finished.gate, mean_similarity=1.0, on_failure="ask")
    strict_study = replace(finished, name=f"{finished.name}-asked", methods=(*finished.methods, "merge"), gate=strict)
    run_id = launched_by_hand(pages, finished, strict_study)
    stores = stores_here(site)
    with get_client(sync_client=True) as client:

        def state() -> State[Any]:
            return state_of(client.read_flow_run(run_id))

        def waits(n_verdicts: int) -> None:
            wait_for(lambda: True if len(stores.studies.verdicts(strict_study.name)) == n_verdicts and state().is_paused() else None)

        wait_for(lambda: True if state().is_paused() or state().is_final() else None)
        assert state().is_paused(), state().message
        assert agrees(client.read_flow_run(run_id).parameters["config"], json.loads(json.dumps(as_mapping(strict_study))))
        # What the first study trained is there already, and not more than the gate needs was asked for.
        assert not [a for a in stores.studies.adapters(strict_study.name) if a.name.startswith(("cluster-01", "persona", "merged"))]
        waits(1)
        pages.answer(run_id, "retry", {}, expect="Validation failed")
        assert state().is_paused(), "a retry that changes nothing is not worth a run"
        pages.answer(run_id, "retry", {"Retry with this many epochs": "2", "Your name": "ann"})
        pages.leave()
        waits(2)
        pages.answer(run_id, "continue", {"Your name": "bob"})
        pages.leave()
        wait_for(lambda: True if state().is_final() else None)
        assert state().is_completed(), state().message
        assert state().name == "Completed"
    assert not runs_of(strict_study, name="evaluate · baseline")
    assert [a.name for a in stores.studies.adapters(strict_study.name) if a.name.startswith("merged")] == ["merged-00", "merged-01"]
    assert stores.studies.status(strict_study.name) == "finished"
    assert [(one.choice, one.by) for one in read_state(strict_study.name, stores).decisions] == [("retry", "ann"), ("continue", "bob")]
    assert [verdict.rung for verdict in stores.studies.verdicts(strict_study.name)] == ["own", "asked-1"]
