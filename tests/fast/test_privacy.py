"""What adapters have memorised: a memoriser is caught, one that was never trained is at chance, and the study's pages tell it."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clusterlora.config import check
from clusterlora.data.canaries import is_canary, like
from clusterlora.data.load import load
from clusterlora.errors import BadData, BadSettings
from clusterlora.evaluation import memorisation
from clusterlora.evaluation.memorisation import (
    AdapterMemory,
    Copies,
    Group,
    Membership,
    Memorisation,
    Said,
    Text,
    copies_of_learnt,
    copies_of_own,
    exposures,
    longest_span,
    membership,
)
from clusterlora.evaluation.memorisation_words import sentence
from clusterlora.metadata import News, RefreshStart
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Rung,
    RuntimeSettings,
    Study,
    SyntheticSettings,
)
from clusterlora.stages import privacy as stage
from clusterlora.stages.compare import compare_study
from clusterlora.stages.privacy import canary_copy, measure_privacy
from clusterlora.stages.refresh import next_refresh
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import AdapterComposition, Route, WeightedAdapter
from tests.fixtures.stages import LOG, run

cli: Any = importlib.import_module("clusterlora.cli.privacy")
"""The module; the package gives its name to the command inside."""


def tried(
    base: Path, stores: Stores, *, canaries: int | None = None, metrics: tuple[str, ...] = ("likelihood", "nll"), **recipe: Any
) -> Study:
    """Return a study of five people whose one adapter is trained as the recipe says; it has been compared."""
    study = Study(
        name="tried",
        methods=("unified", "baseline"),
        data=DataSettings(
            train=3, val=1, test=2, canaries=canaries, synthetic=SyntheticSettings(cluster_sizes=(2, 3), dialogues=6, noise_share=0.25)
        ),
        model=ModelSettings(base=str(base), system_prompt="Home.", max_length=1024, dtype="float32"),
        recipe=replace(Recipe(rank=16, batch_size=4), **recipe),
        clustering=ClusteringSettings(k=2, sizes=(2, 3), algorithm="responses"),
        evaluation=EvaluationSettings(max_new_tokens=8, bootstrap_draws=100, metrics=metrics, headline=metrics[0]),
        runtime=RuntimeSettings(shards=1, samples=None),
    )
    run(study, stores)
    compare_study(study.name, stores, LOG)
    return study


@pytest.mark.whole
def test_a_memorising_adapter_is_caught_and_told_in_summary_and_report(tiny_base_folder: Path, stores: Stores) -> None:
    study = tried(tiny_base_folder, stores, canaries=4, epochs=40, learning_rate=1e-2)
    memory = measure_privacy(study.name, stores, LOG, n_prompts=10, n_words=3)
    (unified,) = memory.adapters
    assert unified.membership is not None
    assert unified.membership.auc > 0.8
    assert (unified.membership.n_trained_on, unified.membership.n_held_out) == (15, 10), "neither canaries nor val"
    assert unified.membership.true_positive_rate > 0.5
    assert unified.exposure is not None
    assert unified.exposure.mean > 4
    assert unified.exposure.p < 0.001
    assert {"dialogues are recognised by their loss", "canaries are remembered"} <= set(unified.found)
    folder = stores.folder(study.name) / "results"
    for page in (folder / "summary.md", folder / "report.html"):
        assert "Memorised more than chance: unified" in page.read_text(encoding="utf-8")
    assert json.loads((folder / "privacy.json").read_text())["adapters"][0]["name"] == unified.name
    assert measure_privacy(study.name, stores, LOG, n_prompts=10, n_words=3) == memory, "measured again, it says the same"


@pytest.mark.whole
def test_an_adapter_that_was_not_trained_is_at_chance(tiny_base_folder: Path, stores: Stores) -> None:
    study = tried(tiny_base_folder, stores, epochs=1, learning_rate=1e-30)
    (unified,) = measure_privacy(study.name, stores, LOG, n_prompts=10, n_words=3).adapters
    assert unified.membership is not None
    assert (unified.membership.auc, unified.membership.true_positive_rate) == (0.5, 0.0)
    assert not unified.found
    assert unified.exposure is None
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    assert "Nothing is shown to be memorised" in summary
    assert "Exposure is not measured, as no canaries were planted" in summary


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["memory", "sql"])
def test_what_a_study_has_kept_stays(kind: str, tiny_base_folder: Path, stores: Stores, tmp_path: Path) -> None:
    if kind == "sql":
        stores = replace(stores, studies=SqlStudyStore(f"sqlite:///{tmp_path / 'studies.db'}"))
    study = tried(tiny_base_folder, stores, epochs=1, metrics=("embedding_similarity", "rouge_l"))
    before = stores.studies.answers(study.name)
    assert all(one.text for one in before)
    measure_privacy(study.name, stores, LOG, n_prompts=4)
    assert stores.studies.answers(study.name) == before


def test_membership_is_chance_for_noise_and_certain_for_a_memoriser() -> None:
    rng = np.random.default_rng(0)
    people, trained_on = np.repeat(np.arange(20), 20), np.tile(np.repeat([1, 0], 10), 20)
    noise = membership(people, rng.normal(size=400), trained_on)
    sure = membership(people, trained_on + rng.uniform(0, 0.5, 400), trained_on)
    assert noise is not None
    assert sure is not None
    assert 0.5 < noise.auc_by_chance < 0.6
    assert not noise.is_found
    assert sure.is_found
    assert (sure.auc, sure.true_positive_rate, sure.false_positive_rate) == (1.0, 1.0, 0.01)
    assert membership(np.arange(4), np.ones(4), np.array([1, 1, 0, 0])) is None, "nobody has both"
    same = membership(people, np.zeros(400), trained_on)
    assert same is not None
    assert (same.auc, same.is_found) == (0.5, False)
    assert same.auc_by_chance == noise.auc_by_chance, "what chance does depends on numbers alone"
    few = membership(np.zeros(3, dtype=int), np.array([2.0, 1.0, 0.0]), np.array([1, 1, 0]))
    assert few is not None
    assert (few.auc, few.is_found, few.is_measurable) == (1.0, False, False)


def unequal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return people with unequal shares of train dialogues, scores that say nothing but who talks, and what was trained on."""
    n_train, n_out = rng.integers(2, 20, size=30), rng.integers(2, 5, size=30)
    people = np.repeat(np.arange(30), n_train + n_out)
    trained_on = np.concatenate([np.repeat([1, 0], of) for of in zip(n_train, n_out, strict=True)])
    return people, rng.normal(size=len(people)) + 0.15 * n_train[people], trained_on


