"""`clusterlora study cost`: what a study cost, by phase and device."""

import json
from dataclasses import asdict, replace

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import FiniteRange
from clusterlora.cli.printing import echo_columns

_EXAMPLES = """\b
Examples:
  clusterlora study cost demo
  clusterlora study cost demo --gpu-hour-price 2.5 --cpu-hour-price 0.1      at other prices than its settings'
"""


@click.command("cost", epilog=_EXAMPLES)
@click.argument("name")
@click.option("--gpu-hour-price", type=FiniteRange(0, 1e6), help="Price of an hour of a GPU.  [default: runtime.gpu_hour_price]")
@click.option("--cpu-hour-price", type=FiniteRange(0, 1e6), help="Price of an hour without a GPU.  [default: runtime.cpu_hour_price]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cost(name: str, gpu_hour_price: float | None, cpu_hour_price: float | None, as_json: bool) -> None:
    """Print the hours of each device by phase, the energy that devices told, and what it cost. Failed attempts count, too."""
    from clusterlora.progress.cost import study_cost
    from clusterlora.report.data import SPENT_COLUMNS
    from clusterlora.results.costs import spent_rows

    stores = open_local_stores()
    runtime = stores.studies.study(name).runtime
    if gpu_hour_price is not None:
        runtime = replace(runtime, gpu_hour_price=gpu_hour_price)
    if cpu_hour_price is not None:
        runtime = replace(runtime, cpu_hour_price=cpu_hour_price)
    found = study_cost(stores.studies.device_use(name), runtime)
    if as_json:
        uses = [asdict(use) | {"money": found.money(use)} for use in found.uses]
        totals = {"device_seconds": found.seconds, "kwh": found.kwh, "money": found.total, "currency": found.currency}
        click.echo(json.dumps({"study": name, **totals, "uses": uses}))
        return
    echo_columns(tuple(column.upper() for column in SPENT_COLUMNS), spent_rows(found))
    for sentence in found.sentences:
        click.echo(sentence)
