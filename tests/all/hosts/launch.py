"""Launches a study and waits for it: `python launch.py CONFIG.json`. Prints its final state and the content of the database."""

import json
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment

from clusterlora.metadata import ComparisonSummary
from clusterlora.wiring import from_environment

config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
run: Any = run_deployment("study/study", parameters={"config": config}, poll_interval=1)
name = config["name"]
stores = from_environment()
answers = [[a.composition_key, a.persona_id, a.item_id, a.split, a.text, list(a.scores)] for a in stores.studies.answers(name)]
with get_client(sync_client=True) as client:
    workers = {r.name: [r.state_name, str(r.infrastructure_pid)] for r in client.read_flow_runs()}
outcome = stores.studies.metadata(name, ComparisonSummary)
ended = {
    "state": run.state.name,
    "message": run.state.message,
    "adapters": {a.name: a.key for a in stores.studies.adapters(name)},
    "answers": answers,
    "conclusion": outcome.sentence if outcome else None,
    "attempts": [[a.group, a.number, a.state, a.detail] for a in stores.studies.attempts(name)],
    "runs": workers,
}
sys.stdout.write("\nENDED " + json.dumps(ended) + "\n")
