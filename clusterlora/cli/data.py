"""`clusterlora data`: check your own dialogues, measure what is in them, or write invented ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.progress import console_log


@click.group(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl\n")
def data() -> None:
    """Check your own dialogues, measure what is in them, or write invented ones."""


@data.command(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl --dialogues 20\n")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def validate(as_json: bool, **options: Any) -> None:
    """Read, check and split the data of a study, and say what is in it. Every problem is listed with file, line and fix."""
    from clusterlora.data.validate import examine
    from clusterlora.errors import BadData

    summary = asdict(examine(study_from(options).data))
    refusal = summary["refusal"]
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _print(summary)
    if refusal is not None:
        raise BadData(f"the data can be read, but not trained on:\n{refusal}")


@data.command(epilog="\b\nExample:\n  clusterlora data signal --data people.jsonl --set clustering.k=8\n")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def signal(as_json: bool, **options: Any) -> None:
    """Tell, before any training, how much adapters per person and per cluster have to win on the data of a study."""
    from clusterlora.signal.words import markdown
    from clusterlora.stages.signal import signal_of_data

    study = study_from(options)
    with console_log() as log:
        found = signal_of_data(study, log)
    click.echo(json.dumps(asdict(found)) if as_json else markdown(found))


def _print(summary: dict[str, Any]) -> None:
    """Print counts as they are and distributions in words."""
    for name, value in summary.items():
        if name == "refusal":
            continue
        shown = (
            f"median {value['median']}, 5 % {value['p5']}, 95 % {value['p95']}, most {value['maximum']}"
            if isinstance(value, dict)
            else value
        )
        click.echo(f"{name.replace('_', ' '):<24} {shown}")


@data.command(epilog="\b\nExample:\n  clusterlora data synthesize people/ --set data.synthetic.seed=7\n")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@study_options
def synthesize(folder: Path, **options: Any) -> None:
    """Write invented people to FOLDER: characters, routines, sessions and, beside them, the planted truth."""
    from clusterlora.data.synthetic import generate, write

    settings = study_from(options).data.synthetic
    write(generate(settings), folder)
    click.echo(f"{sum(settings.cluster_sizes)} people with {settings.dialogues} dialogues each are in {folder}")
