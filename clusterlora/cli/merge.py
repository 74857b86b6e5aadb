"""`clusterlora merge`: adapters of single persons, merged per cluster without training."""

import json
from dataclasses import replace
from typing import Any

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import FiniteRange
from clusterlora.cli.printing import print_whole
from clusterlora.cli.progress import console_log

_EXAMPLES = """\b
Examples:
  clusterlora merge demo                              as the study's settings say: average
  clusterlora merge demo --kind ties --density 0.3    another merge is a study of its own: demo-ties-0.3
  clusterlora study import --name mine --personal models/personas ... && clusterlora merge mine
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.option("--kind", type=click.Choice(["average", "ties", "dare"]), help="How updates are combined.  [default: the study's]")
@click.option("--density", type=FiniteRange(0, 1, min_open=True), help="Share of each update that is kept.  [default: the kind's]")
@click.option("--json", "as_json", is_flag=True, help="Print the study that holds the merge, and one record per method, as JSON.")
def merge(name: str, kind: Any, density: float | None, as_json: bool) -> None:
    """Merge the personal adapters of study NAME per cluster, and compare the merge with the study's other methods.

    Imported personal adapters are merged where there are any (clusterlora study import --personal), else those trained here. Nothing is
    trained; the merged adapters are evaluated on the test items, compared and registered.
    """
    from clusterlora.comparison.table import console, summary_records
    from clusterlora.method_settings import MergeSettings
    from clusterlora.requests import EvaluationRequest, MergeRequest
    from clusterlora.stages.compare import compare_study, figure_path
    from clusterlora.stages.evaluate import evaluate
    from clusterlora.stages.merge import merge as merge_study
    from clusterlora.stages.register import register_models

    stores = open_local_stores(keep_services_up=True)
    merging = stores.studies.study(name).merging
    if kind is not None:
        merging = MergeSettings(kind=kind)
    if density is not None:
        merging = replace(merging, density=density)
    with console_log() as log:
        merged = merge_study(MergeRequest(study_name=name, merging=merging), stores, log)
        evaluate(EvaluationRequest(study_name=merged), stores, log)
        comparison = compare_study(merged, stores, log)
        register_models(merged, stores, log)
    if as_json:
        click.echo(json.dumps({"study": merged, "methods": summary_records(comparison)}))
        return
    print_whole(console(comparison))
    click.echo(f"study    {merged}")
    click.echo(f"adapters {stores.folder(merged) / 'models'}")
    click.echo(f"figure   {figure_path(stores, merged)}")
