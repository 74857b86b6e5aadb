"""`clusterlora study`: run whole studies on the local services, and print their state."""

import getpass
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.choose_base import with_base
from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import N_WORKERS, FiniteRange, study_from, study_options
from clusterlora.cli.orchestration import deployments, in_prefect, services_home
from clusterlora.cli.printing import echo_columns
from clusterlora.cli.progress import console_log, echo_stderr
from clusterlora.cli.usable_inputs import with_usable_inputs
from clusterlora.recipe import MOST_EPOCHS, MOST_LEARNING_RATE

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores

_RUN_EXAMPLES = """\b
Examples:
  clusterlora study run --preset quick                     every step once, in minutes
  clusterlora study run --preset mission                   200 personas, 30/10/10 dialogues
  clusterlora study run --data people.jsonl --preset taste          is it worth it? as much as fits 15 minutes
  clusterlora study run --data people.jsonl --preset overnight      up to 200 people, as much as fits a night
  clusterlora study run --data people.jsonl --base-model Qwen/Qwen2.5-0.5B-Instruct
  clusterlora study run --config study.toml --set recipe.epochs=1 --name try-2
"""

_ESTIMATE_EXAMPLE = """\b
Examples:
  clusterlora study estimate --data people.jsonl --preset overnight
  clusterlora study estimate --data people.jsonl --base-model smollm2-135m --set recipe.epochs=1
"""

_PERMUTE_EXAMPLE = """\b
Examples:
  clusterlora study permute --preset quick --times 20
  clusterlora study permute --data people.jsonl --base-model smollm2-135m --times 5
"""

_IMPORT_EXAMPLE = """\b
Example:
  clusterlora study import --name mine --data edgewise/ --splits data/splits/edgesplits.json --clusters cluster_map.json \\
      --adapters models/lora_clusters --results results/ --base-model Qwen/Qwen2.5-0.5B-Instruct
  clusterlora study import --name mine ... --personal models/personas     then: clusterlora merge mine --kind ties
"""


@click.group(epilog="\b\nExample:\n  clusterlora study run --preset quick\n")
def study() -> None:
    """Run whole studies, and print their state."""


@study.command(epilog=_RUN_EXAMPLES)
@study_options
@click.option("--workers", type=N_WORKERS, help="Worker processes for training.  [default: as last asked for; at first one per GPU, or 2]")
@click.option("--no-wait", is_flag=True, help="Stop the servers when the study ends, also in a terminal.")
@click.option("--show-settings", is_flag=True, help="Print all settings as JSON and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print the final state as JSON.  [default: table and verdict]")
def run(workers: int | None, no_wait: bool, show_settings: bool, as_json: bool, **options: Any) -> None:
    """Run a study: prepare, cluster, gate, train, evaluate, compare, register.

    Starts the local servers and workers if they do not run, says how long the study will take before anything is trained, follows it,
    and prints the table, the gate's verdict and where the results are. After an interruption run the same command again: finished work
    is not repeated.
    """
    study = study_from(options)
    if show_settings:
        from clusterlora.config import as_mapping

        click.echo(json.dumps(as_mapping(study), indent=2))
        return
    study = with_usable_inputs(study)
    stay = sys.stdout.isatty() and not no_wait and not as_json
    ended = deployments("launch").run_study(study, home=services_home(), workers=workers, stay=stay, log=echo_stderr, results=not as_json)
    if as_json:
        click.echo(json.dumps(_status(study.name, open_local_stores())))
    if not ended.completed:
        raise click.exceptions.Exit(1)


