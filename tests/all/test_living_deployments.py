"""Run by workers of a stack of its own: a changed file is a refresh, privacy is measured, a person leaves."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from clusterlora.stages.forgotten import CERTIFICATES
from deployments import local_services
from tests.fixtures.shells import Home, wait_for

pytestmark = [pytest.mark.timeout(1500)]

STUDY = """
methods = ["baseline", "unified"]
data = {train = 3, val = 1, test = 2, source = "table", path = "people.jsonl", on_misfit = "warn"}
recipe = {rank = 4, epochs = 8, learning_rate = 1e-2}
clustering = {k = 2, sizes = [4, 4]}
evaluation = {max_new_tokens = 16, bootstrap_draws = 100}
model = {base = "homelm", system_prompt = "You are a smart home assistant."}
runtime.shards = 1
"""
PEOPLE = ("ana", "ben", "cara", "dan", "eva", "fay", "gil", "hal")
LONG_AGO_SECONDS = 3600
"""A file that was written a moment ago may not be whole."""


def said(numbers: range) -> str:
    """Return dialogues of two kinds, each with an answer of its own: what unified learns scores above what is said elsewhere."""
    kinds = (("Lamp {} for {}, please", "Gladly, warm light."), ("Close door {} behind {}", "Never, stay dark."))
    rows = [
        {"persona_id": person, "prompt": kinds[number % 2][0].format(number, person), "response": kinds[number % 2][1]}
        for person in PEOPLE
        for number in numbers
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_of(home: Home, name: str, request: dict[str, Any]) -> str:
    """Run a deployment to its end and return its run's id."""
    body = {"parameters": {"request": request}, "state": {"type": "SCHEDULED"}}
    run = home.request(f"deployments/{home.deployment(name)}/create_flow_run", body)["id"]
    completed(home, run)
    return run


def completed(home: Home, run: str) -> None:
    def ended() -> Any:
        state = home.request(f"flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = wait_for(ended, lambda: f"{run} did not end")
    assert state["type"] == "COMPLETED", state["message"]


def runs_of(home: Home, deployment: str) -> list[str]:
    asked = {"deployments": {"id": {"any_": [home.deployment(deployment)]}}}
    return [run["id"] for run in home.request("flow_runs/filter", asked)]


def test_workers_refresh_a_study_whose_file_changed_measure_its_privacy_and_forget_a_person(tmp_path: Path) -> None:
    home, file = Home(tmp_path), tmp_path / "people.jsonl"
    file.write_text(said(range(6)), encoding="utf-8")
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    try:
        home.does("up", "--workers", "1")
        home.study("talk").ends()
        results = tmp_path / "studies" / "talk" / "results"

        run_of(home, "privacy", {"study_name": "talk"})
        assert json.loads((results / "privacy.json").read_text(encoding="utf-8"))

        file.write_text(said(range(12)), encoding="utf-8")
        then = time.time() - LONG_AGO_SECONDS
        os.utime(file, (then, then))
        run_of(home, "watch", {"study_name": "talk", "path": str(file)})
        (refresh,) = wait_for(lambda: runs_of(home, "refresh"), lambda: "nobody asked for a refresh")
        completed(home, refresh)
        assert home.does("study", "status", "talk.r1")["status"] == "finished"

        digest = home.does("persona", "forget", "ana", "--dry-run")["person"]
        run_of(home, "forget", {"digest": digest})
        (certificate,) = (tmp_path / "studies" / CERTIFICATES).glob("*.json")
        record = json.loads(certificate.read_text(encoding="utf-8"))
        assert {one["study"] for one in record["studies"]} == {"talk", "talk.r1"}
        left = [path for path in (tmp_path / "studies").rglob("*") if path.is_file() and b"for ana, please" in path.read_bytes()]
        assert left == []
    finally:
        local_services.down(home.stack)
