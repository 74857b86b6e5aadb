"""`clusterlora train`, `evaluate` and `compare`: the steps of a study in this process, without servers."""

import json
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.choose_base import with_base
from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.options import study_from, study_options
from clusterlora.cli.progress import ConsoleLog, console_log
from clusterlora.errors import UnknownName, counted

if TYPE_CHECKING:
    from clusterlora.planning.study_state import StudyState
    from clusterlora.planning.work_plan import WorkPlan
    from clusterlora.ports.stores import Stores
    from clusterlora.settings import Study

_TRAIN_EXAMPLES = """\b
Examples:
  clusterlora train --cluster 0                               the mission's first step
  clusterlora train --cluster 0 --epochs 2 --name try-2       other settings need another name
  clusterlora train --adapter unified
  tail -f studies/demo/logs/cluster_0_training.log            follow it from another terminal
"""

_EVALUATE_EXAMPLES = """\b
Examples:
  clusterlora evaluate --cluster 0      against unified on its val items, with the gate's verdict
  clusterlora evaluate --cluster 3      the same verdict for another cluster; the study ignores it
  clusterlora evaluate                  every trained method on everyone's test items
"""


@click.command(epilog=_TRAIN_EXAMPLES)
@click.option("--cluster", type=click.IntRange(min=0), help="Train this cluster's adapter.")
@click.option("--adapter", help="Train this adapter: unified, cluster-03, persona-0007.  [default: all that the study needs]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Dialogues per optimiser step.")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Dialogues per forward pass; less memory, same result.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the train dialogues.")
@click.option("--json", "as_json", is_flag=True, help="Print the trained adapters and their folder as JSON.")
@study_options
def train(
    cluster: int | None,
    adapter: str | None,
    batch_size: int | None,
    micro_batch: int | None,
    epochs: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train adapters of a study in this process. Adapters that are trained are skipped."""
    if cluster is not None and adapter is not None:
        raise click.UsageError("--cluster and --adapter both select what to train; use one of them")
    study = study_from(options, recipe__batch_size=batch_size, recipe__epochs=epochs, runtime__micro_batch=micro_batch)
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.training_groups import groups_of
    from clusterlora.planning.work_plan import work_plan
    from clusterlora.stages.remaining import train_groups

    stores = open_local_stores(keep_services_up=True)
    study = with_base(study, stores)
    with console_log() as log:
        _prepare_study(study, stores, log)
        state = read_state(study.name, stores)
        plan = work_plan(state)
        names = _selected_adapters(plan, study.name, cluster, adapter)
        n_trained = train_groups(study, chain.from_iterable(groups_of(state, plan, names)), stores, log)
    folder = stores.folder(study.name)
    if as_json:
        click.echo(json.dumps({"study": study.name, "adapters": names, "trained": n_trained, "folder": str(folder)}))
        return
    n_before = len({plan.keys[name] for name in plan.with_needs(names)}) - n_trained
    click.echo(f"{counted(n_trained, 'adapter')} trained, {n_before} trained before" if n_before else "trained")
    click.echo(f"adapters {folder / 'models'}")
    click.echo(f"logs     {folder / 'logs'}")


@click.command(epilog=_EVALUATE_EXAMPLES)
@click.option("--cluster", type=click.IntRange(min=0), help="Judge this cluster as the gate does.  [default: all methods on test]")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict, or the number of answers, as JSON.")
@study_options
def evaluate(cluster: int | None, as_json: bool, **options: Any) -> None:
    """Generate and score answers with the trained adapters. Stored answers are not generated again."""
    from clusterlora.requests import EvaluationRequest
    from clusterlora.stages.evaluate import evaluate as evaluate_part

    study = study_from(options)
    stores = open_local_stores(keep_services_up=True)
    study = with_base(study, stores)
    with console_log() as log:
        _prepare_study(study, stores, log)
        if cluster is None:
            n_answers = evaluate_part(EvaluationRequest(study_name=study.name), stores, log)
            message = f"{n_answers} answers generated and scored; compare them: clusterlora compare --name {study.name}"
            click.echo(json.dumps({"study": study.name, "answers": n_answers}) if as_json else message)
            return
        from clusterlora.planning.ladder import decided_rung
        from clusterlora.planning.study_state import read_state
        from clusterlora.planning.work_plan import work_plan

        state = read_state(study.name, stores)
        rung = decided_rung(state).name
        _require(state, cluster)
        evaluate_part(EvaluationRequest(study_name=study.name, part="gate", rung=rung, cluster=cluster), stores, log)
    from clusterlora.gate.report import markdown
    from clusterlora.stages.judge import judge_rung, verdict_on

    is_judged = cluster == work_plan(state).judged
    verdict = judge_rung(study.name, rung, stores) if is_judged else verdict_on(state, rung, cluster, stores)
    click.echo(json.dumps({"study": study.name, "passed": verdict.passed, **asdict(verdict)}) if as_json else markdown(verdict))


@click.command(epilog="\b\nExample:\n  clusterlora compare --json | head\n")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record per method.")
@study_options
def compare(as_json: bool, **options: Any) -> None:
    """Compare all evaluated methods: table, intervals, figure and verdict."""
    from clusterlora.comparison.table import console, summary_records
    from clusterlora.stages.compare import compare_study, figure_path

    name = options["name"] or study_from(options).name
    stores = open_local_stores(keep_services_up=True)
    with console_log() as log:
        comparison = compare_study(name, stores, log)
    if as_json:
        click.echo(json.dumps(summary_records(comparison)))
        return
    from clusterlora.cli.printing import print_whole
    from clusterlora.metadata import ImportedScores
    from clusterlora.results.imported_scores import imported_markdown

    print_whole(console(comparison))
    if imported_scores := imported_markdown(stores.studies.metadata(name, ImportedScores)):
        click.echo(imported_scores)
    click.echo(f"figure   {figure_path(stores, name)}")


def _prepare_study(study: "Study", stores: "Stores", log: ConsoleLog) -> None:
    """Prepare and cluster the study, so that its adapters can be planned. Finished steps are skipped; its status does not change."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.training_groups import groups_before_clustering
    from clusterlora.stages.cluster import cluster_study
    from clusterlora.stages.prepare import prepare_study
    from clusterlora.stages.remaining import train_groups

    prepare_study(study, stores, log, running=False)
    if study.minutes is not None and (state := read_state(study.name, stores)).cut is None and state.clustering is None:
        log.note(f"minutes = {study.minutes:g}: single steps leave nothing out; `clusterlora study run` would, before people are clustered")
    train_groups(study, chain.from_iterable(groups_before_clustering(read_state(study.name, stores))), stores, log)
    cluster_study(study.name, stores, log)


def _selected_adapters(plan: "WorkPlan", study_name: str, cluster: int | None, adapter: str | None) -> tuple[str, ...]:
    from clusterlora.planning.work_plan import judged_adapters

    if adapter is None and cluster is None:
        return tuple(plan.specs)
    name = adapter if adapter is not None else judged_adapters(plan, cluster)[0]
    if name not in plan.specs:
        shown = [name for name, spec in plan.specs.items() if not spec.is_one_of_many]
        n_more = len(plan.specs) - len(shown)
        more = f", and {n_more} of single persons or small groups" if n_more else ""
        raise UnknownName(f"study {study_name} has no adapter {name!r}; known: {', '.join(shown)}{more}")
    return (name,)


def _require(state: "StudyState", cluster: int) -> None:
    """Raise UnknownName unless the cluster's adapter and unified are trained."""
    from clusterlora.planning.ladder import REFERENCE
    from clusterlora.planning.work_plan import judged_adapters, trained_adapters, work_plan

    plan = work_plan(state)
    trained = trained_adapters(state, plan)
    for name, option in zip(judged_adapters(plan, cluster), (f"--cluster {cluster}", f"--adapter {REFERENCE}"), strict=True):
        if name not in trained:
            raise UnknownName(f"study {state.name} has not trained {name} yet; run: clusterlora train {option} --name {state.name}")
