"""Applies work pools, deployments and automations to the server at PREFECT_API_URL: `python -m deployments.apply`. Idempotent.

CLUSTERLORA_NOTIFY_BY names a notification block (`slack-webhook/team`) through which people hear of refused gates and crashed runs.
Automations need a server on PostgreSQL; use `--without-automations` on SQLite, where the launcher finds dead runs (supervise.py).
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from deployments.service_specs import CHECKOUT

log = logging.getLogger(__name__)

POOLS = CHECKOUT / "deployments" / "pools"


def apply_pools(folder: Path = POOLS) -> tuple[str, ...]:
    """Create or update one work pool per job template (`cpu.json`, `gpu-docker.json`, ...); return their names.

    The last word of the name is the type of the pool: docker, kubernetes, otherwise a process on the worker's host.
    """
    names: list[str] = []
    with get_client(sync_client=True) as client:
        for file in sorted(folder.glob("*.json")):
            template = json.loads(file.read_text(encoding="utf-8"))
            try:
                client.read_work_pool(file.stem)
                client.update_work_pool(file.stem, WorkPoolUpdate(base_job_template=template))
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=file.stem, type=pool_type(file.stem), base_job_template=template))
            names.append(file.stem)
    return tuple(names)


def pool_type(name: str) -> str:
    """Return the type of the worker that serves a pool."""
    last = name.rpartition("-")[2]
    return last if last in ("docker", "kubernetes") else "process"


def apply_deployments() -> None:
    """Apply all deployments in prefect.yaml. Raises CalledProcessError; Prefect's message is on stderr."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=CHECKOUT, check=True)


if __name__ == "__main__":
    from deployments.automations import apply_automations

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("work pools: %s", ", ".join(apply_pools()))
    if "--without-automations" not in sys.argv[1:]:
        log.info("automations: %s", ", ".join(apply_automations(os.environ.get("CLUSTERLORA_NOTIFY_BY"))))
    apply_deployments()
