"""Collect what a study left in the stores for its report, and write it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, islice, product
from pathlib import Path
from statistics import fmean

from clusterlora.comparison.appendix import NO_APPENDIX, Appendix
from clusterlora.comparison.new_personas import NewPersonas
from clusterlora.comparison.power import study_power
from clusterlora.comparison.result import Comparison
from clusterlora.data.leaks import leak_note
from clusterlora.durable import write_durably
from clusterlora.engine.job import mean_by_step
from clusterlora.evaluation.memorisation import Memorisation
from clusterlora.metadata import DataWarnings, ImportedScores, Refinement, RegisteredChampion, TruthAgreement, changes_of
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.planning.cut import dialogues_each
from clusterlora.planning.ladder import GATED, OWN, REFERENCE
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.trials import trial_keys
from clusterlora.planning.work_plan import WorkPlan, trained_adapters
from clusterlora.ports.stores import Stores
from clusterlora.progress.cost import study_cost
from clusterlora.progress.estimate import cut_sentence
from clusterlora.progress.timing import seconds_by_part
from clusterlora.report.cluster_map import draw_map
from clusterlora.report.data import Curve, Example, ExampleAnswer, ReportData
from clusterlora.report.page import page
from clusterlora.results.costs import method_costs, spent_rows
from clusterlora.results.imported_scores import imported_rows
from clusterlora.results.tuning import trial_rows
from clusterlora.values import Clustering, EvaluationRow, TrainedAdapter

_EXAMPLES_PER_PERSONA = (3, 2, 1)
_MOST_EXAMPLES = 900
_MOST_CHARACTERS = (1500, 700, 300, 150)
_MOST_EXAMPLE_BYTES = 650_000
"""What of the answers is on the page: the first of these numbers with which it stays below 6 MB for 200 people. rows.csv has them all."""

_MOST_POINTS = 200
"""Points of a learning curve on the page."""


def write_report(
    state: StudyState,
    plan: WorkPlan,
    stores: Stores,
    comparison: Comparison,
    rows: Sequence[EvaluationRow],
    newcomers: NewPersonas | None = None,
    below: Appendix = NO_APPENDIX,
    refresh: tuple[tuple[str, str], ...] = (),
) -> Path:
    """Write results/report.html, atomically, and return where it is."""
    path = stores.folder(state.name) / "results" / "report.html"
    write_durably(path, page(report_data(state, plan, stores, comparison, rows, newcomers, below, refresh)).encode())
    return path


def write_map(study_name: str, stores: Stores, clustering: Clustering) -> Path:
    """Write results/figures/clusters.png and return where it is."""
    path = map_path(stores, study_name)
    draw_map(clustering, path, study_name)
    return path


def map_path(stores: Stores, study_name: str) -> Path:
    """Return where the picture of the clusters is."""
    return stores.folder(study_name) / "results" / "figures" / "clusters.png"


def report_data(
    state: StudyState,
    plan: WorkPlan,
    stores: Stores,
    comparison: Comparison,
    rows: Sequence[EvaluationRow],
    newcomers: NewPersonas | None = None,
    below: Appendix = NO_APPENDIX,
    refresh: tuple[tuple[str, str], ...] = (),
) -> ReportData:
    """Return everything the report shows of a compared study."""
    study = state.settings
    cost = study_cost(stores.studies.device_use(study.name), study.runtime)
    return ReportData(
        study=study.name,
        comparison=comparison,
        clustering=state.clustering,
        verdicts=state.verdicts,
        newcomers=newcomers,
        appendix=below,
        refresh=refresh,
        held_out_share=study.assignment.held_out_share,
        signal=stores.studies.metadata(study.name, PersonaSignal),
        memory=stores.studies.metadata(study.name, Memorisation),
        curves=tuple(_curves(state, stores, plan)),
        costs=method_costs(state, stores, plan, comparison, cost),
        examples=_examples(rows, [result.method for result in comparison.methods], comparison.headline),
        attempts=state.attempts,
        seconds_by_part=tuple(seconds_by_part(state.seconds).items()),
        settings=tuple(_settings(state, plan, comparison)),
        provenance=tuple(_provenance(state, stores)),
        spent=spent_rows(cost),
        spent_says=cost.sentences,
        currency=cost.currency,
        warnings=(stores.studies.metadata(study.name, DataWarnings) or DataWarnings()).sentences,
        trials=tuple(trial_rows(state)),
        imported=imported_rows(stores.studies.metadata(study.name, ImportedScores)),
    )


def _settings(state: StudyState, plan: WorkPlan, comparison: Comparison) -> Iterator[tuple[str, str]]:
    study, rung = state.settings, plan.rung
    recipe, own = study.recipe, "own " if state.tuning else ""
    yield "base model", study.model.base
    yield "data", study.data.path or study.data.source
    if study.data.permute_seed is not None:
        yield "people", f"their dialogues were exchanged at random, seed {study.data.permute_seed}: nothing is personal"
    if study.data.canaries is not None:
        yield "canaries", f"{study.data.canaries} codes of invented people in train dialogues: not for serving"
    yield "system prompt", study.model.system_prompt
    yield "persona in the prompt", "yes" if study.model.persona_in_prompt else "no"
    yield "dialogues per persona", dialogues_each(state.dataset)
    if left_out := cut_sentence(state):
        yield "minutes", left_out
    yield f"{own}recipe", f"rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.epochs} epochs, batch {recipe.batch_size}"
    yield f"{own}learning rate", f"{recipe.learning_rate:g}, {recipe.schedule}"
    if state.tuning:
        yield "recipes tried", f"{len(state.tuning.recipes)}, the study's own first; a method that is tuned is trained by the best for it"
    if GATED in study.methods:
        yield "clusters start from", plan.cluster_init
        of_own = f"own, the recipe that was chosen for {GATED}" if state.tuning else "own, the recipe above"
        yield "rung of the gate's ladder", of_own if rung == OWN else f"{rung.name}: {changes_of(rung)}"
    if power := study_power(study.methods, REFERENCE, comparison.n_personas, clusters=(tuple(comparison.cluster_sizes.values()),)):
        yield "power before training", power.sentence
    for method, shown in comparison.shown.items():
        dropped = f"; {shown.share_dropped:.1%} of {shown.n_shown} did not fit" if shown.n_dropped else ""
        yield f"prompts of {method}", shown.chosen + dropped
    yield "decoding", f"greedy, at most {study.evaluation.max_new_tokens} tokens"


def _provenance(state: StudyState, stores: Stores) -> Iterator[tuple[str, str]]:
    """Yield what the study was made with and where else it can be looked at."""
    studies, study_name = stores.studies, state.name
    if state.provenance:
        yield from ((name.replace("_", " "), str(value)) for name, value in asdict(state.provenance).items() if value is not None)
    labelled = state.settings.data.task != "text"
    if note := leak_note(state.dataset.personas, labelled=labelled):
        yield "labels in prompts" if labelled else "leak between people", note
    if state.page:
        yield "MLflow run", state.page
    if agreement := studies.metadata(study_name, TruthAgreement):
        yield "adjusted Rand index with the planted clusters", str(agreement.adjusted_rand_index)
    if refinement := studies.metadata(study_name, Refinement):
        yield "refinement rounds", str(refinement.rounds_done)
    if registered := studies.metadata(study_name, RegisteredChampion):
        yield "champion in the registry", registered.uri


def _examples(rows: Sequence[EvaluationRow], methods: Sequence[str], headline: str) -> tuple[Example, ...]:
    """Return the first items of every persona that all these methods answered, with what the study's own seed says.

    As many of each persona, and as much of each text, as the page has room for.
    """
    by_item: dict[tuple[str, str], dict[str, EvaluationRow]] = {}
    for row in (row for row in rows if row.seed == 0):
        by_item.setdefault((row.persona_id, row.item_id), {})[row.method] = row
    complete = sorted((answers for answers in by_item.values() if answers.keys() >= set(methods)), key=_persona_of)
    examples: tuple[Example, ...] = ()
    for longest, per_persona in product(_MOST_CHARACTERS, _EXAMPLES_PER_PERSONA):
        first_of_each = (answers for _, of_persona in groupby(complete, key=_persona_of) for answers in islice(of_persona, per_persona))
        examples = tuple(_example(answers, methods, headline, longest) for answers in islice(first_of_each, _MOST_EXAMPLES))
        if len(json.dumps([asdict(example) for example in examples])) <= _MOST_EXAMPLE_BYTES:
            break
    return examples


def _example(answers: Mapping[str, EvaluationRow], methods: Sequence[str], headline: str, longest: int) -> Example:
    row = answers[methods[0]]
    return Example(
        persona_id=row.persona_id,
        cluster=row.cluster,
        item_id=row.item_id,
        prompt=_cut(row.prompt, longest),
        reference=_cut(row.reference, longest),
        answers=tuple(
            ExampleAnswer(method=m, text=_cut(answers[m].text, longest), score=round(answers[m].scores[headline], 6)) for m in methods
        ),
    )


def _persona_of(answers: Mapping[str, EvaluationRow]) -> str:
    return next(iter(answers.values())).persona_id


def _cut(words: str, longest: int) -> str:
    left = len(words) - longest
    return words if left <= 0 else f"{words[:longest]}… ({left} more characters)"


def _curves(state: StudyState, stores: Stores, plan: WorkPlan) -> Iterator[Curve]:
    """Yield the train loss of every adapter of several people, and for each method the mean over its adapters of one person."""
    adapters = {name: adapter for name, adapter in _of_first_seed(state, plan).items() if adapter.steps > 1}
    all_curves = stores.studies.learning_curves(state.name)
    losses_by_key = {key: curve.losses for key, curves in all_curves.items() for curve in curves if curve.split == "train"}
    for title, names in _together(adapters, plan.trained_by()).items():
        recorded = [losses_by_key[adapters[name].key] for name in names if adapters[name].key in losses_by_key]
        if recorded:
            losses = mean_by_step(recorded)
            yield Curve(title=title, points=_thinned(losses), n_steps=len(losses), complete=True)
        else:
            yield from _first_and_last(title, [adapters[name] for name in names])


def _together(adapters: Mapping[str, TrainedAdapter], trained_by: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of the adapters behind each curve, by the curve's title."""
    shared = {name: [name] for name, adapter in adapters.items() if len(adapter.spec.persona_ids) > 1}
    personal_by_method: dict[str, list[str]] = {}
    for name in (name for name in adapters if name not in shared):
        personal_by_method.setdefault(trained_by.get(name, name), []).append(name)
    return shared | {f"{method}, mean of {len(names)} adapters": names for method, names in personal_by_method.items()}


