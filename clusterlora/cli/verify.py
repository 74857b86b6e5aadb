"""`clusterlora study verify`: check that database, adapter store and MLflow agree."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.orchestration import deployments, services_home
from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import ServiceDown

if TYPE_CHECKING:
    from clusterlora.verify import Finding, LiveWork

_EXAMPLES = """\b
Examples:
  clusterlora study verify                  every study; exit 1 if there are findings
  clusterlora study verify demo --repair    repair what can be repaired; exit 1 if findings remain
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("--repair", is_flag=True, help="Repair what can be repaired. Nothing that may still be needed is deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def verify(name: str | None, repair: bool, as_json: bool) -> None:
    """Check that the study database, the adapter store and MLflow agree."""
    from clusterlora.verify import verify as verify_studies

    stores = open_local_stores(keep_services_up=True, before_forgetting=True)
    names = [name] if name else [study for study, _, _ in stores.studies.studies()]
    findings: list[Finding] = []
    for finding in verify_studies(names, stores, live=_live_work(), repair=repair):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    n_left = sum(not finding.repaired for finding in findings)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        click.echo(
            f"{len(names)} studies, {len(findings)} findings, {n_left} left" if findings else f"{len(names)} studies, everything agrees"
        )
    if n_left:
        raise click.exceptions.Exit(1)


def _line(finding: "Finding") -> str:
    where = f"{finding.study}: " if finding.study else ""
    return f"repaired  {where}{finding.what}" if finding.repaired else f"found     {where}{finding.what}; {finding.fix}"


def _live_work() -> "Callable[[str], LiveWork | None] | None":
    """Return a function from a study's name to its unfinished runs on the local Prefect server, else the one in the environment.

    None without a server. After the first failure the function prints it, returns None and does not try again.
    """
    services = deployments("local_services").status(services_home())
    if services is None and not os.environ.get("PREFECT_API_URL"):
        return None
    prefect_client, supervise = deployments("prefect_client"), deployments("supervise")
    unreachable = False

    def live_work(study_name: str) -> "LiveWork | None":
        nonlocal unreachable
        if unreachable:
            return None
        try:
            with prefect_client.connect(services) as client:
                # Runs whose process died stay open until they are marked; for local services this can be done here.
                if services is not None:
                    supervise.crash_dead_runs(client)
                return prefect_client.live_work(client, study_name)
        except ServiceDown as problem:
            unreachable = True
            echo_stderr(f"{problem}; attempts that may be running are not checked")
            return None

    return live_work