@study.command(epilog=_PERMUTE_EXAMPLE)
@study_options
@click.option("--times", type=click.IntRange(1, 200), default=20, show_default=True, help="Studies with permuted labels.")
@click.option("--workers", type=N_WORKERS, help="Worker processes for training.  [default: as last asked for]")
@click.option("--json", "as_json", is_flag=True, help="Print the rate and one record per study as JSON.")
def permute(times: int, workers: int | None, as_json: bool, **options: Any) -> None:
    """Run a study as often with everybody's dialogues exchanged at random, and print how often it claims personalisation.

    Nothing is personal then, so every claim is false. The studies are called NAME-null-01, NAME-null-02, ...; after an interruption run the
    same command again, which goes on with the first that has not ended.
    """
    from clusterlora.comparison.null_rate import can_claim, to_claim
    from clusterlora.planning.null_studies import null_studies
    from clusterlora.results.null_rate import rate_of, write_null_rate

    original = with_usable_inputs(study_from(options))
    nulls = null_studies(original, times)
    if not can_claim(original.methods):
        echo_stderr(
            f"note: none of the methods ({', '.join(original.methods)}) is compared with the control that tells why it gains, so no study "
            f"can claim personalisation, whatever it finds; {to_claim(original.methods)}"
        )
    user = f"permutations of {original.name}"
    ended = deployments("launch").run_studies(nulls, home=services_home(), workers=workers, user=user, log=echo_stderr)
    if not ended[-1].completed:
        echo_stderr(f"study {nulls[len(ended) - 1].name} did not end; run the same command again to go on with it")
        raise click.exceptions.Exit(1)
    stores = open_local_stores()
    rate = rate_of([null.name for null in nulls], stores)
    path = write_null_rate(original.name, rate, stores)
    if as_json:
        click.echo(json.dumps({"sentence": rate.sentence, "claims": rate.n_claims, "times": times, "studies": rate.records}))
        return
    click.echo(rate.sentence)
    click.echo(f"table    {path}")


@study.command(epilog=_ESTIMATE_EXAMPLE)
@study_options
@click.option("--workers", type=N_WORKERS, help="Workers to expect.  [default: one per GPU, two without a GPU]")
@click.option("--json", "as_json", is_flag=True, help="Print the expected seconds of each phase, and of cheaper studies, as JSON.")
def estimate(workers: int | None, as_json: bool, **options: Any) -> None:
    """Print how long a study would take on this machine, and what would be cheaper.

    Trains and answers for some seconds on the study's own data and base model, as `study run` does at its start; nothing is kept.
    """
    from clusterlora.cli.progress import console_log
    from clusterlora.progress.estimate import cheaper, sentences
    from clusterlora.progress.estimate import estimate as left_of
    from clusterlora.stages.probe import probed
    from clusterlora.wiring import from_environment

    study = with_base(study_from(options), open_local_stores())
    with console_log() as log, TemporaryDirectory() as folder:
        stores = from_environment({"CLUSTERLORA_HOME": folder})
        state = probed(study, workers or deployments("service_specs").default_workers(), stores, log)
    left = left_of(state)
    if left is None:
        raise click.exceptions.Exit(1)  # the log says why
    if as_json:
        click.echo(json.dumps(asdict(left) | {"total": left.total, "cheaper": dict(cheaper(state))}))
        return
    for line in sentences(state):
        click.echo(line)