def _of_first_seed(state: StudyState, plan: WorkPlan) -> dict[str, TrainedAdapter]:
    """Return the study's adapters by name without those of other seeds and of trials; those of rungs that the gate refused are there."""
    of_seed = {adapter.name for method in plan.methods.values() for adapter in method.adapters}
    planned, keys = trained_adapters(state, plan), {*plan.keys.values(), *trial_keys(state)}
    refused = {adapter.name: adapter for adapter in state.adapters if not (adapter.spec.is_trial or adapter.key in keys)}
    return refused | {name: adapter for name, adapter in planned.items() if name in of_seed}


def _thinned(losses: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Return (step, loss) of at most `_MOST_POINTS` stretches of equal length: the last step of each and its mean."""
    length = math.ceil(len(losses) / _MOST_POINTS)
    stretches = [losses[start : start + length] for start in range(0, len(losses), length)]
    return tuple((min((k + 1) * length, len(losses)), sum(stretch) / len(stretch)) for k, stretch in enumerate(stretches))


def _first_and_last(title: str, adapters: Sequence[TrainedAdapter]) -> Iterator[Curve]:
    """Yield a line between the mean first and the mean last loss of adapters that were recorded without a curve."""
    finite = [adapter for adapter in adapters if math.isfinite(adapter.first_loss) and math.isfinite(adapter.last_loss)]
    if finite:
        n_steps = max(adapter.steps for adapter in finite)
        first, last = fmean(adapter.first_loss for adapter in finite), fmean(adapter.last_loss for adapter in finite)
        yield Curve(title=title, points=((1, first), (n_steps, last)), n_steps=n_steps, complete=False)
