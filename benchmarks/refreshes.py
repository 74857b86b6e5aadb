"""Ten refreshes in a row on people who change their habits, in this process: what each costs and gains.

`python -m benchmarks.refreshes --out docs`. Fourteen invented people are in two clusters, ten and four. In refreshes 2, 3 and 4 one or two
of the ten each begin to talk as the other cluster does, and go on so: half of the larger cluster has then moved to the smaller one. Seven
to fourteen of all have news each time. After each refresh the champion that the registry would serve and the first study's, frozen, are
asked for the likelihood of the new test answers, which neither has seen.

The studies are kept in `--home`: interrupted, the same command goes on with the refresh that had not ended.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import gettempdir

import numpy as np
from matplotlib.figure import Figure

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_weights
from clusterlora.data.prompts import items
from clusterlora.data.synthetic import generate
from clusterlora.drawing import write_png
from clusterlora.durable import write_durably
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.metadata import RefreshStart
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.attempts import next_request
from clusterlora.planning.family import family
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import Waves, remaining_groups
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.recipe import Recipe
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import (
    HOME_PROMPT,
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    ModelSettings,
    RuntimeSettings,
    Study,
    SyntheticSettings,
)
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.judge import judge_rung
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import champion_of, next_refresh, start_from
from clusterlora.stages.register import register_models
from clusterlora.stages.train import train_group
from clusterlora.values import Dialogue, Persona, TrainedAdapter
from clusterlora.wiring import from_environment

log = logging.getLogger(__name__)

LOG = SilentLog()
ROOT = "drift"
FIRST, EACH = 20, 6
"""Dialogues of a person in the first study, and in a refresh in which the person has news."""
POPULATION = SyntheticSettings(cluster_sizes=(10, 4), dialogues=FIRST + 10 * EACH, cluster_share=0.85, persona_share=0.0)
SIZES_IN_THE_END = (5, 9)
CHANGES = (2, 2, 3, 3, 4)
"""The refreshes from which on each of those who change talks as the other cluster."""
N_WITH_NEWS = (7, 14, 9, 11, 7, 14, 9, 11, 7, 14)
STUDY = Study(
    name=ROOT,
    methods=("unified", "cluster"),
    data=DataSettings(source="table", train=12, val=3, test=5),
    model=ModelSettings(base="homelm", system_prompt=HOME_PROMPT, max_length=512, dtype="float32"),
    recipe=Recipe(rank=8, epochs=3, learning_rate=1e-3),
    clustering=ClusteringSettings(k=2, algorithm="response_residuals"),
    gate=GateSettings(ladder=(), on_failure="continue"),
    evaluation=EvaluationSettings(metrics=("likelihood", "nll"), headline="likelihood", max_new_tokens=8, bootstrap_draws=1000),
    runtime=RuntimeSettings(shards=1, samples=None),
)


@dataclass(frozen=True, slots=True)
class Habits:
    """What somebody says by the habits of before and by the later ones, the planted cluster of each, and the refresh of the change."""

    before: tuple[Dialogue, ...]
    after: tuple[Dialogue, ...]
    clusters: tuple[int, int]
    change: int | None

    def have_changed(self, number: int) -> bool:
        """Return whether the later habits hold in a refresh."""
        return self.change is not None and number >= self.change

    def said(self, number: int) -> tuple[Dialogue, ...]:
        """Return all dialogues by the habits that hold in a refresh."""
        return self.after if self.have_changed(number) else self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One refresh: its news, its cost, and the losses of both champions on its new test items, with the interval of their difference."""

    refresh: int
    people_with_news: int
    new_dialogues: int
    adapters_trained: int
    train_tokens: int
    seconds: float
    moved: bool
    reason: str
    changed: int
    """People who have really changed by now."""
    drifted: int
    """People told as nearest to another cluster than the champion's study has them in."""
    clustered_anew: bool
    gate: str | None
    agreement: float
    """Adjusted Rand index of the refresh's clusters with who talks how by now."""
    method: str
    frozen: float
    champion: float
    difference: float
    standard_error: float


