"""One contract, three study stores: in memory, SQLite and PostgreSQL."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.metadata import (
    DataWarnings,
    ReferencePoints,
    Refinement,
    Workers,
)
from clusterlora.ports.study_store import StudyStore
from clusterlora.recipe import Recipe
from clusterlora.settings import RuntimeSettings, Study, prepared
from clusterlora.stores.metadata_kinds import NAME_BY_KIND
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import (
    AdapterComposition,
    AdapterSpec,
    Answer,
    Attempt,
    Clustering,
    Criterion,
    Dataset,
    Dialogue,
    LearningCurve,
    Persona,
    Route,
    TrainedAdapter,
    Turn,
    Verdict,
    WeightedAdapter,
)
from tests.fixtures.memory import MemoryStudyStore
from tests.fixtures.metadata import EVERY_KIND

STUDY = prepared(Study(name="contract"), "float32")


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.all)])
def empty_store(request: pytest.FixtureRequest, tmp_path: Path) -> StudyStore:
    if request.param == "memory":
        return MemoryStudyStore()
    url = f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return SqlStudyStore(url)


@pytest.fixture
def store(empty_store: StudyStore) -> StudyStore:
    empty_store.create_study(STUDY)
    empty_store.save_metadata(STUDY.name, Refinement(1))
    return empty_store


def people(text: str = "hello") -> Dataset:
    def dialogue(number: int) -> Dialogue:
        turns = (Turn("user", f"{text} {number}"), Turn("assistant", 'yes, \u00e4\U0001f600 it\'s "done"\nat 22\u00b0'))
        return Dialogue(f"d{number}", turns, (("time_of_day", "evening"),), "train" if number < 2 else None)

    # Neither ids nor dialogues in alphabetical order: a store must not sort them.
    dialogues = tuple(dialogue(number) for number in (2, 0, 1))
    return Dataset((Persona("z", None, dialogues), Persona("../../x", "a 'person'", dialogues), Persona("\u00e9", "", dialogues)))


def trained(key: str = "0123abcd", name: str = "cluster-00", **changes: Any) -> TrainedAdapter:
    spec = AdapterSpec(name=name, persona_ids=("z", "../../x"), recipe=Recipe(rank=4), init_from="unified")
    adapter = TrainedAdapter(key, name, spec, 12, 3_000_000_000, 1.5, 2.5, 1.25, 5_000_000_000, "run", "runs:/run/adapter")
    return replace(adapter, **changes)


def answer(item: str = "i0", *, stack: str = "s0", text: str = "fine", **scores: float) -> Answer:
    return Answer(stack, item, "z", "test", text, tuple(scores.items()))


def verdict(rung: str, value: float = 0.9) -> Verdict:
    criteria = (
        Criterion("mean_similarity", value, 0.83, value > 0.83, None, 0.95, "mean over personas"),
        Criterion("worst_persona", 0.71, 0.7, True, None, None, "persona z"),
    )
    return Verdict(rung, f"cluster-00-{rung}", criteria, 16, 96)


def test_a_study_is_read_back_with_its_settings_and_metadata(store: StudyStore) -> None:
    assert store.study("contract") == STUDY
    assert store.metadata("contract", Refinement) == Refinement(1)
    assert store.status("contract") == "created"


def test_studies_are_listed_newest_first(store: StudyStore) -> None:
    store.create_study(prepared(Study(name="another"), "float32"))
    store.set_status("contract", "gate refused: mean similarity 0.79 is not above 0.83, and this sentence is longer than 64 characters")
    (first, status, created), (second, second_status, _) = store.studies()
    assert (first, status, second) == ("another", "created", "contract")
    assert second_status.startswith("gate refused")
    assert created[:2] == "20"


def test_resuming_with_the_same_settings_is_fine_and_runtime_may_change(store: StudyStore) -> None:
    elsewhere = replace(STUDY, runtime=RuntimeSettings(shards=8))
    store.set_status("contract", "running")
    store.create_study(elsewhere)
    assert store.study("contract") == elsewhere
    assert store.metadata("contract", Refinement) == Refinement(1)
    assert store.status("contract") == "running"
    assert len(store.studies()) == 1


def test_resuming_with_other_settings_is_refused_naming_the_fields(store: StudyStore) -> None:
    other = replace(STUDY, recipe=Recipe(rank=16), methods=("unified",))
    with pytest.raises(BadSettings, match=r"methods was .*recipe\.rank was 8, is 16") as refusal:
        store.create_study(other)
    assert "alpha" not in str(refusal.value)
    assert store.study("contract") == STUDY
    assert store.metadata("contract", Refinement) == Refinement(1)


@pytest.mark.parametrize("name", ["", "Mission", "../x", "a/b", "-a", "a b", "x" * 49, "a\n"])
def test_a_study_name_that_could_be_a_path_is_refused(empty_store: StudyStore, name: str) -> None:
    with pytest.raises(BadSettings, match="study name"):
        empty_store.create_study(prepared(Study(name=name), "float32"))


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.study("nobody"),
        lambda s: s.status("nobody"),
        lambda s: s.set_status("nobody", "running"),
        lambda s: s.save_metadata("nobody", Refinement(1)),
        lambda s: s.metadata("nobody", Refinement),
        lambda s: s.add_seconds("nobody", "prepare", "", 1.0),
        lambda s: s.seconds("nobody"),
        lambda s: s.save_dataset("nobody", people()),
        lambda s: s.dataset("nobody"),
        lambda s: s.clustering("nobody"),
        lambda s: s.save_adapter("nobody", trained()),
        lambda s: s.adapters("nobody"),
        lambda s: s.learning_curves("nobody"),
        lambda s: s.close_attempt("nobody", "group", 1, state="lost"),
        lambda s: s.attempts("nobody"),
        lambda s: s.save_answers("nobody", [answer()]),
        lambda s: s.answers("nobody"),
        lambda s: s.routes("nobody"),
        lambda s: s.verdicts("nobody"),
    ],
)
def test_an_unknown_study_is_named_with_those_there_are(store: StudyStore, use: Callable[[StudyStore], object]) -> None:
    with pytest.raises(UnknownName, match="unknown study 'nobody'; known: contract"):
        use(store)


@pytest.mark.parametrize("value", EVERY_KIND, ids=lambda value: type(value).__name__)
def test_metadata_of_every_kind_are_read_back_as_they_were_saved(store: StudyStore, value: object) -> None:
    store.create_study(prepared(Study(name="second"), "float32"))
    store.save_metadata("second", value)
    assert store.metadata("second", type(value)) == value
    assert store.metadata("contract", type(value)) == (Refinement(1) if isinstance(value, Refinement) else None)


def test_every_kind_of_metadata_has_an_example_and_a_word_of_its_own() -> None:
    assert {type(value) for value in EVERY_KIND} == set(NAME_BY_KIND)
    assert len(set(NAME_BY_KIND.values())) == len(NAME_BY_KIND)


def test_the_last_metadata_of_a_kind_stay(store: StudyStore) -> None:
    store.save_metadata("contract", ReferencePoints(0.25, None, "abc"))
    store.save_metadata("contract", ReferencePoints(0.5, 0.75, "def"))
    assert store.metadata("contract", ReferencePoints) == ReferencePoints(0.5, 0.75, "def")


def test_the_seconds_of_a_part_that_runs_again_are_added(store: StudyStore) -> None:
    for phase, part, seconds in (("train", "unified", 1.5), ("prepare", "", 0.5), ("train", "cluster-00", 2.0), ("train", "unified", 0.25)):
        store.add_seconds("contract", phase, part, seconds)
    assert store.seconds("contract") == (("prepare", "", 0.5), ("train", "cluster-00", 2.0), ("train", "unified", 1.75))


def test_data_are_read_back_in_their_order(store: StudyStore) -> None:
    with pytest.raises(UnknownName, match="no data yet"):
        store.dataset("contract")
    store.save_dataset("contract", people())
    store.save_dataset("contract", people())
    assert store.dataset("contract") == people()


def test_other_data_under_the_same_study_are_refused(store: StudyStore) -> None:
    store.save_dataset("contract", people())
    with pytest.raises(BadData, match="holds other data"):
        store.save_dataset("contract", people("good evening"))
    assert store.dataset("contract") == people()


def test_a_clustering_replaces_the_one_before(store: StudyStore) -> None:
    assert store.clustering("contract") is None
    store.save_clustering("contract", Clustering("description", (("a",), ("b",), ("c", "d", "e"))))
    clustering = Clustering(
        "responses", (("z", "a"), ("b",)), (("silhouette", 0.2),), (("z", 0.0, -1.5), ("a", 1.0, 2.0)), ((2, 0.5, 1.25),)
    )
    store.save_clustering("contract", clustering)
    assert store.clustering("contract") == clustering


def test_the_first_record_of_an_adapter_stays_and_serves_every_study(store: StudyStore) -> None:
    store.save_adapter("contract", trained())
    store.save_adapter("contract", trained(seconds=99.0))
    store.create_study(prepared(Study(name="second"), "float32"))
    assert store.adapters("second") == ()
    store.save_adapter("second", trained())
    assert store.adapter("0123abcd") == trained()
    assert store.adapters("contract") == store.adapters("second") == (trained(),)
    assert store.adapter("ffff") is None


@pytest.mark.parametrize("lost", [trained(), trained(uri=None, run_id=None), trained(weights_sha256="a" * 64, last_loss=math.nan)])
def test_a_record_whose_weights_are_lost_is_replaced_for_every_study_and_only_once(store: StudyStore, lost: TrainedAdapter) -> None:
    store.save_adapter("contract", lost)
    store.create_study(prepared(Study(name="second"), "float32"))
    again = trained(run_id="again", uri="runs:/again/adapter", weights_sha256="b" * 64)
    store.save_adapter("second", again, instead_of=lost)
    assert store.adapters("contract") == store.adapters("second") == (again,)
    store.save_adapter("second", trained(run_id="later", uri="runs:/later/adapter"), instead_of=lost)
    assert store.adapter("0123abcd") == again, "whoever finishes later leaves the record of weights that exist"


def test_learning_curves_are_kept_to_six_digits_for_every_study_that_has_the_adapter(store: StudyStore) -> None:
    train, val = LearningCurve("train", (2.5, 1.23456789, 0.000123456789)), LearningCurve("val", (1.5,))
    store.save_adapter("contract", trained("1", "unified"), curves=(val, train))
    store.save_adapter("contract", trained("2", "merged-00"))
    rounded = LearningCurve("train", (2.5, 1.23457, 0.000123457))
    assert store.learning_curves("contract") == {"1": (rounded, val)}
    store.create_study(prepared(Study(name="second"), "float32"))
    assert store.learning_curves("second") == {}
    store.save_adapter("second", trained("1", "unified"))
    assert store.learning_curves("second") == {"1": (rounded, val)}


def test_a_forgotten_adapter_takes_its_learning_curves_with_it(store: StudyStore) -> None:
    store.save_adapter("contract", trained(), curves=(LearningCurve("train", (2.5, 1.25)),))
    store.forget_adapter("0123abcd")
    assert store.learning_curves("contract") == {}
    store.save_adapter("contract", trained(), curves=(LearningCurve("train", (2.0, 1.0)),))
    assert store.learning_curves("contract") == {"0123abcd": (LearningCurve("train", (2.0, 1.0)),)}


def test_an_adapter_is_not_forgotten_where_a_study_has_it_that_is_not_named(store: StudyStore) -> None:
    store.create_study(prepared(Study(name="second"), "float32"))
    for study in ("contract", "second"):
        store.save_adapter(study, trained())
    assert not store.forget_adapter("0123abcd", only_of=["contract"])
    assert [len(store.adapters(study)) for study in ("contract", "second")] == [1, 1]
    assert store.forget_adapter("0123abcd", only_of=["contract", "second"])
    assert (store.adapter("0123abcd"), store.adapters("second")) == (None, ())


def test_a_study_forgets_its_data_and_what_was_derived_from_them_and_keeps_what_is_named(store: StudyStore) -> None:
    store.save_dataset("contract", people())
    store.save_clustering("contract", Clustering("given", (("ana",),)))
    store.save_metadata("contract", DataWarnings(of_dialogues=("said",)))
    store.save_adapter("contract", trained())
    store.unlink_adapter("contract", "0123abcd")
    other = people("other")
    store.forget_data("contract", other, Clustering("given", (("bob",),)), [Refinement], [Workers(3)])
    store.scrub()
    assert store.dataset("contract") == other
    assert store.clustering("contract") == Clustering("given", (("bob",),))
    assert store.metadata("contract", DataWarnings) is None
    assert store.metadata("contract", Refinement) == Refinement(1)
    assert store.metadata("contract", Workers) == Workers(3)
    assert store.adapters("contract") == ()
    assert store.adapter("0123abcd") is not None, "other studies may have it"
    others = [name for name, *_ in store.studies() if name != "contract"]
    store.forget_study("contract")
    assert [name for name, *_ in store.studies()] == others
    with pytest.raises(UnknownName):
        store.dataset("contract")


def test_adapters_come_by_name(store: StudyStore) -> None:
    for key, name in [("1", "unified"), ("2", "cluster-01"), ("3", "cluster-00")]:
        store.save_adapter("contract", trained(key, name))
    assert [a.name for a in store.adapters("contract")] == ["cluster-00", "cluster-01", "unified"]


def test_an_adapter_whose_loss_is_not_a_number_is_kept(store: StudyStore) -> None:
    store.save_adapter("contract", trained(last_loss=math.nan))
    (adapter,) = store.adapters("contract")
    assert math.isnan(adapter.last_loss)


def test_the_first_final_state_of_an_attempt_is_kept(store: StudyStore) -> None:
    store.open_attempt("contract", Attempt("cluster-00", 1, 2, "running"))
    store.open_attempt("contract", Attempt("cluster-00", 1, 4, "running"))
    store.close_attempt("contract", "cluster-00", 1, state="out_of_memory", detail="at 4", peak_memory_bytes=80_000_000_000)
    store.close_attempt("contract", "cluster-00", 1, state="lost")
    store.open_attempt("contract", Attempt("cluster-00", 1, 4, "running"))
    assert store.attempts("contract") == (Attempt("cluster-00", 1, 4, "out_of_memory", "at 4", 80_000_000_000),)


def test_an_attempt_that_never_started_is_closed_with_no_micro_batch(store: StudyStore) -> None:
    store.close_attempt("contract", "cluster-00", 3, state="crashed", detail="worker gone")
    assert store.attempts("contract", "cluster-00") == (Attempt("cluster-00", 3, 0, "crashed", "worker gone"),)


def test_the_smallest_memory_limit_of_a_device_is_kept(store: StudyStore) -> None:
    assert store.memory_limit("rev", "gpu, 24 GiB", 512) is None
    for micro_batch in (4, 2, 8):
        store.save_memory_limit("rev", "gpu, 24 GiB", 512, micro_batch=micro_batch)
    assert store.memory_limit("rev", "gpu, 24 GiB", 512) == 2
    assert store.memory_limit("rev", "gpu, 80 GiB", 512) is None
    assert store.memory_limit("rev", "gpu, 24 GiB", 1024) is None


def test_attempts_come_by_group_and_number(store: StudyStore) -> None:
    for group, number in [("unified", 1), ("cluster-00", 10), ("cluster-00", 2)]:
        store.open_attempt("contract", Attempt(group, number, 2, "running"))
    assert [(a.group, a.number) for a in store.attempts("contract")] == [("cluster-00", 2), ("cluster-00", 10), ("unified", 1)]
    assert [a.group for a in store.attempts("contract", "unified")] == ["unified"]


def test_answers_are_written_once_however_often_they_are_saved(store: StudyStore) -> None:
    answers = [answer("i1", rouge_l=0.5, nll=1.25), answer("i0", nll=2.0), answer("i0", stack="s1", nll=math.inf)]
    store.save_answers("contract", answers)
    store.save_answers("contract", iter(answers))
    assert store.answers("contract") == (
        answer("i0", nll=2.0),
        answer("i1", nll=1.25, rouge_l=0.5),
        answer("i0", stack="s1", nll=math.inf),
    )


def test_a_later_answer_replaces_text_and_scores_of_the_one_before(store: StudyStore) -> None:
    store.save_answers("contract", [answer(text="first", nll=2.0, rouge_l=0.5)])
    store.save_answers("contract", [answer(text="second", nll=1.0)])
    assert store.answers("contract") == (answer(text="second", nll=1.0),)


def test_an_answer_given_twice_in_one_call_counts_once(store: StudyStore) -> None:
    store.save_answers("contract", [answer(text="first", nll=2.0), answer(text="second", nll=1.0)])
    assert store.answers("contract") == (answer(text="second", nll=1.0),)


def test_answers_of_any_number_of_compositions_are_read(store: StudyStore) -> None:
    """Everybody's own adapter is a composition; SQLite takes 250,000 values in a query, PostgreSQL 65,535."""
    keys = [f"{number:06d}" for number in range(300_000)]
    answers = [replace(answer(nll=1.0), composition_key=key) for key in (keys[0], keys[4999], keys[5000], keys[-1])]
    store.save_answers("contract", [*answers, replace(answer(nll=1.0), composition_key="another")])
    assert store.answers("contract", keys[::-1]) == tuple(answers)
    assert store.answers("contract", []) == ()


