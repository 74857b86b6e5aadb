"""The leave-personas-out curve of a study, from the answers it holds."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from clusterlora.comparison.new_personas import NewPersonas, Scores
from clusterlora.comparison.new_personas import new_personas as curve
from clusterlora.csv_text import csv_text
from clusterlora.data.prompts import items
from clusterlora.durable import write_durably
from clusterlora.evaluation.dialogues import dialogue_means, dialogue_numbers
from clusterlora.evaluation.metrics import METRICS
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.stores import Stores
from clusterlora.values import Split


@dataclass(frozen=True, slots=True)
class _Row:
    """One item of somebody held out under one adapter. Train items have no `headline`: nothing is generated for them."""

    persona_id: str
    cluster: int
    split: Split
    item_id: str
    adapter: str
    nll: float
    headline: float | None


def new_personas(state: StudyState, plan: WorkPlan, stores: Stores) -> NewPersonas | None:
    """Return how the held-out people fare; None when nobody was held out, or not all of their items are answered.

    All that it is computed from is then in `results/new_personas.csv`.
    """
    study = state.settings
    rows = list(_rows(state, plan, stores)) if plan.held_out else []
    if not rows or None in rows:
        return None
    scored = [row for row in rows if row is not None]
    _write(scored, stores.folder(study.name) / "results" / "new_personas.csv")
    train, test = ([row for row in scored if row.split == split] for split in ("train", "test"))
    n_arms = len({row.adapter for row in scored})
    metric = study.evaluation.headline
    tested = {
        metric: _tables([(row.persona_id, row.headline) for row in test], n_arms),
        "nll": _tables([(row.persona_id, row.nll) for row in test], n_arms),
    }
    of_train, of_test = (_dialogues(its, n_arms) for its in (train, test))
    losses = _tables([(row.persona_id, row.nll) for row in train], n_arms)
    return curve(
        {persona_id: dialogue_means(own, of_train[persona_id]) for persona_id, own in losses.items()},
        tested,
        of_test,
        {row.persona_id: row.cluster for row in scored},
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        draws=study.evaluation.bootstrap_draws,
        rng=np.random.default_rng(study.assignment.seed),
    )


def _rows(state: StudyState, plan: WorkPlan, stores: Stores) -> Iterator[_Row | None]:
    """Yield every item under every arm, arms innermost; None for what is not answered."""
    study, clustering = state.settings, state.clustering
    assert plan.held_out is not None, "nobody is held out"
    assert clustering is not None, "people were held out before there were clusters"
    arms = plan.held_out.arms_by_persona
    keys = {composition: plan.composition_key(composition) for _, compositions in arms for composition in compositions}
    headline_name = study.evaluation.headline
    scores = stores.studies.item_scores(study.name, sorted(keys.values()), {"nll", headline_name})
    personas = state.dataset.by_id()
    cluster_by_persona = clustering.cluster_by_persona()
    splits: tuple[Split, ...] = ("train", "test")
    for persona_id, compositions in arms:
        for split in splits:
            for item in items(study.model, personas[persona_id], split):
                for composition in compositions:
                    item_scores = scores.get((keys[composition], persona_id, item.id), {})
                    headline = item_scores.get(headline_name)
                    if "nll" not in item_scores or (split == "test" and headline is None):
                        yield None
                    else:
                        cluster = cluster_by_persona[persona_id]
                        yield _Row(persona_id, cluster, split, item.id, composition.adapter_names[0], item_scores["nll"], headline)


def _tables(scores: Sequence[tuple[str, float | None]], n_arms: int) -> Scores:
    of_persona: dict[str, list[float | None]] = {}
    for persona_id, score in scores:
        of_persona.setdefault(persona_id, []).append(score)
    return {persona_id: np.array(its, dtype=float).reshape(-1, n_arms) for persona_id, its in of_persona.items()}


def _dialogues(rows: Sequence[_Row], n_arms: int) -> dict[str, np.ndarray]:
    """Return the dialogue of every item by persona, from rows whose arms are innermost."""
    item_ids: dict[str, list[str]] = {}
    for row in rows[::n_arms]:
        item_ids.setdefault(row.persona_id, []).append(row.item_id)
    return {persona_id: dialogue_numbers(its) for persona_id, its in item_ids.items()}


def _write(rows: Sequence[_Row], path: Path) -> None:
    write_durably(path, csv_text([asdict(row) for row in rows], [field.name for field in fields(_Row)]).encode())