@pytest.mark.whole
def test_nothing_is_recognised_where_people_differ_in_level_and_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "PERMUTATIONS", 239)
    rng = np.random.default_rng(0)
    told = [one for _ in range(80) if (one := membership(*unequal(rng))) is not None]
    assert len(told) == 80
    assert np.mean([one.auc for one in told]) == pytest.approx(0.5, abs=0.02)
    assert sum(one.is_found for one in told) <= 6, "two are expected"
    assert sum(one.true_positive_rate > one.true_positives_by_chance for one in told) <= 4, "one is expected"


def test_few_dialogues_that_are_recited_are_found_by_true_positives() -> None:
    rng = np.random.default_rng(0)
    people, trained_on = np.repeat(np.arange(60), 15), np.tile(np.repeat([1, 0], [10, 5]), 60)
    scores = rng.normal(size=900)
    scores[rng.choice(np.flatnonzero(trained_on), 30, replace=False)] += 10
    told = membership(people, scores, trained_on)
    assert told is not None
    assert told.true_positive_rate >= 0.05 > told.true_positives_by_chance
    assert told.is_found
    assert AdapterMemory(name="a", membership=told).found == ("dialogues are recognised by their loss",)


LETTERS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def said(p: str, dialogue: int, text: str, own: str = "none", *, was_learnt: bool = False) -> Said:
    return Said(p, f"{p}\n{dialogue}", text, own, was_learnt)


def test_verbatim_spans_are_found_word_by_word() -> None:
    assert longest_span("Dim the lamp, please, to 40 %.", "I dim the LAMP please now") == 4
    assert longest_span("Dim the lamp", "nothing shared") == 0
    assert longest_span("the lamp the", "the the lamp") == 2