@study.command("import", epilog=_IMPORT_EXAMPLE)
@click.option("--splits", help="JSON file of splits, such as data/splits/edgesplits.json.")
@click.option("--clusters", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON file of clusters: cluster_map.json.")
@click.option(
    "--adapters", type=click.Path(path_type=Path, file_okay=False), help="Folder with the PEFT folders cluster_00, cluster_01, ..."
)
@click.option("--unified", type=click.Path(path_type=Path, file_okay=False), help="PEFT folder of one adapter for everybody.")
@click.option(
    "--personal",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with a PEFT folder per persona, named by id or number.",
)
@click.option(
    "--personal-map", type=click.Path(path_type=Path, dir_okay=False), help="JSON file from persona to folder name, for other names."
)
@click.option("--same-base", is_flag=True, help="The base model that the adapters name holds the weights of this study's.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file, or folder of JSON files, with scores by persona.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as JSON.")
@study_options
def import_older(
    splits: str | None,
    clusters: Path,
    adapters: Path | None,
    unified: Path | None,
    personal: Path | None,
    personal_map: Path | None,
    same_base: bool,
    results: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Import splits, clusters, adapters and scores of earlier scripts, and continue from there.

    Imported adapters are evaluated and compared as the methods imported_unified, imported_cluster, imported_per_persona and, merged per
    cluster, imported_merge. A cluster or persona without one is answered by the adapter that is trained here. Every adapter must compute
    the logits that PEFT computes with it. Imported scores are printed beside the results and enter no statistic.
    """
    from clusterlora.errors import counted
    from clusterlora.stages.imported import OlderOutputs, import_outputs, settings_for_import

    older = OlderOutputs(
        clusters=clusters,
        adapters=adapters,
        unified=unified,
        personal=personal,
        personal_map=personal_map,
        results=results,
        any_base=same_base,
    )
    stores = open_local_stores(keep_services_up=True)
    study = with_base(settings_for_import(study_from(options, data__splits=splits), older), stores)
    with console_log() as log:
        imported = import_outputs(study, older, stores, log)
    if as_json:
        click.echo(json.dumps({"study": study.name, **asdict(imported)}))
        return
    click.echo(
        f"study {study.name}: {counted(imported.personas, 'persona')} in {counted(imported.clusters, 'cluster')}, "
        f"{counted(imported.adapters, 'adapter')}, {counted(imported.results, 'file')} of scores"
    )
    click.echo(f"continue with: clusterlora study run --name {study.name}")


@study.command("list", epilog="\b\nExample:\n  clusterlora study list --json\n")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_studies(as_json: bool) -> None:
    """List the studies, newest first."""
    stored = open_local_stores().studies.studies()
    seen = in_prefect({name: status for name, status, _ in stored})
    rows = [{"name": name, "status": seen[name].status if name in seen else status, "created": created} for name, status, created in stored]
    if as_json:
        click.echo(json.dumps(rows))
        return
    echo_columns(("STUDY", "STATUS", "CREATED"), [tuple(row.values()) for row in rows])
    for name, found in seen.items():
        for note in found.notes:
            click.echo(f"{name}: {note}")
    if not rows:
        click.echo("no studies yet; start with: clusterlora study run --preset quick")


@study.command(epilog="\b\nExample:\n  clusterlora study status demo\n")
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Live view: phases with expected times, scores, GPU and memory; Ctrl-C exits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, watch: bool, as_json: bool) -> None:
    """Print the state of a study, by default of the newest one."""
    from clusterlora.errors import UnknownName

    stores = open_local_stores()
    if name is None:
        studies = stores.studies.studies()
        if not studies:
            raise UnknownName("there is no study yet; start with: clusterlora study run --preset quick")
        name = studies[0][0]
    if watch:
        from clusterlora.cli.watch import watch as watch_study

        watch_study(name, stores)
        return
    try:
        state = _status(name, stores)
    except UnknownName:
        seen = in_prefect({name: ""}).get(name)
        if seen is None or not seen.status:
            raise
        state: dict[str, Any] = {"study": name, "status": "launched, not begun"}
    else:
        seen = in_prefect({name: str(state["status"])}).get(name)
        state |= {"status": seen.status} if seen else {}
        if seen and seen.stopped:
            state |= {"in_training": [], "expected": [], "next": seen.notes[0].fix}
    state["in_prefect"] = [str(note) for note in seen.notes] if seen else []
    if as_json:
        click.echo(json.dumps(state))
        return
    trials: list[dict[str, str]] = state.pop("trials", [])
    for field, value in state.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value  # pyrefly: ignore[partially-unknown-type]
        click.echo(f"{field.replace('_', ' '):<14} {text or '-'}")
    if trials:
        click.echo()
        echo_columns(tuple(name.upper() for name in trials[0]), [tuple(trial.values()) for trial in trials])


def _user_name() -> str:
    """Return who runs this; the user's number where it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"user {os.getuid()}"


@study.command(epilog="\b\nExample:\n  clusterlora study decide people --retry --learning-rate 1e-4 --epochs 6\n")
@click.argument("name")
@click.option("--go-on", "choice", flag_value="continue", help="Train the remaining adapters anyway.")
@click.option("--stop", "choice", flag_value="stop", help="Compare what was trained, then stop.")
@click.option(
    "--retry", "choice", flag_value="retry", help="Train the judged cluster once more, with at least one of the next three options."
)
@click.option("--learning-rate", type=FiniteRange(0, MOST_LEARNING_RATE, min_open=True), help="Peak learning rate of the retry.")
@click.option("--epochs", type=click.IntRange(1, MOST_EPOCHS), help="Epochs of the retry.")
@click.option("--init", type=click.Choice(["base", "unified"]), help="Initial weights of the retry.")
@click.option("--by", default=_user_name, show_default="your user name", help="Who decides; stored with the decision.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision as JSON.")
def decide(name: str, choice: Any, learning_rate: float | None, epochs: int | None, init: Any, by: str, as_json: bool) -> None:
    """Decide how a study continues after its gate refused: at once if it waits (gate.on_failure=ask), else when it is run again."""
    changes = any(value is not None for value in (learning_rate, epochs, init))
    if choice is None:
        raise click.UsageError("choose one of --go-on, --stop and --retry")
    if changes != (choice == "retry"):
        raise click.UsageError("--retry requires at least one of --learning-rate, --epochs and --init; without it they are not allowed")
    from clusterlora.errors import ServiceDown, UnknownName
    from clusterlora.metadata import Decision
    from clusterlora.planning.decisions import decide as record
    from clusterlora.planning.ladder import may_be_decided
    from clusterlora.planning.study_state import read_state
    from clusterlora.settings import Rung

    stores = open_local_stores()
    if not may_be_decided(read_state(name, stores)):
        raise UnknownName(f"study {name} waits for no decision, as its gate did not refuse; see: clusterlora study status {name}")
    rung = Rung(name="asked", learning_rate=learning_rate, epochs=epochs, init=init) if changes else None
    record(name, stores, Decision(choice, rung, by))
    services = deployments("local_services").status(services_home())
    try:
        resumed = services is not None and deployments("launch").resume_after_decision(name, services)
    except ServiceDown as problem:
        echo_stderr(str(problem))
        resumed = False
    if as_json:
        click.echo(json.dumps({"study": name, "choice": choice, "by": by, "rung": rung and asdict(rung), "resumed": resumed}))
    elif resumed:
        action = {"continue": "continues", "stop": "compares what was trained, and stops", "retry": "trains the judged cluster once more"}
        click.echo(f"study {name} {action[choice]}")
    else:
        click.echo(f"stored; it takes effect with: clusterlora study run --name {name}")


def _status(name: str, stores: "Stores") -> dict[str, Any]:
    from clusterlora.clustering.summary import sentence
    from clusterlora.planning.study_state import read_state
    from clusterlora.progress.estimate import sentences
    from clusterlora.progress.timeline import against_unified, next_step, phases
    from clusterlora.report.data import TRIAL_COLUMNS
    from clusterlora.results.tuning import trial_rows, tuning_sentence

    state = read_state(name, stores)
    open_attempts = [attempt for attempt in state.attempts if attempt.state == "running"]
    return {
        "study": name,
        "status": state.status,
        "personas": state.provenance.n_personas if state.provenance else None,
        "clusters": sentence(state.clustering) if state.clustering else None,
        "adapters": len(state.adapters),
        "in_training": [f"{attempt.group} (attempt {attempt.number}, micro-batch {attempt.micro_batch})" for attempt in open_attempts],
        "gate": [f"{verdict.rung}: {'passed' if verdict.passed else 'refused'}" for verdict in state.verdicts],
        "tuning": tuning_sentence(state) if state.tuning else None,
        "trials": [dict(zip(TRIAL_COLUMNS, row, strict=True)) for row in trial_rows(state)],
        "phases": [f"{p.name} {p.state}" for p in phases(state)],
        "expected": list(sentences(state)),
        "against_unified": list(against_unified(state)),
        "next": next_step(state),
        "champion": state.outcome.champion if state.outcome else None,
        "conclusion": state.outcome.sentence if state.outcome else None,
        "folder": str(stores.folder(name)),
    }
