"""`clusterlora data`: validate and preview dialogues, measure their persona signal, or generate synthetic ones."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.progress import console_log
from clusterlora.errors import harmless, printable

if TYPE_CHECKING:
    from clusterlora.data.summary import DataSummary, TokenSummary
    from clusterlora.ports.run_log import RunLog
    from clusterlora.settings import Study


_TOLD_APART = ("refusal", "tokens", "unused", "labels", "similar_labels", "number_and_text", "unread")
"""Fields of a summary that are not a line of their own each, or have words of their own."""
_NAMES = {
    "described": "with a description",
    "duplicates": "repeated by a person",
    "beginnings": "parts of longer ones",
    "overlapping": "share a conversation",
    "near_twins": "as another person's",
    "written_labels": "answered in a prompt",
    "repetitive": "who repeats most",
    "other_shares": "other shares than asked",
    "lose_turns": "lose their oldest turns",
    "do_not_fit": "cannot be asked",
}
_MOST_NAMED, _MOST_LABELS = 5, 20


@click.group(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl\n")
def data() -> None:
    """Validate and preview dialogues, measure their persona signal, or generate synthetic ones."""


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
    click.echo(f"data           {printable(str(people))}\nconfiguration  {printable(str(toml))}")
    click.echo(harmless(f"check it with: clusterlora data validate --config {toml}\nrun it with:   clusterlora study run --config {toml}"))


@data.command(epilog="\b\nExample:\n  clusterlora data validate --data people.jsonl --dialogues 20 --picture people.png\n")
@study_options
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the data into this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def validate(picture: Path | None, as_json: bool, **options: Any) -> None:
    """Read, check and split the data of a study, and print a summary. Every problem is listed with file, line and fix.

    Every dialogue is accounted for: used in train, val or test, or left out and why. With --base-model lengths are counted in its tokens,
    with the settings that hold them, and base and embedding model are checked against the language of the answers.
    """
    from clusterlora.comparison.power import expected_clusters, study_power, why_no_power
    from clusterlora.data.validate import examine
    from clusterlora.errors import BadData
    from clusterlora.planning.ladder import REFERENCE

    study = study_from(options)
    with console_log() as log:
        summary, against = _with_base(study, log) if study.model.base else (examine(study.data), [])
    refusal = summary.refusal
    power = study_power(study.methods, REFERENCE, n := summary.personas, clusters=expected_clusters(study.clustering, n))
    if as_json:
        click.echo(json.dumps(asdict(summary) | {"power": asdict(power) if power else None, "warnings": against}))
    else:
        _print_summary(summary)
        for sentence in against:
            click.echo(f"{'warning':<24} {sentence}")
        click.echo(f"{'power':<24} {power.sentence if power else why_no_power(study.methods, REFERENCE)}")
    if picture is not None:
        from clusterlora.report.data_picture import draw_data

        draw_data(summary, picture, study.data.path or study.data.source)
        if not as_json:
            click.echo(f"picture                  {picture}")
    if refusal is not None:
        raise BadData(f"the data can be read, but not trained on:\n{refusal}")


@data.command(epilog="\b\nExample:\n  clusterlora data preview --data people.jsonl --base-model Qwen/Qwen2.5-0.5B-Instruct\n")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print the previews as JSON.")
def preview(as_json: bool, **options: Any) -> None:
    """Show three dialogues as the base model reads them: system text, prompts, answers, what is learnt, and what is cut.

    In a terminal learnt text is green, and all else is dim; elsewhere learnt text stands between marks.
    """
    from clusterlora.cli.local_stores import open_local_stores
    from clusterlora.data.preview import LEARNT, previews
    from clusterlora.errors import harmless
    from clusterlora.stages.base_checks import fitted_dataset
    from clusterlora.stages.prepare import as_prepared

    settings, base = as_prepared(study_from(options), open_local_stores())
    dataset, _ = fitted_dataset(settings, base.tokenizer)
    dialogues = previews(settings, dataset.personas, base.tokenizer)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in dialogues]))
        return
    colours = sys.stdout.isatty()
    how = "learnt text is green" if colours else f"learnt text stands between {LEARNT[0]} and {LEARNT[1]}"
    click.echo(f"as base model {settings.model.base} reads them; {how}")
    for one in dialogues:
        click.echo(f"\n{one.heading}")
        shown = [(harmless(text), learnt) for text, learnt in one.parts]
        parts = [click.style(text, fg="green") if learnt else click.style(text, dim=True) for text, learnt in shown]
        click.echo("".join(parts) if colours else harmless(one.marked))


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


def _with_base(study: "Study", log: "RunLog") -> "tuple[DataSummary, list[str]]":
    """Return the summary of a study's data as its base model takes them, and what speaks against its models on these data."""
    from dataclasses import replace

    from clusterlora.chat.template import unread_arguments
    from clusterlora.data.validate import examine
    from clusterlora.errors import BadData
    from clusterlora.models.base import usable_base
    from clusterlora.settings import chosen_base
    from clusterlora.stages.base_checks import decided, fit_of, fitted_dataset, people_of, summary_of_tokens
    from clusterlora.stages.model_fit import findings

    base = usable_base(chosen_base(study))
    personas = people_of(study)
    settings = decided(study, "float32", base, personas)
    summary = examine(study.data, fit_of(settings, base.tokenizer))
    if summary.refusal is None:
        try:
            # As the study will have them: without those that are skipped.
            personas = fitted_dataset(settings, base.tokenizer)[0].personas
        except BadData as refusal:
            summary = replace(summary, refusal=str(refusal))
    against = [sentence for of_model in findings(settings, base, personas, log) for sentence in (*of_model.refusals, *of_model.warnings)]
    if unread := unread_arguments(base.tokenizer, study.model.template_arguments):
        against.append(f"model.template_arguments: the chat template of {base.name} never mentions {', '.join(unread)}")
    return replace(summary, tokens=summary_of_tokens(settings, base, personas)), against


