"""`clusterlora study diff`: two studies side by side."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.printing import echo_columns

if TYPE_CHECKING:
    from clusterlora.results.study_diff import Difference, StudyDiff

_WIDEST = 48


@click.command("diff", epilog="\b\nExample:\n  clusterlora study diff demo try-2\n")
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(first: str, second: str, as_json: bool) -> None:
    """Print what differs between two studies, and their scores on the test items that both answered.

    A difference is SECOND minus FIRST over the same people and items, with its 95 % interval and Holm's correction over the methods. An
    item counts as the same where the whole dialogue is a test dialogue of both studies, word for word.
    """
    from clusterlora.results.study_diff import study_diff

    found = study_diff(first, second, open_local_stores())
    if as_json:
        click.echo(json.dumps(asdict(found) | {"data": asdict(found.data) | {"sentences": found.data.sentences}}))
        return
    _section(found, "SETTING", found.settings, "no setting differs")
    _section(found, "FOUND", found.facts, "clusters, gate and champion are alike")
    for sentence in (*found.data.sentences, _adapters(found), *found.notes):
        click.echo(sentence)
    if found.scores.methods:
        click.echo(f"\n{found.scores.n_items} shared test items of {found.scores.n_personas} people:")
        echo_columns(("METRIC", "METHOD", found.first, found.second, "DIFFERENCE", "95% INTERVAL", "P (HOLM)", "SECOND IS"), _scores(found))


def _section(found: "StudyDiff", heading: str, differences: "tuple[Difference, ...]", nothing: str) -> None:
    echo_columns((heading, found.first, found.second), [(one.name, _cell(one.first), _cell(one.second)) for one in differences])
    click.echo("" if differences else f"{nothing}\n")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _adapters(found: "StudyDiff") -> str:
    n, (n_first, n_second) = len(found.shared_adapters), found.n_adapters
    return f"Adapters: {n_first} and {n_second}, of which {n} are the same trainings{f' ({_few(found.shared_adapters)})' if n else ''}."


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _scores(found: "StudyDiff") -> list[tuple[str, ...]]:
    from clusterlora.evaluation.metrics import METRICS

    rows: list[tuple[str, ...]] = []
    for one in found.scores.methods:
        metric, d = METRICS[one.metric], one.difference
        method = one.method if one.method == one.other_method else f"champions: {one.method}, {one.other_method}"
        interval = f"[{metric.format(d.ci_low, signed=True)}, {metric.format(d.ci_high, signed=True)}]"
        p = "<0.001" if d.p_holm < 0.001 else f"{d.p_holm:.3f}"
        means = metric.format(one.first), metric.format(one.second)
        rows.append((one.metric, method, *means, metric.format(d.mean, signed=True), interval, p, d.outcome))
    return rows
