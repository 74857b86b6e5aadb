"""`clusterlora study`: run whole studies on the local stack, and see how they stand."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say

if TYPE_CHECKING:
    from clusterlora.ports import Stores

_RUN_EXAMPLES = """\b
Examples:
  clusterlora study run --preset quick                     see every part work once
  clusterlora study run --preset mission                   200 personas, 30/10/10 dialogues
  clusterlora study run --data people.jsonl --base-model Qwen/Qwen2.5-0.5B-Instruct
  clusterlora study run --config study.toml --set recipe.epochs=1 --name try-2
"""


@click.group(epilog="\b\nExample:\n  clusterlora study run --preset quick\n")
def study() -> None:
    """Run whole studies, and see how they stand."""


@study.command(epilog=_RUN_EXAMPLES)
@study_options
@click.option("--workers", type=click.IntRange(min=1), help="Processes for training.  [default: one per GPU, two without any]")
@click.option("--no-wait", is_flag=True, help="Stop the servers when the study has ended, also in a terminal.")
@click.option("--show-settings", is_flag=True, help="Print all settings as JSON and stop.")
def run(workers: int | None, no_wait: bool, show_settings: bool, **options: Any) -> None:
    """Run a study: prepare, cluster, gate, train, evaluate, compare, register.

    Starts the local servers and workers if they are not up, follows the study, and prints the table, the gate's verdict and where
    to look. Run the same command again after any interruption: nothing that finished is done again.
    """
    chosen = study_from(options)
    if show_settings:
        from clusterlora.config import as_mapping

        click.echo(json.dumps(as_mapping(chosen), indent=2))
        return
    stay = sys.stdout.isatty() and not no_wait
    ended = deployments("launch").run_study(chosen, home=stack_home(), workers=workers, stay=stay, say=say)
    if not ended.completed:
        raise click.exceptions.Exit(1)


@study.command("list", epilog="\b\nExample:\n  clusterlora study list --json\n")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_studies(as_json: bool) -> None:
    """List the studies, the newest first."""
    rows = [dict(zip(("name", "status", "created"), row, strict=True)) for row in stores_here().studies.studies()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['name']:<30} {row['status']:<12} {row['created']}")
    if not rows:
        click.echo("no studies yet; begin with: clusterlora study run --preset quick")


@study.command(epilog="\b\nExample:\n  clusterlora study status demo\n")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool) -> None:
    """Say how a study stands (the newest one when no NAME is given)."""
    from clusterlora.errors import UnknownName

    stores = stores_here()
    if name is None:
        known = stores.studies.studies()
        if not known:
            raise UnknownName("there is no study yet; begin with: clusterlora study run --preset quick")
        name = known[0][0]
    found = _status(name, stores)
    if as_json:
        click.echo(json.dumps(found))
        return
    for field, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType]
        click.echo(f"{field.replace('_', ' '):<14} {shown or '-'}")


@study.command(epilog="\b\nExample:\n  clusterlora study decide people --go-on\n")
@click.argument("name")
@click.option("--go-on/--stop", required=True, help="Train the rest all the same, or compare what was trained and stop.")
def decide(name: str, go_on: bool) -> None:
    """Decide on a refused gate for a study that waits for it (gate.on_failure=ask)."""
    from clusterlora.errors import UnknownName
    from clusterlora.stages.plan import awaits_decision
    from clusterlora.stages.plan import decide as record

    stores = stores_here()
    if not awaits_decision(stores.studies.study(name), stores):
        raise UnknownName(f"study {name} waits for no decision; it stands like this: clusterlora study status {name}")
    record(name, stores, go_on=go_on)
    stack = deployments("stack").status(stack_home())
    if stack is not None and deployments("launch").decide(name, stack, go_on=go_on):
        click.echo(f"study {name} goes on" if go_on else f"study {name} compares what was trained, and stops")
    else:
        click.echo("noted; the study acts on it when it is run again")


def _status(name: str, stores: "Stores") -> dict[str, Any]:
    studies = stores.studies
    facts = studies.facts(name)
    open_attempts = [attempt for attempt in studies.attempts(name) if attempt.state == "running"]
    return {
        "study": name,
        "status": studies.status(name),
        "personas": facts.get("n_personas"),
        "adapters": len(studies.adapters(name)),
        "in_training": [f"{attempt.pack} (attempt {attempt.number}, micro-batch {attempt.micro_batch})" for attempt in open_attempts],
        "gate": [f"{verdict.rung}: {'passed' if verdict.passed else 'refused'}" for verdict in studies.verdicts(name)],
        "champion": facts.get("champion"),
        "conclusion": facts.get("conclusion"),
        "folder": str(stores.folder(name)),
    }
