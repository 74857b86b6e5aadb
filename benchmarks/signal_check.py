"""Holds the persona signal's verdict against cheap studies: python -m benchmarks.signal_check --out docs --data court=court.jsonl

Each data set gives a small study of the embedded base: unified, and over it a residual per cluster and per person, scored by the
likelihood of the test answers. The results go to signal-check.json, one set after another, and the page to signal-check.md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.durable import write_durably
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap
from clusterlora.models.model_cache import embedder
from clusterlora.persona_signal.measure import measure
from clusterlora.persona_signal.summary import expectation
from clusterlora.planning.attempts import next_request
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import groups_of
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study, SyntheticSettings
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import evaluation_rows
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.train import train_group
from clusterlora.values import EvaluationRow
from clusterlora.wiring import from_environment

LOG = SilentLog()
N_PEOPLE, CLUSTER_SIZES = 24, (6, 6, 6, 6)
TRAIN, VAL, TEST = 12, 4, 6
METHODS = {"cluster_hybrid": "per cluster", "hybrid": "per person"}
PLANTED = ((0.0, 0.0), (0.0, 0.25), (0.0, 0.6), (0.1, 0.0), (0.25, 0.1), (0.5, 0.25), (0.5, 0.0))
"""(cluster_share, persona_share) of invented people."""

_WORDS = """# What the signal promises, and what studies find

Written by `python -m benchmarks.signal_check`. Each row is a data set of {people} people with {train} train, {val} val and {test} test
dialogues: the verdict of `clusterlora data signal`, with {k} clusters, and whether the default settings find clusters worth having; then a
study of the embedded base, the gain of a residual adapter per cluster (`cluster_hybrid`) and per person (`hybrid`) over unified in nats per
token of the test answers, with the 95 % interval over people. A verdict **holds** when what it expects to win has an interval above zero,
and what it expects not to win has none. So small a study can miss a small gain; the base knows homes and English only.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="a table of dialogues, beside invented people")
    parser.add_argument("--out", type=Path, required=True, help="folder for signal-check.json and signal-check.md")
    options = parser.parse_args(arguments)
    path = options.out / "signal-check.json"
    checked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, data in chain(_invented(), _tables(options.data)):
        if name not in checked:
            checked[name] = check(data)
            write_durably(path, json.dumps(checked, indent=1).encode())
            write_durably(options.out / "signal-check.md", page(checked).encode())
    return 0


def _invented() -> Iterator[tuple[str, DataSettings]]:
    for number, (of_cluster, of_persona) in enumerate(PLANTED):
        people = SyntheticSettings(
            cluster_sizes=CLUSTER_SIZES, dialogues=TRAIN + VAL + TEST, cluster_share=of_cluster, persona_share=of_persona, seed=number
        )
        yield (
            f"invented, cluster {of_cluster:.0%}, person {of_persona:.0%}",
            DataSettings(train=TRAIN, val=VAL, test=TEST, synthetic=people),
        )


def _tables(arguments: Sequence[str]) -> Iterator[tuple[str, DataSettings]]:
    for argument in arguments:
        name, _, file = argument.partition("=")
        settings = DataSettings(source="table", path=str(Path(file).resolve()), personas=N_PEOPLE, on_problem="skip")
        yield name, replace(settings, train=TRAIN, val=VAL, test=TEST)


def check(data: DataSettings) -> dict[str, Any]:
    """Return the signal of a data set and what a study of it finds, as JSON-ready values."""
    study = Study(
        name="check",
        data=data,
        model=ModelSettings(base="homelm"),
        methods=("unified", *METHODS),
        recipe=Recipe(epochs=2),
        clustering=ClusteringSettings(k=len(CLUSTER_SIZES)),
        evaluation=EvaluationSettings(metrics=("nll", "chrf"), headline="chrf", max_new_tokens=4),
    )
    with tempfile.TemporaryDirectory() as home:
        stores = from_environment({"CLUSTERLORA_HOME": home})
        rows = list(_run(study, stores))
        state = read_state(study.name, stores)
        clustering = state.clustering
        assert clustering is not None, "the study has been clustered"
        signal = measure(state.dataset.personas, clustering, embedder(study.model), LOG)
        free = cluster_personas(state.dataset, ClusteringSettings(), Sources(embedder(study.model)))
    predicted = dict(clustering.quality).get("predicted", 0.0)
    gains = {method: _gain(rows, method) for method in METHODS}
    person = signal.persona_beyond_prompts
    return {
        "expected": expectation(signal),
        "recognised": [person.accuracy, person.chance],
        "predicted": predicted,
        "sizes": list(clustering.sizes),
        "worth_having": len(free.members),
        "gains": gains,
    }


def _run(study: Study, stores: Stores) -> Sequence[EvaluationRow]:
    """Return the rows of a study that is trained and answered in this process, without a gate."""
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    state = read_state(study.name, stores)
    plan = work_plan(state)
    for group in chain.from_iterable(groups_of(state, plan, tuple(plan.specs))):
        train_group(next_request(state.settings, group, stores), stores, LOG)
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    state = read_state(study.name, stores)
    return evaluation_rows(state, work_plan(state), stores)


def _gain(rows: Sequence[EvaluationRow], method: str) -> list[float]:
    """Return (gain of a method over unified in nats per token, lower and upper end of its 95 % interval over people)."""
    losses = {(row.method, row.persona_id, row.item_id): row.scores["nll"] for row in rows}
    items = [(p, item) for name, p, item in losses if name == method]
    ids = {p: number for number, p in enumerate(sorted({p for p, _ in items}))}
    gains = np.array([losses["unified", p, item] - losses[method, p, item] for p, item in items])
    persona = np.array([ids[p] for p, _ in items])
    means = np.bincount(persona, weights=gains) / np.bincount(persona)
    draws = paired_bootstrap(gains[:, None], persona, draws=2000, rng=np.random.default_rng(0))[:, 0]
    interval = bootstrap_interval(draws, means)
    return [float(means.mean()), interval.low, interval.high]


def holds(checked: Mapping[str, Any]) -> bool:
    """Return whether a verdict is what the study found: who is expected to win does, who is not does not."""
    wins = {method: checked["gains"][method][1] > 0 for method in METHODS}
    if checked["expected"] == "people and clusters":
        return wins["hybrid"] or wins["cluster_hybrid"]
    if checked["expected"] == "people":
        return wins["hybrid"]
    return not any(wins.values())


def page(checked: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of everything that was checked."""
    header = ("data", "signal expects", "recognised", "chance", "clusters predict", "worth having", *METHODS.values(), "verdict")
    rows = [
        (
            name,
            one["expected"],
            f"{one['recognised'][0]:.1%}",
            f"{one['recognised'][1]:.1%}",
            f"{max(0.0, one['predicted']):.2%}",
            f"{one['worth_having']} clusters" if one["worth_having"] > 1 else "none",
            *(f"{gain:+.3f} ({low:+.3f} to {high:+.3f})" for gain, low, high in (one["gains"][method] for method in METHODS)),
            "holds" if holds(one) else "does not hold",
        )
        for name, one in checked.items()
    ]
    words = _WORDS.format(people=N_PEOPLE, train=TRAIN, val=VAL, test=TEST, k=len(CLUSTER_SIZES))
    n_held = sum(holds(one) for one in checked.values())
    table = markdown_table(header, rows, right=(False, False, True, True, True, False, True, True, False))
    return f"{words}\nThe verdict holds for {n_held} of {len(checked)} sets.\n\n{table}"


if __name__ == "__main__":
    raise SystemExit(main())
