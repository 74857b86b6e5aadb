"""Applies work pools, deployments and automations to the server at PREFECT_API_URL: `python -m deployments.apply`. Idempotent.

CLUSTERLORA_NOTIFY_BY names a notification block (`slack-webhook/team`) through which people hear of what `clusterlora notify` tells.
`--local` is for the server of one machine. On its SQLite automations do not work, and the launcher finds dead runs (supervise.py). Pools of
containers are left out, as no worker is started for them.
"""

import json
import logging
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from deployments.service_specs import CHECKOUT

log = logging.getLogger(__name__)

POOLS = CHECKOUT / "deployments" / "pools"


def apply_pools(folder: Path = POOLS, *, local: bool = False) -> tuple[str, ...]:
    """Create or update one work pool per job template (`cpu.json`, `gpu-docker.json`, ...); return their names.

    Args:
        local: only the pools of processes.

    The last word of the name is the type of the pool: docker, kubernetes, otherwise a process on the worker's host.
    """
    names: list[str] = []
    with get_client(sync_client=True) as client:
        for file in sorted(folder.glob("*.json")):
            if local and pool_type(file.stem) != "process":
                continue
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


def apply_deployments(*, local: bool = False) -> None:
    """Apply the deployments in prefect.yaml, all or those to pools of processes.

    Raises:
        CalledProcessError: Prefect's message is on stderr.
    """
    which = chain.from_iterable(("--name", name) for name in local_deployments()) if local else ["--all"]
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", *which], cwd=CHECKOUT, check=True)


def local_deployments() -> tuple[str, ...]:
    """Return the names of the deployments in prefect.yaml to pools of processes."""
    deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return tuple(str(one["name"]) for one in deployments if pool_type(one["work_pool"]["name"]) == "process")


if __name__ == "__main__":
    from deployments.automations import apply_automations

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    local = "--local" in sys.argv[1:]
    log.info("work pools: %s", ", ".join(apply_pools(local=local)))
    if not local:
        log.info("automations: %s", ", ".join(apply_automations(os.environ.get("CLUSTERLORA_NOTIFY_BY"))))
    apply_deployments(local=local)