def test_answers_are_read_by_composition(store: StudyStore) -> None:
    store.save_answers("contract", [answer(stack=s, nll=1.0) for s in ("s0", "s1", "s2")])
    assert [a.composition_key for a in store.answers("contract", ["s2", "s0", "s9"])] == ["s0", "s2"]
    assert store.answers("contract", []) == ()


def test_scores_are_read_without_texts_by_composition_metric_and_split(store: StudyStore) -> None:
    in_val = replace(answer("i2", stack="s0", nll=4.0), split="val")
    answers = [
        answer("i0", stack="s0", nll=2.0, rouge_l=0.5),
        answer("i1", stack="s0", rouge_l=0.25),
        answer("i0", stack="s1", nll=3.0),
        in_val,
    ]
    store.save_answers("contract", [*answers, answer("i0", stack="other", nll=9.0)])
    assert store.item_scores("contract", ["s1", "s0", "none"], {"nll"}, in_val.split) == {("s0", in_val.persona_id, "i2"): {"nll": 4.0}}
    everything = store.item_scores("contract", ["s1", "s0"], {"nll", "rouge_l", "unknown"})
    assert everything == {(a.composition_key, a.persona_id, a.item_id): dict(a.scores) for a in answers}
    # What has been answered without this metric is answered all the same.
    assert store.item_scores("contract", ["s0"], {"nll"}, "test")["s0", answers[1].persona_id, "i1"] == {}
    assert store.item_scores("contract", [], {"nll"}) == {}


