"""`clusterlora study verify`: do database, adapter store and MLflow agree?"""

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.orchestration import deployments, stack_home

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
    names = [name] if name else [known for known, _, _ in stores.studies.studies()]
    found: list[Finding] = []
    with _live() as live:
        for finding in verify_studies(names, stores, live=live, repair=repair):
            found.append(finding)
            if not as_json:
                click.echo(_line(finding))
    n_left = sum(not finding.repaired for finding in found)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        click.echo(f"{len(names)} studies, {len(found)} findings, {n_left} left" if found else f"{len(names)} studies, everything agrees")
    if n_left:
        raise click.exceptions.Exit(1)


def _line(finding: "Finding") -> str:
    where = f"{finding.study}: " if finding.study else ""
    return f"repaired  {where}{finding.what}" if finding.repaired else f"found     {where}{finding.what}; {finding.fix}"


@contextmanager
def _live() -> "Generator[Callable[[str], LiveWork] | None]":
    """Yield how to ask what runs of a study: the local stack's Prefect server, or the one in the environment; None without any."""
    stack = deployments("stack").status(stack_home())
    if stack is None and not os.environ.get("PREFECT_API_URL"):
        yield None
        return
    observe = deployments("observe")
    with observe.connect(stack) as client:
        # Runs whose process is gone are open until somebody notices; on this machine the stack's own watchman can.
        if stack is not None:
            deployments("supervise").crash_dead_runs(client)
        yield lambda study_name: observe.live_work(client, study_name)
