"""The command of every work pool: `python -m deployments.run` runs the flow that the run's deployment names, if it is one of ours.

A pool's template leaves a run nothing to choose: no command, no folder, no environment, no image. What differs between deployments is
asked here, of the server that the worker serves, and what starts is one of FLOWS or nothing. On the stack of `clusterlora up` the run is
forked at once (warm.py).
"""

import os
import sys

from deployments.api import ask

HEARTBEAT_SECONDS = 30
"""How often a run says that it lives; the automations count on it."""

FLOWS = (
    "flows.study.study",
    "flows.gate.gate",
    "flows.train.train",
    "flows.evaluate.evaluate",
    "flows.compare.compare",
    "flows.assign.assign",
    "flows.merge.merge",
)

ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "clusterlora",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What every run has in common, wherever its worker was started."""


def main() -> None:
    """Become the run that the worker has taken."""
    entrypoint = entrypoint_of(os.environ["PREFECT__FLOW_RUN_ID"])
    if entrypoint not in FLOWS:
        sys.exit(f"error: {entrypoint!r} is none of the flows that this project deploys: {', '.join(FLOWS)}")
    os.environ.update(ENVIRONMENT)
    # The flow stands in the command line, where whoever looks for the run's process finds it.
    os.execv(sys.executable, [sys.executable, "-m", "deployments.warm", "prefect.flow_engine", entrypoint])


def entrypoint_of(flow_run_id: str) -> str | None:
    """Return the flow that a run's deployment names; None for a run without a deployment."""
    deployment_id = ask(f"flow_runs/{flow_run_id}")["deployment_id"]
    return ask(f"deployments/{deployment_id}")["entrypoint"] if deployment_id else None


if __name__ == "__main__":
    main()