def main(out: Path, home: Path) -> None:
    """Run the first study and ten refreshes, as far as they have not ended, and write refresh.json and refresh.png after each."""
    people = _people()
    stores = from_environment({"CLUSTERLORA_HOME": str(home)})
    path = home / "said.jsonl"
    if not _has_ended(ROOT, stores):
        _write(path, {p: one.before[:FIRST] for p, one in people.items()})
        _finish(replace(STUDY, data=replace(STUDY.data, path=str(path))), stores)
    first = read_state(ROOT, stores)
    assert first.outcome is not None
    assert first.outcome.champion is not None, "the first study has no champion to refresh"
    frozen = start_from(first, first.outcome.champion, stores)
    log.info("first study: %s; %d train tokens, %.0f s", frozen.method, _tokens(ROOT, stores), _seconds(ROOT, stores))
    kept = home / "rows.json"
    rows = [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))] if kept.exists() else []
    for number, n_people in list(enumerate(N_WITH_NEWS, start=1))[len(rows) :]:
        last = family(ROOT, stores)[-1]
        study = stores.studies.study(last)
        if study.refresh.number != number:
            start = FIRST + (number - 1) * EACH
            in_turn = sorted(people)[number % 2 :: 2] + sorted(people)[(number + 1) % 2 :: 2]
            _write(path, {p: people[p].said(number)[start : start + EACH] for p in in_turn[:n_people]})
            study = next_refresh(ROOT, str(path), stores)
        if not _has_ended(study.name, stores):
            _finish(study, stores)
        rows.append(_row(number, study.name, frozen, people, stores))
        log.info("%s", rows[-1])
        write_durably(kept, json.dumps([asdict(row) for row in rows]).encode())
        document = {
            "first": {"train_tokens": _tokens(ROOT, stores), "seconds": _seconds(ROOT, stores), "method": frozen.method},
            "personas": len(people),
            "refreshes": [asdict(row) for row in rows],
        }
        write_durably(out / "refresh.json", (json.dumps(document, indent=1) + "\n").encode())
        write_png(partial(_figure, rows), out / "refresh.png")


def _has_ended(name: str, stores: Stores) -> bool:
    return any(one == name and status == "finished" for one, status, _ in stores.studies.studies())


def _people() -> dict[str, Habits]:
    """Return how everybody talks; who changes is whose cluster differs between two populations that are otherwise the same."""
    populations = [generate(replace(POPULATION, cluster_sizes=sizes)) for sizes in (POPULATION.cluster_sizes, SIZES_IN_THE_END)]
    before, after = ({persona.id: persona.dialogues for persona in one.dataset.personas} for one in populations)
    clusters, last = (one.truth.cluster_by_persona for one in populations)
    changes = dict(zip((p for p in sorted(before) if clusters[p] != last[p]), CHANGES, strict=True))
    return {p: Habits(before[p], after[p], (clusters[p], last[p]), changes.get(p)) for p in before}


