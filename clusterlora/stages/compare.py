"""Compare all methods on the test items and write the study's results folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from clusterlora.clustering.summary import sentence as clusters_sentence
from clusterlora.comparison.appendix import appendix
from clusterlora.comparison.appendix_words import markdown as appendix_markdown
from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.figure import draw
from clusterlora.comparison.margin import margin_of
from clusterlora.comparison.move import decide, left_elsewhere
from clusterlora.comparison.new_personas_words import markdown as new_personas_markdown
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.sentence import claims_personalisation
from clusterlora.comparison.sentence import sentence as comparison_sentence
from clusterlora.comparison.table import write_tables
from clusterlora.data.leaks import leak_note
from clusterlora.durable import write_durably
from clusterlora.errors import BadData
from clusterlora.evaluation.domain import domain_metrics, with_domain_scores
from clusterlora.evaluation.memorisation import Memorisation
from clusterlora.evaluation.memorisation_words import markdown as memorisation_markdown
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.shown import ShownExchanges, shown_by_method
from clusterlora.gate.report import ending
from clusterlora.metadata import ComparisonSummary, DataWarnings, ImportedScores, MethodScore
from clusterlora.methods import METHODS
from clusterlora.planning.family import decided_before, moves_before
from clusterlora.planning.ladder import REFERENCE, decided_rung, gated, rungs
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.cost import study_cost
from clusterlora.progress.estimate import cut_sentence
from clusterlora.progress.timing import timed
from clusterlora.results.costs import costs_markdown, method_costs
from clusterlora.results.evaluation_rows import evaluation_rows
from clusterlora.results.imported_scores import imported_markdown
from clusterlora.results.new_personas import new_personas
from clusterlora.results.refresh import LAST_CHAMPION, refresh_markdown, refresh_rows, split_by_news
from clusterlora.results.report import write_map, write_report
from clusterlora.results.tuning import tuning_markdown, tuning_sentence
from clusterlora.settings import Study
from clusterlora.stages.pairwise import judged
from clusterlora.stages.scale import scale
from clusterlora.values import AdapterComposition, EvaluationRow


def compare_study(study_name: str, stores: Stores, log: RunLog) -> Comparison:
    """Return the comparison; its tables, figure and report are in `results/` under the study's folder and in the tracker.

    Raises:
        BadData: nothing has been evaluated yet.
    """
    state = read_state(study_name, stores)
    study, plan = state.settings, work_plan(state)
    log.phase("compare", total=1, unit="comparison")
    with timed(stores, study_name, "compare"):
        done = compared(state, plan, stores, log)
        state, comparison, rows, of_judge, found = done.state, done.comparison, done.rows, done.judge, done.found
        folder = stores.folder(study_name) / "results"
        newcomers = new_personas(state, plan, stores)
        note = leak_note(state.dataset.personas, labelled=study.data.task != "text")
        warnings = (stores.studies.metadata(study_name, DataWarnings) or DataWarnings()).sentences
        left_out = cut_sentence(state)
        no_clusters = [clusters_sentence(state.clustering)] if state.clustering and len(state.clustering.members) < 2 else []
        notes = (
            *([of_judge] if of_judge else []),
            *([left_out] if left_out else []),
            *no_clusters,
            *([note] if note else []),
            *(f"Warning: {one}." for one in warnings),
        )
        below = replace(appendix(rows, comparison, np.random.default_rng(0)), judge=of_judge)
        more = (
            (refresh_markdown(found) if found else "")
            + "".join(f"\n{one}\n" for one in notes)
            + tuning_markdown(state)
            + (new_personas_markdown(newcomers) if newcomers else "")
        )
        cost = study_cost(stores.studies.device_use(study_name), study.runtime)
        more += costs_markdown(comparison, method_costs(state, stores, plan, comparison, cost), cost)
        memory = stores.studies.metadata(study_name, Memorisation)
        more += memorisation_markdown(memory) if memory else ""
        more += appendix_markdown(below, comparison)
        write_tables(comparison, rows, folder, more=more)
        if memory is not None:
            write_durably(folder / "privacy.json", (json.dumps(asdict(memory), indent=2) + "\n").encode())
        draw(comparison, figure_path(stores, study_name), title=study_name)
        if state.clustering:
            # The cluster step has written it, but perhaps on another machine.
            write_map(study_name, stores, state.clustering)
        write_report(state, plan, stores, comparison, rows, newcomers, below, found)
        if imported := imported_markdown(stores.studies.metadata(study_name, ImportedScores)):
            write_durably(folder / "imported.md", imported.lstrip().encode())
        means = {f"{result.method}/{name}": value for result in comparison.methods for name, value in result.means.items()}
        stores.tracker.log_results(study_name, folder=folder, metrics=means, description=_description(study, comparison.sentence))
    if state.moved is not None:
        stores.studies.save_metadata(study_name, state.moved)
    stores.studies.save_metadata(study_name, _summary(comparison, state))
    log.advance(1)
    return comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison with the scored rows it is made of, what the judge is worth, and what a refresh found; `state` has whether it moved."""

    comparison: Comparison
    rows: list[EvaluationRow]
    judge: str | None
    found: tuple[tuple[str, str], ...]
    state: StudyState


