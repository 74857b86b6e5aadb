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
from clusterlora.evaluation.memorisation import AdapterMemory, Group, Memorisation, Said, Text, copies, exposures, membership
from clusterlora.evaluation.memorisation_words import sentence
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    RuntimeSettings,
    Study,
    SyntheticSettings,
)
from clusterlora.stages.compare import compare_study
from clusterlora.stages.privacy import canary_copy, measure_privacy
from clusterlora.stages.refresh import next_refresh
from clusterlora.stores.sql import SqlStudyStore
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


def test_a_memorising_adapter_is_caught_and_told_in_summary_and_report(tiny_base_folder: Path, stores: Stores) -> None:
    study = tried(tiny_base_folder, stores, canaries=4, epochs=40, learning_rate=1e-2)
    memory = measure_privacy(study.name, stores, LOG, n_prompts=10, n_words=3)
    (unified,) = memory.adapters
    assert unified.membership is not None
    assert unified.membership.auc_low > 0.8
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


def test_an_adapter_that_was_not_trained_is_at_chance(tiny_base_folder: Path, stores: Stores) -> None:
    study = tried(tiny_base_folder, stores, epochs=1, learning_rate=1e-30)
    (unified,) = measure_privacy(study.name, stores, LOG, n_prompts=10, n_words=3).adapters
    assert unified.membership is not None
    assert (unified.membership.auc, unified.membership.auc_low, unified.membership.true_positive_rate) == (0.5, 0.5, 0.0)
    assert not unified.found
    assert unified.exposure is None
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    assert "Nothing is shown to be memorised" in summary
    assert "Exposure is not measured, as no canaries were planted" in summary


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
    assert noise.auc_low < 0.5 < noise.auc_high
    assert not noise.is_found
    assert (sure.auc, sure.true_positive_rate, sure.false_positive_rate) == (1.0, 1.0, 0.01)
    assert noise.true_positive_low < 0.01 < noise.true_positive_high, "as many true positives as false ones"
    assert membership(np.arange(4), np.ones(4), np.array([1, 1, 0, 0])) is None, "nobody has both"
    shifted = membership(people, 0.1 * rng.normal(size=400) + people, trained_on)
    assert shifted is not None
    assert not shifted.is_found, "who talks in what manner says nothing"


LETTERS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def said(p: str, dialogue: int, text: str, own: str = "none") -> Said:
    return Said(p, f"{p}\n{dialogue}", text, own)


def test_verbatim_spans_are_found_word_by_word() -> None:
    text = Text([("a", "Dim the lamp, please, to 40 %."), ("b", "the LAMP please")])
    assert text.longest("I dim the lamp please now") == 4
    assert text.longest("I dim the lamp please now", without="a") == 3
    assert text.longest("nothing shared") == 0
    assert text.longest("the the lamp") == 2
    assert text.some(3, np.random.default_rng(0)).n_words == 3


def test_copies_are_what_is_repeated_of_learnt_text_beyond_text_that_was_not_learnt() -> None:
    people = [f"p{n}" for n in range(12)]
    own = {p: [f"{p} says {i} {' '.join(np.random.default_rng(i).permutation(LETTERS))}" for i in range(4)] for p in people}
    learnt = Text((f"{p}\n{i}", own[p][i]) for p in people for i in (0, 1))
    held_out = Text((f"{p}\n{i}", own[p][i]) for p in people for i in (2, 3))

    def group(repeat: bool) -> Group:
        test = tuple(said(p, 2, own[p][0] if repeat else "who knows", own[p][2]) for p in people)
        train = tuple(said(p, 0, own[p][0] if repeat else "who knows", own[p][0]) for p in people)
        return Group(test, train, learnt, held_out, others=None)

    of_test, of_train = copies([group(True)], n_words=10)
    assert (of_test.rate, of_test.never_learnt, of_test.longest, of_test.is_found) == (1.0, 0.0, 11, True)
    assert (of_train.rate, of_train.never_learnt, of_train.is_found) == (1.0, 0.0, True)
    assert not any(one.is_found or one.rate for one in copies([group(False)], n_words=3))
    # Whoever talks as everybody does repeats what was never learnt as often.
    manner = " ".join(LETTERS)
    both = Text([("x", manner)])
    alike = copies([Group((said("a", 0, manner, manner),) * 9, (said("a", 1, manner, manner),) * 9, both, both, both)], n_words=5)
    assert [(one.rate, one.others, one.is_found) for one in alike] == [(1.0, 1.0, False)] * 2


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


def test_every_shared_adapter_and_the_champion_is_measured(finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "open_local_stores", lambda **_: finished_stores)
    told = CliRunner().invoke(cli.privacy, ["small", "--prompts", "4"], catch_exceptions=False)
    assert "AUC" in told.stdout
    memory = json.loads((finished_stores.folder("small") / "results" / "privacy.json").read_text())
    names = [one["name"] for one in memory["adapters"]]
    assert names[:3] == ["unified, the champion" if "unified, the champion" in names else "unified", "cluster-00", "cluster-01"]
    assert [one["membership"]["n_people"] for one in memory["adapters"][:3]] == [7, 3, 4]
    assert memory["adapters"][1]["copies"][0]["others"] is not None, "other people's text"
    assert memory["adapters"][0]["copies"][0]["others"] is None, "everybody's was learnt"


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
