"""`clusterlora study`: run whole studies on the local stack, and see how they stand."""

import getpass
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say

if TYPE_CHECKING:
    from clusterlora.ports import Stores
    from clusterlora.settings import Study

_RUN_EXAMPLES = """\b
Examples:
  clusterlora study run --preset quick                     see every part work once
  clusterlora study run --preset mission                   200 personas, 30/10/10 dialogues
  clusterlora study run --data people.jsonl --base-model Qwen/Qwen2.5-0.5B-Instruct
  clusterlora study run --config study.toml --set recipe.epochs=1 --name try-2
"""

_IMPORT_EXAMPLE = """\b
Example:
  clusterlora study import --name mine --data edgewise/ --splits data/splits/edgesplits.json --clusters cluster_map.json \\
      --adapters models/lora_clusters --results results/ --base-model Qwen/Qwen2.5-0.5B-Instruct
"""


@click.group(epilog="\b\nExample:\n  clusterlora study run --preset quick\n")
def study() -> None:
    """Run whole studies, and see how they stand."""


@study.command(epilog=_RUN_EXAMPLES)
@study_options
@click.option("--workers", type=click.IntRange(min=1), help="Processes for training.  [default: one per GPU, two without any]")
@click.option("--no-wait", is_flag=True, help="Stop the servers when the study has ended, also in a terminal.")
@click.option("--show-settings", is_flag=True, help="Print all settings as JSON and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print how the study stands at the end as JSON.  [default: table and verdict]")
def run(workers: int | None, no_wait: bool, show_settings: bool, as_json: bool, **options: Any) -> None:
    """Run a study: prepare, cluster, gate, train, evaluate, compare, register.

    Starts the local servers and workers if they are not up, follows the study, and prints the table, the gate's verdict and where
    to look. Run the same command again after any interruption: nothing that finished is done again.
    """
    chosen = study_from(options)
    if show_settings:
        from clusterlora.config import as_mapping

        click.echo(json.dumps(as_mapping(chosen), indent=2))
        return
    _refuse_early(chosen)
    stay = sys.stdout.isatty() and not no_wait and not as_json
    ended = deployments("launch").run_study(chosen, home=stack_home(), workers=workers, stay=stay, say=say, results=not as_json)
    if as_json:
        click.echo(json.dumps(_status(chosen.name, stores_here())))
    if not ended.completed:
        raise click.exceptions.Exit(1)


