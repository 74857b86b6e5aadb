"""The command of every work pool: `python -m deployments.run` runs the flow of the run's deployment if it is one of FLOWS.

A pool's template has no variables, so a run cannot choose its command, folder, environment or image. Its flow's entrypoint is read from the
worker's server, and nothing but FLOWS is started. With the services of `clusterlora up`, fork_server.py forks the run.
"""

import os
import sys

from clusterlora.models.device import limit_threads
from deployments import prefect_rest

HEARTBEAT_SECONDS = 30
"""Interval of a run's heartbeats, on which the automations rely."""

FLOWS = (
    "flows.study.study",
    "flows.gate.gate",
    "flows.train.train",
    "flows.evaluate.evaluate",
    "flows.compare.compare",
    "flows.assign.assign",
    "flows.merge.merge",
    "flows.permute.permute",
    "flows.refresh.refresh",
    "flows.privacy.privacy",
    "flows.watch.watch",
    "flows.forget.forget",
)

ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "clusterlora",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables of every run, wherever its worker was started."""


def main() -> None:
    """Replace this process with the run that the worker has taken."""
    entrypoint = entrypoint_of(os.environ["PREFECT__FLOW_RUN_ID"])
    if entrypoint not in FLOWS:
        sys.exit(f"error: {entrypoint!r} is not a flow of this project; its flows are {', '.join(FLOWS)}")
    os.environ.update(ENVIRONMENT)
    # Where no command of ours started the worker, as in a container.
    limit_threads()
    # The flow is in the command line, by which supervise.py recognises the process of a run.
    os.execv(sys.executable, [sys.executable, "-m", "deployments.fork_server", "prefect.flow_engine", entrypoint])


def entrypoint_of(flow_run_id: str) -> str | None:
    """Return the entrypoint of a run's deployment; None for a run without a deployment."""
    deployment_id = prefect_rest.request(f"flow_runs/{flow_run_id}")["deployment_id"]
    return prefect_rest.request(f"deployments/{deployment_id}")["entrypoint"] if deployment_id else None


if __name__ == "__main__":
    main()