def compared(state: StudyState, plan: WorkPlan, stores: Stores, log: RunLog) -> Compared:
    """Return the comparison of what a study has answered; no results are written.

    Raises:
        BadData: nothing has been evaluated yet.
    """
    study = state.settings
    rows = evaluation_rows(state, plan, stores)
    if not rows:
        raise BadData(f"study {state.name} has no test answers; run its evaluate step first")
    rows, of_judge = judged(study, rows, stores, log)
    # A judge that failed has scored nothing.
    metrics = [name for name in study.evaluation.metrics if not METRICS[name].pairwise or name in rows[0].scores]
    beside = _beside_headline(study, rows, metrics)
    rows = with_domain_scores(rows, [name for name in beside if not METRICS[name].pairwise])
    rows, old_rows = split_by_news(state, rows, decided_before(study, stores)) if state.start else (rows, [])
    reference_points = scale(state, stores, tuple(dict.fromkeys(row.persona_id for row in rows)))
    compare = partial(
        compare_methods,
        headline=study.evaluation.headline,
        higher_is_better={name: METRICS[name].higher_is_better for name in dict.fromkeys((*metrics, *beside))},
        draws=study.evaluation.bootstrap_draws,
        reference=LAST_CHAMPION if state.start else REFERENCE,
        floor=reference_points.floor,
        floor_same_prompt=reference_points.floor_same_prompt,
        margin={name: margin_of(name, study.evaluation.equivalence_margin, rows) for name in (study.evaluation.headline, *beside)},
        gate=_gate(state),
        tuning=tuning_sentence(state),
        beside=beside,
        second_headline=study.evaluation.second_headline,
    )
    comparison = compare(rows, rng=np.random.default_rng(0), shown=_shown(state, rows, stores))
    found: tuple[tuple[str, str], ...] = ()
    if state.start is not None:
        on_old = compare(old_rows, rng=np.random.default_rng(0)) if old_rows else None
        # Everybody may have been clustered anew into one cluster, which cluster methods do not outlive.
        method = state.start.method if state.start.method in study.methods else REFERENCE
        moved = decide(comparison, on_old, method, moves_before(state.name, stores))
        if state.moved is not None and state.moved.elsewhere is not None:
            moved = left_elsewhere(moved, state.moved.elsewhere)
        state = replace(state, moved=moved)
        # What a refresh ends with: the alias, not whom the comparison alone would have chosen.
        champion = moved.challenger if moved.moved else comparison.reference
        comparison = replace(comparison, champion=champion, no_champion=None if comparison.has_verdict else comparison.no_champion)
        of_new = comparison.sentence if comparison.has_verdict else comparison_sentence(comparison)
        comparison = replace(comparison, sentence=f"The champion {'moves' if moved.moved else 'stays'}: {moved.reason}. {of_new}")
        found = refresh_rows(state, plan, rows, old_rows, stores)
    return Compared(comparison, rows, of_judge, found, state)


def _shown(state: StudyState, rows: Sequence[EvaluationRow], stores: Stores) -> dict[str, ShownExchanges]:
    """Return what the prompts of methods with retrieval show, by method."""
    chosen: dict[str, dict[AdapterComposition, None]] = {}
    answered = {row.method for row in rows}
    for route in sorted(stores.studies.routes(state.name), key=lambda route: route.seed):
        if route.method in answered and METHODS[route.method].retrieves:
            chosen.setdefault(route.method, {})[route.composition] = None
    return shown_by_method(rows, {method: chosen[method] for method in METHODS if method in chosen})


def _beside_headline(study: Study, rows: Sequence[EvaluationRow], metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to be told beside the headline: the second headline, and those of the data's domain."""
    second = study.evaluation.second_headline
    # A study whose metrics read no answers has none: they would all be wrong.
    has_answers = any(METRICS[name].reads_answers for name in metrics)
    pairwise = (name for name in metrics if METRICS[name].pairwise)
    names = (*([second] if second else []), *pairwise, *(domain_metrics([row.reference for row in rows]) if has_answers else ()))
    return tuple(name for name in dict.fromkeys(names) if name != study.evaluation.headline)


def _summary(comparison: Comparison, state: StudyState) -> ComparisonSummary:
    """Return the part of a comparison that other steps need."""
    scores = [
        MethodScore(
            method=result.method,
            mean=result.means[comparison.headline],
            mean_low=result.mean_low,
            mean_high=result.mean_high,
            difference=result.vs_reference.mean if result.vs_reference else None,
            ci_low=result.vs_reference.ci_low if result.vs_reference else None,
            ci_high=result.vs_reference.ci_high if result.vs_reference else None,
            n_personas=comparison.n_personas,
            n_items=comparison.n_items,
            outcome=comparison.recorded(result.vs_reference.outcome) if result.vs_reference else None,
        )
        for result in comparison.methods
    ]
    return ComparisonSummary(
        # A champion that stays is another study's to register.
        None if state.moved is not None and not state.moved.moved else comparison.champion,
        comparison.sentence,
        tuple(scores),
        reference=comparison.reference or REFERENCE,
        gate_refused=bool(state.verdicts) and not any(verdict.passed for verdict in state.verdicts),
        claims_personalisation=claims_personalisation(comparison),
    )


def _gate(state: StudyState) -> str | None:
    """Return how the gate ended, in a sentence; None when nothing was judged."""
    if not (gated(state) and state.verdicts):
        return None
    return ending(state.verdicts, decided_rung(state).name, n_rungs=len(rungs(state)))


def _description(study: Study, sentence: str) -> str:
    """Return the experiment's description: the conclusion, the methods compared, and where the results are.

    Plain text: MLflow's list of experiments shows Markdown as it is written.
    """
    return (
        f"{sentence}\n\n{len(study.methods)} methods on {study.model.base}: {', '.join(study.methods)}. "
        "The table, the figure and the report are among the artifacts of the parent run, under results/."
    )


def figure_path(stores: Stores, study_name: str) -> Path:
    """Return the path of the comparison's figure."""
    return stores.folder(study_name) / "results" / "figures" / "comprehensive_comparison.png"