def _write(path: Path, said: Mapping[str, tuple[Dialogue, ...]]) -> None:
    rows = [
        {"persona_id": p, "messages": [{"role": t.role, "text": t.text} for t in one.turns], "context": dict(one.context)}
        for p, dialogues in said.items()
        for one in dialogues
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _finish(study: Study, stores: Stores) -> None:
    """Run the stages of a study in the order of the flow."""

    def train(waves: Waves) -> None:
        for group in (group for wave in waves for group in wave):
            train_group(next_request(study, group, stores), stores, LOG)

    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    while step := next_gate_step(read_state(study.name, stores)):
        train(step.waves)
        evaluate(EvaluationRequest(study_name=study.name, part="gate", rung=step.rung.name), stores, LOG)
        judge_rung(study.name, step.rung.name, stores)
    train(remaining_groups(read_state(study.name, stores)))
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    compare_study(study.name, stores, LOG)
    register_models(study.name, stores, LOG)


def _champion(stores: Stores) -> RefreshStart:
    name, method = champion_of(ROOT, stores)
    return start_from(read_state(name, stores), method, stores)


def _row(number: int, name: str, frozen: RefreshStart, people: Mapping[str, Habits], stores: Stores) -> Row:
    from sklearn.metrics import adjusted_rand_score

    state = read_state(name, stores)
    assert state.news is not None
    assert state.moved is not None
    assert state.regrouping is not None
    assert state.clustering is not None
    clusters = state.clustering.cluster_by_persona()
    truth = [people[p].clusters[people[p].have_changed(number)] for p in clusters]
    new = {(p, one) for p, ids in state.news.dialogues for one in ids}
    asked = [
        replace(person, dialogues=tests)
        for person in state.dataset.personas
        if (tests := tuple(d for d in person.of_split("test") if (person.id, d.id) in new))
    ]
    losses = {which: _losses(start, asked, name, stores) for which, start in (("frozen", frozen), ("champion", _champion(stores)))}
    differences = np.array([losses["champion"][p] - losses["frozen"][p] for p in losses["frozen"]])
    return Row(
        refresh=number,
        people_with_news=len(state.news.dialogues),
        new_dialogues=sum(len(ids) for _, ids in state.news.dialogues),
        adapters_trained=len(_trained(name, stores)),
        train_tokens=_tokens(name, stores),
        seconds=round(_seconds(name, stores), 1),
        moved=state.moved.moved,
        reason=state.moved.reason,
        changed=sum(one.have_changed(number) for one in people.values()),
        drifted=len(state.regrouping.moved),
        clustered_anew=state.regrouping.anew,
        gate=None if not state.verdicts else "passed" if any(verdict.passed for verdict in state.verdicts) else "refused",
        agreement=round(float(adjusted_rand_score(truth, list(clusters.values()))), 3),
        method=_champion(stores).method,
        frozen=round(fmean(losses["frozen"].values()), 4),
        champion=round(fmean(losses["champion"].values()), 4),
        difference=round(float(differences.mean()), 4),
        standard_error=round(float(differences.std(ddof=1) / np.sqrt(len(differences))), 4),
    )


def _trained(name: str, stores: Stores) -> list[TrainedAdapter]:
    """Return the adapters that no earlier study of the family has."""
    names = family(ROOT, stores)
    before = {adapter.key for one in names[: names.index(name)] for adapter in stores.studies.adapters(one)}
    return [adapter for adapter in stores.studies.adapters(name) if adapter.key not in before]


def _tokens(name: str, stores: Stores) -> int:
    return sum(adapter.train_tokens for adapter in _trained(name, stores))


def _seconds(name: str, stores: Stores) -> float:
    return sum(seconds_by_phase(stores.studies.seconds(name)).values())


def _figure(rows: Sequence[Row]) -> Figure:
    """Return two panels: what each refresh trained for its news, and its champion against the frozen one."""
    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    cost, gain = figure.subplots(1, 2)
    for anew, marker, label in ((False, "o", "clusters kept"), (True, "s", "clustered anew")):
        some = [row for row in rows if row.clustered_anew == anew]
        if some:
            cost.scatter([row.new_dialogues for row in some], [row.train_tokens / 1000 for row in some], marker=marker, label=label)
    cost.set(xlabel="new dialogues", ylabel="thousand train tokens", title="Cost of a refresh", xlim=(0, None))
    cost.set_ylim(0, 1.1 * max(row.train_tokens for row in rows) / 1000)
    cost.legend(loc="lower right")
    numbers, differences = [row.refresh for row in rows], [row.difference for row in rows]
    gain.axhline(0, color="grey", linewidth=0.8)
    gain.errorbar(numbers, differences, yerr=[row.standard_error for row in rows], fmt="o", capsize=3, label="alias stays")
    moved = [row for row in rows if row.moved]
    gain.plot([row.refresh for row in moved], [row.difference for row in moved], "o", color="tab:orange", zorder=3, label="alias moves")
    gain.set(xlabel="refresh", ylabel="nats per token", title="Loss: champion minus frozen champion", xticks=numbers)
    gain.legend(loc="lower left")
    return figure


def _losses(champion: RefreshStart, people: list[Persona], name: str, stores: Stores) -> dict[str, float]:
    """Return by person the champion's mean loss on test items, in nats per response token."""
    study = stores.studies.study(name)
    keys = {adapter.label: adapter.key for adapter in champion.adapters}
    answers_with = dict(champion.routes)
    compositions = {answers_with.get(person.id, champion.default) for person in people}
    weights = {str(one): combined_weights(one.adapters, lambda label: stored_weights(stores, keys[label])) for one in compositions}
    requests = [
        AnswerRequest(str(answers_with.get(person.id, champion.default)), item)
        for person in people
        for item in items(study.model, person, "test")
    ]
    answerer = Answerer(base_model(study.model), embedder(study.model), study.evaluation, study.model)
    by_person: dict[str, list[float]] = {}
    for answer in answerer.answer(requests, weights, metrics=("nll",), run_log=LOG):
        by_person.setdefault(answer.persona_id, []).append(dict(answer.scores)["nll"])
    return {p: fmean(values) for p, values in by_person.items()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for refresh.json and refresh.png (default: docs)")
    parser.add_argument(
        "--home", type=Path, default=Path(gettempdir()) / "clusterlora-refreshes", help="folder of the studies; remove it to begin anew"
    )
    arguments = parser.parse_args()
    main(arguments.out, arguments.home)
