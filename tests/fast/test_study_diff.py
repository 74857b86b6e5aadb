"""Two studies side by side: what differs, what is shared, and scores on the test items of both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clusterlora.cli import main
from clusterlora.cli import study_diff as command
from clusterlora.comparison.across_studies import AcrossStudies, compare_across
from clusterlora.errors import BadSettings
from clusterlora.ports.stores import Stores
from clusterlora.results.study_diff import study_diff
from clusterlora.settings import Study
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Dataset, EvaluationRow
from tests.fixtures.stages import LOG, plan_of, run, state_of, study_of_five, train_named
from tests.fixtures.studies import memory_stores


def rows(method: str, scores: dict[str, list[float]]) -> list[EvaluationRow]:
    return [
        EvaluationRow(method=method, persona_id=p, cluster=0, item_id=f"d{i}#2", prompt="", reference="", text="", scores={"nll": score})
        for p, values in scores.items()
        for i, score in enumerate(values)
    ]


PEOPLE = {f"p{n}": [1.0 + 0.01 * n, 2.0 + 0.01 * n] for n in range(12)}


def across(first: list[EvaluationRow], second: list[EvaluationRow], items: frozenset[tuple[str, str]]) -> AcrossStudies:
    return compare_across(
        first,
        second,
        items,
        methods=["unified", "cluster"],
        champions=("unified", "unified"),
        higher_is_better={"nll": False},
        draws=200,
        margins={"nll": 0.01},
        rng=np.random.default_rng(0),
    )


@pytest.mark.whole
def test_a_planted_difference_is_found_on_the_shared_items_alone() -> None:
    better = {p: [score - 0.5 for score in values] for p, values in PEOPLE.items()}
    worse_elsewhere = {p: [*values, 99.0] for p, values in better.items()}
    shared = frozenset((p, f"d{i}#2") for p in PEOPLE for i in (0, 1))
    found = across(rows("unified", PEOPLE), rows("unified", worse_elsewhere), shared)
    (one,) = found.methods
    assert (found.n_personas, found.n_items) == (12, 24)
    assert one.difference.mean == pytest.approx(-0.5)
    assert one.difference.outcome == "better"
    assert one.second == pytest.approx(one.first - 0.5)
    assert found.unanswered == ("cluster",)


def test_without_shared_items_nothing_is_compared() -> None:
    found = across(rows("unified", PEOPLE), rows("unified", PEOPLE), frozenset())
    assert (found.n_items, found.methods) == (0, ())


def test_a_method_that_is_half_evaluated_is_left_out_and_shrinks_nothing() -> None:
    shared = frozenset((p, f"d{i}#2") for p in PEOPLE for i in (0, 1))
    unified, cluster = rows("unified", PEOPLE), rows("cluster", PEOPLE)
    found = across([*unified, *cluster], [*unified, *cluster[:1]], shared)
    assert (found.n_personas, found.n_items, found.unanswered) == (12, 24, ("cluster",))
    assert [one.method for one in found.methods] == ["unified"]
    other_seed = [replace(row, seed=1) for row in unified]
    found = across([*unified, *cluster], [*unified, *other_seed[:3], *cluster], shared)
    assert (found.n_items, found.unanswered, [one.method for one in found.methods]) == (24, ("unified",), ["cluster"])
    assert across(unified, [*unified, *other_seed], shared).unanswered == ("cluster",)


@pytest.fixture
def five(tiny_base_folder: Path, tmp_path: Path) -> tuple[Study, Stores]:
    """Return a study of five people with their adapters, and its stores."""
    stores = memory_stores(tmp_path)
    study = study_of_five(tiny_base_folder, stores)
    train_named(study, stores, ("unified",))
    return study, stores


def test_settings_data_and_adapters_are_told_apart(five: tuple[Study, Stores]) -> None:
    study, stores = five
    other = replace(study, name="other", methods=("unified",), evaluation=replace(study.evaluation, max_new_tokens=6))
    prepare_study(other, stores, LOG)
    stores.studies.save_clustering("other", state_of(study, stores).clustering)  # pyrefly: ignore[bad-argument-type]
    train_named(other, stores, ("unified",))
    found = study_diff("tried", "other", stores)
    assert {one.name for one in found.settings} == {"methods", "evaluation.max_new_tokens"}
    assert found.data.same
    assert found.shared_adapters == ("unified",)
    assert any("no test item is answered" in note for note in found.notes)
    assert any("cut at 4 and 6 tokens" in note for note in found.notes)
    assert plan_of(study, stores).keys["unified"] == plan_of(other, stores).keys["unified"]


def test_dialogues_that_one_study_learns_from_are_not_shared_and_that_is_said(five: tuple[Study, Stores]) -> None:
    study, stores = five
    prepare_study(replace(study, name="other", data=replace(study.data, split_seed=study.data.split_seed + 1)), stores, LOG)
    found = study_diff("tried", "other", stores)
    assert not found.data.same
    assert found.data.n_moved > 0
    assert found.data.n_test_items[2] < found.data.n_test_items[0]
    assert any("has learnt from it" in sentence for sentence in found.data.sentences)


def test_other_words_under_the_same_id_are_not_the_same_item(five: tuple[Study, Stores]) -> None:
    study, stores = five
    dataset = stores.studies.dataset("tried")
    reworded = Dataset(
        tuple(
            replace(
                person,
                dialogues=tuple(replace(d, turns=(replace(d.turns[0], text="Something else"), *d.turns[1:])) for d in person.dialogues),
            )
            for person in dataset.personas
        )
    )
    prepared = replace(state_of(study, stores).settings, name="other")
    stores.studies.create_study(prepared)
    stores.studies.save_dataset("other", reworded)
    stores.studies.save_metadata("other", state_of(study, stores).prepared_with)
    found = study_diff("tried", "other", stores)
    assert found.data.n_test_items[2] == 0
    assert found.data.n_changed == 5


def test_a_study_is_not_compared_with_itself(stores: Stores) -> None:
    with pytest.raises(BadSettings, match="with itself"):
        study_diff("demo", "demo", stores)


@pytest.mark.whole
def test_the_command_prints_scores_with_intervals(
    seven: Study, finished_stores: Stores, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(replace(seven, name="again", methods=("baseline", "unified")), finished_stores)
    monkeypatch.setattr(command, "open_local_stores", lambda: finished_stores)
    assert main(["study", "diff", "small", "again"]) == 0
    printed = capsys.readouterr().out
    assert "shared test items of 7 people" in printed
    assert "of which 1 are the same trainings (unified)" in printed
    assert main(["study", "diff", "small", "again", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {one["method"] for one in record["scores"]["methods"]} == {"baseline", "unified"}
    assert [one["difference"]["mean"] for one in record["scores"]["methods"]] == pytest.approx(
        [0.0] * len(record["scores"]["methods"]), abs=1e-5
    )
    assert [one["name"] for one in record["settings"]] == ["methods"]
