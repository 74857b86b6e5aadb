"""`clusterlora study refresh`: what people said since goes into the adapters, and the champion moves if that is better or no worse."""

import json
import sys

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import N_WORKERS, FiniteRange
from clusterlora.cli.orchestration import deployments, services_home
from clusterlora.cli.progress import echo_stderr

_EXAMPLES = """\b
Examples:
  clusterlora study refresh demo --data more.jsonl                all that is new in the file; what stood there before counts once
  clusterlora study refresh demo --data more.jsonl --replay 0.7   seven old dialogues to three new ones
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option(
    "--data",
    "path",
    required=True,
    help="The new dialogues, or all: a .jsonl, .csv or .parquet file (a folder for edgewise and lamp), read as the study's own.",
)
@click.option(
    "--replay",
    type=FiniteRange(0, 0.99),
    help="Share of old dialogues among those that adapters with news are trained on.  [default: as the last time, at first 0.5]",
)
@click.option("--workers", type=N_WORKERS, help="Worker processes for training.  [default: as last asked for]")
@click.option("--no-wait", is_flag=True, help="Stop the servers when the refresh ends, also in a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def refresh(name: str, path: str, replay: float | None, workers: int | None, no_wait: bool, as_json: bool) -> None:
    """Refresh the champion of a study with dialogues that came since: of people who are in it, and of new ones.

    The refresh is a study of its own, NAME.r1, NAME.r2, ...: adapters whose people have news go on from their last weights, all others are
    kept. It is compared with the champion on new test items and on old ones. The alias moves if it is worse on neither and is shown to
    be better, or not worse within the margin that a family of refreshes has.
    After an interruption: clusterlora study run --name NAME.rN.
    """
    from pathlib import Path

    from clusterlora.config import absolute_path
    from clusterlora.stages.prepare import as_prepared
    from clusterlora.stages.refresh import next_refresh, refreshed

    stores = open_local_stores(keep_services_up=True)
    study = next_refresh(name, absolute_path(path, Path.cwd()), stores, replay=replay)
    settings, base = as_prepared(study, stores)
    for sentence in refreshed(settings, base.tokenizer, stores).sentences:
        echo_stderr(sentence)
    stay = sys.stdout.isatty() and not no_wait and not as_json
    ended = deployments("launch").run_study(study, home=services_home(), workers=workers, stay=stay, log=echo_stderr, results=not as_json)
    if as_json:
        from dataclasses import asdict

        from clusterlora.metadata import RefreshOutcome

        outcome = stores.studies.metadata(study.name, RefreshOutcome)
        click.echo(json.dumps({"study": study.name, **(asdict(outcome) if outcome else {"moved": False})}))
    if not ended.completed:
        raise click.exceptions.Exit(1)