@study.command("import", epilog=_IMPORT_EXAMPLE)
@click.option("--splits", help="JSON file of splits, such as data/splits/edgesplits.json.")
@click.option("--clusters", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON map of clusters: cluster_map.json.")
@click.option("--adapters", type=click.Path(path_type=Path, file_okay=False), help="Folder of PEFT folders cluster_00, cluster_01, ...")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file, or folder of them, with scores by persona.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as JSON.")
@study_options
def import_older(splits: str | None, clusters: Path, adapters: Path | None, results: Path | None, as_json: bool, **options: Any) -> None:
    """Continue here what older scripts began: take over their splits, clusters, adapters and scores.

    The adapters are evaluated like everything else and compared as the method imported_cluster; clusters without one are answered by the
    adapter trained here. The scores are shown beside the results and are part of no statistic.
    """
    from clusterlora.cli.progress import console_log
    from clusterlora.stages.imported import Older, bring_in, settings_for_import

    older = Older(clusters, adapters, results)
    chosen = settings_for_import(study_from(options, data__splits=splits), older)
    with console_log() as log:
        found = bring_in(chosen, older, stores_here(works=True), log)
    if as_json:
        click.echo(json.dumps({"study": chosen.name, **asdict(found)}))
        return
    click.echo(
        f"study {chosen.name}: {found.personas} personas in {found.clusters} clusters, "
        f"{found.adapters} adapters, {found.results} files of scores"
    )
    click.echo(f"go on with: clusterlora study run --name {chosen.name}")


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
@click.option("--watch", is_flag=True, help="A live page: phases, what is expected, scores, GPU and memory; Ctrl-C leaves it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, watch: bool, as_json: bool) -> None:
    """Say how a study stands (the newest one when no NAME is given)."""
    from clusterlora.errors import UnknownName

    stores = stores_here()
    if name is None:
        known = stores.studies.studies()
        if not known:
            raise UnknownName("there is no study yet; begin with: clusterlora study run --preset quick")
        name = known[0][0]
    if watch:
        from clusterlora.cli.watch import watch as watch_study

        watch_study(name, stores)
        return
    found = _status(name, stores)
    if as_json:
        click.echo(json.dumps(found))
        return
    for field, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType]
        click.echo(f"{field.replace('_', ' '):<14} {shown or '-'}")


@study.command(epilog="\b\nExample:\n  clusterlora study decide people --retry --learning-rate 1e-4 --epochs 6\n")
@click.argument("name")
@click.option("--go-on", "choice", flag_value="continue", help="Train the rest all the same.")
@click.option("--stop", "choice", flag_value="stop", help="Compare what was trained, and stop.")
@click.option("--retry", "choice", flag_value="retry", help="Try cluster 0 once more, with at least one of the next three.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate of the retry.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of the retry.")
@click.option("--init", type=click.Choice(["base", "unified"]), help="What the retry starts from.")
@click.option("--by", default=getpass.getuser, show_default="your user name", help="Who decides; kept with the decision.")
@click.option("--json", "as_json", is_flag=True, help="Print what was decided as JSON.")
def decide(name: str, choice: Any, learning_rate: float | None, epochs: int | None, init: Any, by: str, as_json: bool) -> None:
    """Decide on a refused gate for a study that waits for it (gate.on_failure=ask)."""
    changes = any(value is not None for value in (learning_rate, epochs, init))
    if choice is None:
        raise click.UsageError("say what to do: --go-on, --stop or --retry")
    if changes != (choice == "retry"):
        raise click.UsageError("--retry goes with at least one of --learning-rate, --epochs and --init, and they only with it")
    from clusterlora.errors import ServiceDown, UnknownName
    from clusterlora.metadata import Decision
    from clusterlora.planning.decisions import decide as record
    from clusterlora.planning.ladder import awaits_decision
    from clusterlora.planning.study_state import read_state
    from clusterlora.settings import Rung

    stores = stores_here()
    if not awaits_decision(read_state(name, stores)):
        raise UnknownName(f"study {name} waits for no decision; it stands like this: clusterlora study status {name}")
    rung = Rung(name="asked", learning_rate=learning_rate, epochs=epochs, init=init) if changes else None
    record(name, stores, Decision(choice, rung, by))
    stack = deployments("stack").status(stack_home())
    try:
        resumed = stack is not None and deployments("launch").decide(name, stack)
    except ServiceDown as problem:
        say(str(problem))
        resumed = False
    if as_json:
        click.echo(json.dumps({"study": name, "choice": choice, "by": by, "rung": rung and asdict(rung), "resumed": resumed}))
    elif resumed:
        said = {"continue": "goes on", "stop": "compares what was trained, and stops", "retry": "tries cluster 0 once more"}
        click.echo(f"study {name} {said[choice]}")
    else:
        click.echo("noted; the study acts on it when it is run again")


def _refuse_early(chosen: "Study") -> None:
    """Refuse data and base models that cannot be used before a server is started for them."""
    from clusterlora.models.base import base_revision

    base_revision(chosen.model.base)
    if chosen.data.path is not None:
        from clusterlora.data.load import load

        load(chosen.data)


def _status(name: str, stores: "Stores") -> dict[str, Any]:
    from clusterlora.planning.study_state import read_state
    from clusterlora.stages.outlook import against_unified, next_step, phases

    state = read_state(name, stores)
    open_attempts = [attempt for attempt in state.attempts if attempt.state == "running"]
    return {
        "study": name,
        "status": state.status,
        "personas": state.provenance.n_personas if state.provenance else None,
        "adapters": len(state.adapters),
        "in_training": [f"{attempt.group} (attempt {attempt.number}, micro-batch {attempt.micro_batch})" for attempt in open_attempts],
        "gate": [f"{verdict.rung}: {'passed' if verdict.passed else 'refused'}" for verdict in state.verdicts],
        "phases": [f"{p.name} {p.state}" for p in phases(state)],
        "against_unified": list(against_unified(state)),
        "next": next_step(state),
        "champion": state.outcome.champion if state.outcome else None,
        "conclusion": state.outcome.sentence if state.outcome else None,
        "folder": str(stores.folder(name)),
    }