def people_of(n: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Return what each says in 6 dialogues, no two of them alike."""
    return {f"p{i}": [" ".join(str(word) for word in rng.integers(10**6, size=12)) for _ in range(6)] for i in range(n)}


@pytest.mark.whole
def test_copies_are_what_is_repeated_of_learnt_text_beyond_text_that_was_not_learnt() -> None:
    people = people_of(24, np.random.default_rng(0))
    texts = tuple(Text(p, f"{p}\n{i}", own[i], i < 3) for p, own in people.items() for i in range(5))

    def found(recited: int, n_words: int = 10) -> Copies:
        answers = tuple(said(p, 5, own[1] if int(p[1:]) < recited else "who knows", own[5]) for p, own in people.items())
        return copies_of_learnt([Group(answers[:9], texts), Group(answers[9:], texts)], n_words=n_words)

    least = found(0).least
    assert least == 9, "each is a train dialogue's with 3 in 5"
    assert [found(n).is_found for n in (0, least - 3, least + 3)] == [False, False, True]
    assert (found(24).learnt, found(24).never_learnt, found(24).longest) == (1.0, 0.0, 12)
    assert not found(24, n_words=13).n_answers, "there is nothing so long to repeat"

    def own(recited: int) -> Copies:
        train = [said(p, 0, its[0] if int(p[1:]) < recited else "who knows", its[0], was_learnt=True) for p, its in people.items()]
        return copies_of_own([*train, *(said(p, 5, "who knows", its[5]) for p, its in people.items())], n_words=10)

    assert (own(0).least, own(0).is_measurable, own(0).learnt) == (7, True, 0.0)
    assert [own(n).is_found for n in (0, 4, 7)] == [False, False, True]


@pytest.mark.whole
def test_stock_sentences_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "PERMUTATIONS", 239)
    rng = np.random.default_rng(3)
    stock = list(people_of(1, rng)["p0"])

    def study() -> bool:
        groups = []
        for p in map(str, range(20)):
            texts = tuple(Text(p, f"{p}\n{i}", stock[rng.integers(6)], i < 8) for i in range(10))
            groups.append(Group(tuple(said(p, 10 + i, stock[rng.integers(6)]) for i in range(2)), texts))
        return copies_of_learnt(groups, n_words=8).is_found

    assert sum(study() for _ in range(60)) <= 4, "one is expected"


def test_canaries_that_were_never_seen_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    unseen = [exposures([(losses[0], losses[1:]) for losses in of_study]) for of_study in rng.normal(size=(400, 5, 64))]
    assert 0.01 < np.mean([one.p < 0.05 for one in unseen]) < 0.08
    assert np.mean([one.mean for one in unseen]) == pytest.approx(unseen[0].at_chance, abs=0.1)
    seen = [(losses.min() - 1, losses[1:]) for losses in rng.normal(size=(5, 256))]
    assert (exposures(seen).mean, exposures(seen).most, exposures(seen).is_found) == (8.0, 8.0, True)
    with pytest.raises(BadData, match="no canaries"):
        exposures([])


def test_canaries_are_train_dialogues_alone_and_none_by_default(seven: Study) -> None:
    without, planted = load(seven.data), load(replace(seven.data, canaries=9))
    canaries = [d for p in planted.personas for d in p.dialogues if is_canary(d)]
    assert len({d.turns[1].text for d in canaries}) == 9
    assert not any(is_canary(d) for p in without.personas for d in p.dialogues)
    kept = tuple(replace(p, dialogues=tuple(d for d in p.dialogues if not is_canary(d))) for p in planted.personas)
    assert kept == without.personas, "what is scored stays, and so does all else that is learnt"
    others = like(canaries[0], 255)
    assert len({*others, canaries[0].turns[1].text}) == 256
    assert {other[:-8] for other in others} == {canaries[0].turns[1].text[:-8]}


def test_canaries_are_planted_in_a_copy_and_no_refresh_plants_them_again(finished_stores: Stores, tmp_path: Path) -> None:
    copy = canary_copy("small", 5, finished_stores)
    assert (copy.name, copy.data.canaries) == ("small-canaries", 5)
    finished_stores.studies.create_study(copy)
    with pytest.raises(BadSettings, match="has canaries already"):
        canary_copy("small-canaries", 5, finished_stores)
    (tmp_path / "more.jsonl").write_text("")
    assert next_refresh("small", str(tmp_path / "more.jsonl"), finished_stores).data.canaries is None
    with pytest.raises(BadSettings, match="canaries are texts"):
        check(replace(Study(), data=DataSettings(source="table", path="x.jsonl", task="label", canaries=3)))


@pytest.mark.whole
def test_every_shared_adapter_and_the_champion_is_measured(finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_local_stores", lambda **_: finished_stores)
    told = CliRunner().invoke(cli.privacy, ["small", "--prompts", "4"], catch_exceptions=False)
    assert "AUC" in told.stdout
    memory = json.loads((finished_stores.folder("small") / "results" / "privacy.json").read_text())
    names = [one["name"] for one in memory["adapters"]]
    assert names[:3] == ["unified, the champion" if "unified, the champion" in names else "unified", "cluster-00", "cluster-01"]
    assert [one["membership"]["n_people"] for one in memory["adapters"][:3]] == [7, 3, 4]
    assert [one["copies"][1]["n_answers"] for one in memory["adapters"]][1] > 0


def test_a_refresh_is_measured_as_it_serves_by_the_champion_that_stays_or_moves(finished_stores: Stores) -> None:
    state = read_state("small", finished_stores)
    assert state.outcome is not None
    plan = work_plan(state)
    unified = AdapterComposition((WeightedAdapter("unified"),))
    finished_stores.studies.save_routes("small", [Route("last_champion", p, unified, 0) for p in state.dataset.ids])
    person = state.dataset.personas[0]
    new = person.of_split("train")[0].id
    start = RefreshStart(
        study="small", method="unified", adapters=(), routes=(), default=unified, algorithm="responses", members=(), rung=Rung(name="base")
    )
    stays = replace(state, outcome=replace(state.outcome, champion=None), start=start, news=News(dialogues=((person.id, (new,)),)))
    subjects = list(stage._subjects(stays, plan, finished_stores))
    assert subjects[-1].name == "the champion, last_champion"
    asked = stage._items(subjects[-1], stays, person, "train")
    assert {one.id.rpartition("#")[0] for one in asked} == {one.id for one in person.of_split("train")} - {new}
    moves = replace(stays, outcome=replace(state.outcome, champion="cluster"))
    subjects = list(stage._subjects(moves, plan, finished_stores))
    assert subjects[-1].name == "the champion, cluster"
    asked = stage._items(subjects[-1], moves, person, "train")
    assert {one.id.rpartition("#")[0] for one in asked} == {one.id for one in person.of_split("train")}, "it has learnt the news"


@pytest.mark.whole
def test_texts_are_read_of_the_people_who_are_asked_alone(finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[frozenset[str]] = []

    def texts(subject: Any, state: Any, people: frozenset[str], asked: Any) -> Any:
        read.append(people)
        return ()

    monkeypatch.setattr(stage, "_texts", texts)
    state = read_state("small", finished_stores)
    plan = work_plan(state)
    each = stage._Subject("each", {p: one[0] for p, one in plan.methods["per_persona"].arms_by_persona})
    stage._measured(each, state, plan, finished_stores, LOG, n_prompts=2, n_words=8)
    assert len(each.answers_with) == 7
    assert [len(people) for people in read] == [1, 1]


def test_the_command_runs_the_copy_first_and_stops_where_that_does_not_end(
    finished_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Study] = []

    def run_study(study: Study, **_: object) -> SimpleNamespace:
        launched.append(study)
        return SimpleNamespace(completed=False)

    monkeypatch.setattr(cli, "open_local_stores", lambda **_: finished_stores)
    monkeypatch.setattr(cli, "deployments", lambda _: SimpleNamespace(run_study=run_study))
    result = CliRunner().invoke(cli.privacy, ["small", "--canaries", "3"])
    assert result.exit_code == 1
    assert "small-canaries did not end" in result.output
    assert [one.data.canaries for one in launched] == [3]


def test_the_sentence_names_who_remembers_what() -> None:
    seen = exposures([(0.0, np.ones(255))] * 3)
    memory = Memorisation(adapters=(AdapterMemory(name="unified", membership=None, exposure=seen),), n_words=8, canaries_in="demo-canaries")
    assert sentence(memory) == "Memorised more than chance: unified: canaries are remembered. Canaries are those of study demo-canaries."


def test_the_sentence_says_what_could_not_be_measured_and_what_would_have_been_shown() -> None:
    nothing = sentence(Memorisation(adapters=(), n_words=8))
    assert "could not be measured" in nothing
    assert "no unified" in nothing
    short = Copies(prompts="train", n_answers=0, longest=0, learnt=0.0, never_learnt=0.0, by_chance=0.0, least=None)
    few = replace(short, prompts="test", n_answers=20, learnt=0.2, by_chance=0.2, least=81)
    alone = sentence(Memorisation(adapters=(AdapterMemory(name="unified", membership=None, copies=(few, short)),), n_words=8))
    assert "Nothing is shown" not in alone
    for part in (
        "membership, as nobody",
        "20 answers are too few: it takes 81",
        "have answers of 8 words (--words): unified",
    ):
        assert part in alone
    told = Membership(
        n_people=9,
        n_trained_on=90,
        n_held_out=45,
        auc=0.51,
        auc_by_chance=0.58,
        false_positive_rate=1 / 45,
        true_positive_rate=0.02,
        true_positives_by_chance=0.125,
    )
    one = AdapterMemory(name="unified", membership=told, copies=(replace(few, least=7),))
    said_of = sentence(Memorisation(adapters=(one,), n_words=8))
    assert said_of.startswith(
        "Nothing is shown to be memorised more than chance would have it. Shown would have been, at best: AUC above 0.580"
    )
    assert "true positives above 12.5%, 7 of 20 answers to test prompts that repeat" in said_of
