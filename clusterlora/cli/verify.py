"""`clusterlora study verify`: compare database, adapter store and MLflow."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say
from clusterlora.errors import ServiceDown

if TYPE_CHECKING:
    from clusterlora.stages.verify import Finding, LiveWork

_EXAMPLES = """\b
Examples:
  clusterlora study verify                  every study; exit 1 when something is wrong
  clusterlora study verify demo --repair    mend what can be mended; exit 1 when something is left
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("--repair", is_flag=True, help="Mend what can be mended. Nothing that may be of use is deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def verify(name: str | None, repair: bool, as_json: bool) -> None:
    """Check that the study database, the adapter store and MLflow agree."""
    from clusterlora.stages.verify import verify as verify_studies

    stores = stores_here(works=True)
    names = [name] if name else [study for study, _, _ in stores.studies.studies()]
    findings: list[Finding] = []
    for finding in verify_studies(names, stores, live=_live(), repair=repair):
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


def _live() -> "Callable[[str], LiveWork | None] | None":
    """Return a function that asks Prefect for a study's live runs, the local server or the one in the environment; None without one.

    A server that did not answer once is reported and not asked again.
    """
    stack = deployments("stack").status(stack_home())
    if stack is None and not os.environ.get("PREFECT_API_URL"):
        return None
    observe, supervise = deployments("observe"), deployments("supervise")
    is_away = False

    def ask(study_name: str) -> "LiveWork | None":
        nonlocal is_away
        if is_away:
            return None
        try:
            with observe.connect(stack) as client:
                # Runs whose process is gone are open until somebody notices; on this machine the stack's own watchman can.
                if stack is not None:
                    supervise.crash_dead_runs(client)
                return observe.live_work(client, study_name)
        except ServiceDown as problem:
            is_away = True
            say(f"{problem}; until then nothing that may be under way is judged")
            return None

    return ask
