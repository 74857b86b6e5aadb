"""`clusterlora study privacy`: what shared adapters have memorised, before anybody asks."""

import json
from dataclasses import asdict

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import N_WORKERS
from clusterlora.cli.orchestration import deployments, services_home
from clusterlora.cli.progress import console_log, echo_stderr

_EXAMPLES = """\b
Examples:
  clusterlora study privacy demo                   membership inference and verbatim copies: nothing is trained
  clusterlora study privacy demo --canaries 10     exposure too: trains the study demo-canaries first, with 10 planted codes
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option(
    "--canaries",
    type=click.IntRange(1, 1000),
    help="Run the study NAME-canaries first, NAME with so many random codes of invented people in train dialogues.",
)
@click.option(
    "--prompts", type=click.IntRange(1, 100_000), default=300, show_default=True, help="Test and train prompts that each answers."
)
@click.option("--words", type=click.IntRange(2, 1000), default=8, show_default=True, help="Words in a row that count as a repetition.")
@click.option("--workers", type=N_WORKERS, help="Worker processes for training, with --canaries.  [default: as last asked for]")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
def privacy(name: str, canaries: int | None, prompts: int, words: int, workers: int | None, as_json: bool) -> None:
    """Measure what the shared adapters and the champion of study NAME have memorised; its summary and report are written anew.

    Membership inference asks of train and held-out dialogues of the same people whether the adapter was trained on them. Verbatim copies
    are words in a row of train answers in what test and train prompts are answered with. Canaries would change what is compared, so they
    are planted in a copy of the study, which takes as long as the study. A copy that is interrupted goes on with the same command.
    """
    from clusterlora.evaluation.memorisation_words import sentence, tables
    from clusterlora.stages.privacy import canary_copy, measure_privacy

    stores = open_local_stores(keep_services_up=True)
    if canaries is not None:
        copy = canary_copy(name, canaries, stores)
        ended = deployments("launch").run_study(copy, home=services_home(), workers=workers, stay=False, log=echo_stderr, results=False)
        if not ended.completed:
            echo_stderr(f"study {copy.name} did not end; run the same command again to go on with it")
            raise click.exceptions.Exit(1)
        with console_log() as log:
            measure_privacy(copy.name, stores, log, n_prompts=prompts, n_words=words)
    with console_log() as log:
        memory = measure_privacy(name, stores, log, n_prompts=prompts, n_words=words)
    if as_json:
        click.echo(json.dumps({"study": name, "sentence": sentence(memory), **asdict(memory)}))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from clusterlora.cli.printing import print_whole

    for title, note, header, rows, numeric in tables(memory):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption=note, caption_justify="left")
        for heading, is_number in zip(header, numeric, strict=True):
            table.add_column(heading, justify="right" if is_number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        print_whole(table)
    click.echo(sentence(memory))
    click.echo(f"summary  {stores.folder(name) / 'results' / 'summary.md'}")