def _print_summary(summary: "DataSummary") -> None:
    """Print counts as numbers, and distributions as a sparkline with their percentiles."""
    from clusterlora.data.load import unread_words
    from clusterlora.data.similar_ids import described
    from clusterlora.data.summary import Distribution
    from clusterlora.report.data_picture import sparkline

    for field in fields(summary):
        value = getattr(summary, field.name)
        if field.name in _TOLD_APART or value is None:
            continue
        if isinstance(value, Distribution):
            value = f"{value.minimum} {sparkline(value)} {value.maximum}   median {value.median}, 5 % {value.p5}, 95 % {value.p95}"
        elif field.name == "repetitive":
            value = ", ".join(f"{persona_id} ({n})" for persona_id, n in summary.repetitive) or "nobody"
        elif field.name == "similar_ids":
            alike = described(summary.similar_ids)
            value = f"{alike}: people of their own; if they are one person, write the ids alike" if alike else "nobody"
        elif field.name == "near_twins" and value:
            value = (
                f"{value} of {summary.test} test dialogues, nearly or in an exchange: a leak for unified and clusters, which learn from "
                "several people"
            )
        elif field.name == "written_labels" and value:
            value = (
                f"{value} of {summary.test} test dialogues, in one to train on: a leak; let prompts list only what no other row asks about"
            )
        elif field.name == "other_shares":
            value = f"{len(value)} personas (first: {value[0]})" if value else "nobody"
        name = _NAMES.get(field.name, field.name.replace("_", " "))
        click.echo(f"{name:<24} {value}")
        if field.name == "test":
            for reason, n_dialogues in summary.unused:
                click.echo(f"{'not used':<24} {n_dialogues}: {reason}")
    if summary.number_and_text:
        ids = f"{described([summary.number_and_text[:_MOST_NAMED]])}: stand as a number and as a text, and are read as one person each"
        click.echo(f"{'number and text':<24} {ids}")
    if summary.unread:
        click.echo(f"{'not read':<24} {unread_words(summary.unread, _MOST_LABELS)}")
    if summary.labels:
        _print_labels(summary)
    if summary.tokens is not None:
        _print_tokens(summary.tokens, summary.examples)


def _print_labels(summary: "DataSummary") -> None:
    """Print every label with its number of answers, the most frequent first, and those that look alike."""
    from clusterlora.data.similar_ids import described, visible

    shown = ", ".join(f"{visible(label)} {n}" for label, n in summary.labels[:_MOST_LABELS])
    more = f" and {len(summary.labels) - _MOST_LABELS} more" if len(summary.labels) > _MOST_LABELS else ""
    click.echo(f"{'labels':<24} {len(summary.labels)}: {shown}{more}")
    if summary.similar_labels:
        alike = f"{described(summary.similar_labels)}: labels of their own; if they mean the same, write them alike"
        click.echo(f"{'similar labels':<24} {alike}")


def _print_tokens(tokens: "TokenSummary", n_examples: int) -> None:
    """Print lengths in tokens, how many examples and answers exceed the study's limits, and the settings that hold them."""
    from clusterlora.data.lengths import COVERED
    from clusterlora.report.data_picture import sparkline

    for name, lengths in (("prompt tokens", tokens.prompt_tokens), ("answer tokens", tokens.answer_tokens)):
        shown = f"{lengths.minimum} {sparkline(lengths)} {lengths.maximum}   median {lengths.median}, 5 % {lengths.p5}, 95 % {lengths.p95}"
        click.echo(f"{name:<24} {shown}")
    length = (tokens.max_length, "model.max_length", tokens.needed_max_length)
    answer = (tokens.max_new_tokens, "evaluation.max_new_tokens", tokens.needed_max_new_tokens)
    of_length = (tokens.needed_holds_examples, "95 % of train and everybody's last question", tokens.needed_asks_all)
    of_answer = (tokens.needed_holds_answers, "95 % of train", True)
    for name, n_over, (limit, setting, needed), (share, whole, is_whole) in (
        ("examples too long", tokens.over_length, length, of_length),
        ("answers cut", tokens.answers_cut, answer, of_answer),
    ):
        set_it = f"--set {setting}={needed}"
        if is_whole and share >= COVERED:
            fix = f"; {whole} need {set_it}"
        else:
            fix = f"; {set_it}, the most that base and memory allow, holds {share:.1%} of train"
        fix = fix if n_over and needed > limit else ""
        click.echo(f"{name:<24} {n_over} of {n_examples} ({n_over / max(n_examples, 1):.0%}) with {setting} = {limit}{fix}")


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
    click.echo(
        json.dumps(record)
        if as_json
        else "wrote {personas} personas with {dialogues} dialogues each to {folder}".format(**record | {"folder": printable(str(folder))})
    )