def test_an_item_score_of_nan_is_nan(store: StudyStore) -> None:
    store.save_answers("contract", [answer(nll=math.nan)])
    ((only, of_answer),) = store.item_scores("contract", [answer().composition_key], {"nll"}).items()
    assert only == (answer().composition_key, answer().persona_id, answer().item_id)
    assert math.isnan(of_answer["nll"])


def test_a_score_of_nan_is_stored_as_nan(store: StudyStore) -> None:
    store.save_answers("contract", [answer(nll=math.nan, text="\u00e9 100% \U0001f600 '")])
    ((name, value),) = store.answers("contract")[0].scores
    assert name == "nll"
    assert math.isnan(value)


def test_studies_do_not_see_each_others_answers(store: StudyStore) -> None:
    store.create_study(prepared(Study(name="second"), "float32"))
    store.save_answers("contract", [answer(nll=1.0)])
    store.save_answers("second", [answer(nll=2.0)])
    assert store.answers("contract") == (answer(nll=1.0),)
    assert store.answers("second") == (answer(nll=2.0),)


def test_a_route_replaces_the_one_of_its_method_persona_and_seed_only(store: StudyStore) -> None:
    stack, base = AdapterComposition((WeightedAdapter("unified"), WeightedAdapter("residual-z", 0.25)), shots=3), AdapterComposition()
    store.save_routes(
        "contract",
        [Route("cluster", "z", stack), Route("baseline", "z", base), Route("cluster", "a", stack), Route("cluster", "a", stack, 1)],
    )
    store.save_routes("contract", [Route("cluster", "a", base)])
    store.save_routes("contract", [])
    assert store.routes("contract") == (
        Route("baseline", "z", base),
        Route("cluster", "a", base),
        Route("cluster", "a", stack, 1),
        Route("cluster", "z", stack),
    )


def test_verdicts_come_in_the_order_of_the_ladder(store: StudyStore) -> None:
    for rung in ("first", "lower-lr", "apart"):
        store.save_verdict("contract", verdict(rung, 0.5))
    store.save_verdict("contract", verdict("lower-lr", 0.9))
    assert store.verdicts("contract") == (verdict("first", 0.5), verdict("lower-lr", 0.9), verdict("apart", 0.5))
