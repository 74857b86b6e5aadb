"""`clusterlora data`: validate dialogues, measure their persona signal, or generate synthetic ones."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.progress import console_log

if TYPE_CHECKING:
    from clusterlora.data.prompt_fit import PromptFit
    from clusterlora.data.summary import DataSummary
    from clusterlora.settings import Study


@click.group(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl\n")
def data() -> None:
    """Validate dialogues, measure their persona signal, or generate synthetic ones."""


@data.command(epilog="\b\nExample:\n  clusterlora data template mine && clusterlora study run --config mine/study.toml\n")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def template(folder: Path, as_json: bool) -> None:
    """Write a small example data set and a commented configuration to FOLDER, to be replaced by your own."""
    from clusterlora.data.template import write_template

    people, toml = write_template(folder)
    if as_json:
        click.echo(json.dumps({"data": str(people), "configuration": str(toml)}))
        return
    click.echo(f"data           {people}\nconfiguration  {toml}")
    click.echo(f"check it with: clusterlora data validate --config {toml}\nrun it with:   clusterlora study run --config {toml}")


@data.command(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl --dialogues 20 --picture people.png\n")
@study_options
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the data into this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def validate(picture: Path | None, as_json: bool, **options: Any) -> None:
    """Read, check and split the data of a study, and print a summary. Every problem is listed with file, line and fix.

    With --base-model the summary also counts the dialogues that lose their oldest turns with its tokenizer, and those that do not fit.
    """
    from clusterlora.comparison.power import study_power
    from clusterlora.data.validate import examine
    from clusterlora.errors import BadData
    from clusterlora.planning.ladder import REFERENCE

    study = study_from(options)
    summary = examine(study.data, _fit(study) if study.model.base else None)
    refusal = summary.refusal
    power = study_power(study.methods, REFERENCE, summary.personas)
    if as_json:
        click.echo(json.dumps(asdict(summary) | {"power": asdict(power) if power else None}))
    else:
        _print_summary(summary)
        click.echo(f"{'power':<24} {power.sentence if power else 'nothing is compared with ' + REFERENCE}")
    if picture is not None:
        from clusterlora.report.data_picture import draw_data

        draw_data(summary, picture, study.data.path or study.data.source)
        if not as_json:
            click.echo(f"picture                  {picture}")
    if refusal is not None:
        raise BadData(f"the data can be read, but not trained on:\n{refusal}")


@data.command(epilog="\b\nExample:\n  clusterlora data signal --data people.jsonl --set clustering.k=8\n")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def signal(as_json: bool, **options: Any) -> None:
    """Estimate, before any training, how much adapters per persona and per cluster can gain on the data of a study."""
    from clusterlora.clustering.summary import sentence
    from clusterlora.gate.judged_cluster import words
    from clusterlora.persona_signal.summary import markdown
    from clusterlora.stages.persona_signal import signal_of_data

    study = study_from(options)
    with console_log() as log:
        persona_signal, clustering = signal_of_data(study, log)
    if as_json:
        clusters = {"algorithm": clustering.algorithm, "sizes": clustering.sizes, "quality": dict(clustering.quality)}
        click.echo(json.dumps(asdict(persona_signal) | {"clusters": clusters}))
        return
    click.echo(markdown(persona_signal))
    click.echo(f"{sentence(clustering)} {words(clustering.sizes, study.clustering)}")


def _fit(study: "Study") -> "PromptFit":
    """Return what counts how dialogues fit the study's base model."""
    from clusterlora.data.load import load, read
    from clusterlora.errors import BadData
    from clusterlora.models.base import usable_base
    from clusterlora.settings import chosen_base
    from clusterlora.stages.base_checks import decided, fit_of

    base = usable_base(chosen_base(study))
    try:
        personas = load(study.data).personas
    except BadData:  # the summary tells why it cannot be split
        personas = read(study.data).dataset.personas
    return fit_of(decided(study, "float32", base, personas), base.tokenizer)


def _print_summary(summary: "DataSummary") -> None:
    """Print counts as numbers, and distributions as a sparkline with their percentiles."""
    from clusterlora.data.summary import Distribution
    from clusterlora.report.data_picture import sparkline

    for field in fields(summary):
        value = getattr(summary, field.name)
        if field.name == "refusal" or value is None:
            continue
        if isinstance(value, Distribution):
            value = f"{value.minimum} {sparkline(value)} {value.maximum}   median {value.median}, 5 % {value.p5}, 95 % {value.p95}"
        elif field.name == "repetitive":
            value = ", ".join(f"{persona_id} ({n})" for persona_id, n in summary.repetitive) or "nobody"
        click.echo(f"{field.name.replace('_', ' '):<24} {value}")


@data.command(epilog="\b\nExample:\n  clusterlora data synthesize people/ --set data.synthetic.seed=7\n")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@study_options
def synthesize(folder: Path, as_json: bool, **options: Any) -> None:
    """Write synthetic personas to FOLDER: characters, routines, sessions, and the planted ground truth."""
    from clusterlora.data.synthetic import generate, write_population

    settings = study_from(options).data.synthetic
    write_population(generate(settings), folder)
    record = {"folder": str(folder), "personas": sum(settings.cluster_sizes), "dialogues": settings.dialogues}
    click.echo(json.dumps(record) if as_json else "wrote {personas} personas with {dialogues} dialogues each to {folder}".format(**record))
