"""Answers that are labels or ratings: chosen by their likelihood, measured, refused where they cannot be, from the file to the report."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from clusterlora.adapters.compositions import combined_weights
from clusterlora.cli import main
from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.result import Comparison
from clusterlora.config import resolve
from clusterlora.data.lengths import example_lengths
from clusterlora.data.load import load, read
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.prompts import prompt_encoder
from clusterlora.data.validate import examine
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.errors import BadData, BadSettings
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.metric import LabelProbabilities, Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import ReferencePoints
from clusterlora.models.base import load_base
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.persona_signal.summary import expectation, verdict
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import sentences
from clusterlora.serving.live_model import Loaded, Served
from clusterlora.serving.router import Router
from clusterlora.settings import DataSettings, PreparedEvaluation, PreparedModel, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.persona_signal import signal_of_data, signal_of_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.probe import probed
from clusterlora.stages.register import register_models
from clusterlora.stages.scale import scale
from clusterlora.stores.json_codec import from_plain, plain
from clusterlora.stores.routing_table import RoutingTable
from clusterlora.values import EvaluationRow, Item, Turn
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown, request_of, rows_of, run, run_rest, run_tuning, state_of
from tests.fixtures.studies import seven_people

THINGS = ("tea", "rain", "chess", "jazz", "snow", "soup", "maths", "poker", "sailing", "opera", "cheese", "running", "beer", "novels")


class NoEmbedder:
    name = revision = "none"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(f"labels are not embedded: {texts}")


def scored(metric: str, probabilities: Sequence[Sequence[float]], references: Sequence[str], labels: Sequence[str]) -> list[float]:
    chosen = LabelProbabilities(tuple(labels), np.array(probabilities))
    answers = Scorable(texts=chosen.likeliest, references=references, embedder=NoEmbedder(), probabilities=chosen)
    return METRICS[metric].score(answers).tolist()


def test_accuracy_is_of_the_likeliest_label_and_errors_are_of_the_expected_rating():
    thirds, references = [[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], ["1", "5"]
    assert scored("accuracy", thirds, references, ("1", "3", "5")) == [1.0, 1.0]
    # Expected ratings: .5 + .6 + 1.5 = 2.6 and .1 + .6 + 3.5 = 4.2.
    for metric in ("mae", "rmse"):
        assert scored(metric, thirds, references, ("1", "3", "5")) == pytest.approx([1.6, 0.8])


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mae", "rmse"])
def test_metrics_of_labels_need_the_probabilities(metric: str):
    with pytest.raises(BadData, match="needs the probabilities of the labels"):
        METRICS[metric].score(Scorable(texts=["1"], references=["1"], embedder=NoEmbedder()))


@pytest.mark.numeric
@pytest.mark.parametrize("layout", ["as on a CPU", "as on a GPU"])
def test_labels_are_scored_as_transformers_scores_each_alone(layout: str, tiny_base_folder: Path, request: pytest.FixtureRequest):
    if layout == "as on a GPU":
        request.getfixturevalue("as_on_a_gpu")
    base = load_base(str(tiny_base_folder))
    labels = ("no", "yes", "yes yes", "perhaps")
    things = [Item(f"{n}#1", "ann", "test", (Turn("system", "Say so."), Turn("user", f"Is it {n}? " * 9)), "yes") for n in range(3)]
    settings = PreparedEvaluation(metrics=("accuracy", "nll", "prompt_tokens"), headline="accuracy")
    answerer = Answerer(base, NoEmbedder(), settings, PreparedModel(max_length=1024), labels=labels)
    nothing = combined_weights((), lambda name: pytest.fail(name))
    requests = [AnswerRequest("base", item) for item in things]
    answers = answerer.answer(requests, {"base": nothing}, metrics=settings.metrics, run_log=SilentLog())
    for item, answer in zip(things, answers, strict=True):
        alone = {}
        said = [{"role": turn.role, "content": turn.text} for turn in item.messages]
        prompt = str(base.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
        start = base.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for label in labels:
            ids = start + base.tokenizer(f"{label}<|im_end|>\n", add_special_tokens=False)["input_ids"]
            ids = ids[: ids.index(2, len(start)) + 1]
            logits = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            alone[label] = sum(float(logits[i - 1, ids[i]]) for i in range(len(start), len(ids)))
            if label == item.reference:
                assert dict(answer.scores)["nll"] == pytest.approx(-alone[label] / (len(ids) - len(start)), abs=1e-4)
        assert answer.text == max(labels, key=lambda label: alone[label])
        assert dict(answer.scores)["accuracy"] == float(answer.text == item.reference)


def test_an_item_whose_reference_is_no_label_is_refused(tiny_base_folder: Path):
    settings = PreparedEvaluation(metrics=("accuracy",), headline="accuracy")
    answerer = Answerer(load_base(str(tiny_base_folder)), NoEmbedder(), settings, PreparedModel(), labels=("a", "b"))
    item = Item("1#1", "ann", "test", (Turn("user", "Which?"),), "c")
    nothing = combined_weights((), lambda name: pytest.fail(name))
    with pytest.raises(BadData, match="item '1#1' is answered with 'c', none of the 2 labels"):
        answerer.answer([AnswerRequest("base", item)], {"base": nothing}, metrics=("accuracy",), run_log=SilentLog())


def test_the_prompt_of_all_labels_is_computed_once(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch):
    base, read = load_base(str(tiny_base_folder)), []

    def counting(self: Any, questions: Any, sequences: Any) -> Any:
        read.append(sum(s.n_own_tokens for s in sequences) + sum(len(ids) for _, ids in {s.prefix for s in sequences}))
        return prefill(self, questions, sequences)

    prefill = DecoderInference._prefill
    monkeypatch.setattr(DecoderInference, "_prefill", counting)
    item = Item("1#1", "ann", "test", (Turn("user", "How good was this? " * 20),), "4")
    labels, settings = tuple("12345"), PreparedEvaluation(metrics=("mae",), headline="mae")
    answerer = Answerer(base, NoEmbedder(), settings, PreparedModel(max_length=1024), labels=labels)
    (answer,) = answerer.answer(
        [AnswerRequest("base", item)],
        {"base": combined_weights((), lambda name: pytest.fail(name))},
        metrics=("mae", "prompt_tokens"),
        run_log=SilentLog(),
    )
    n_prompt = dict(answer.scores)["prompt_tokens"]
    assert n_prompt <= sum(read) < n_prompt + 5 * 5, "five labels of few tokens after one prompt"


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ratings(path: Path, of: Callable[[int, int], object], *, n_people: int = 4, n_things: int = 8) -> Path:
    return lines(
        path,
        [
            {"persona_id": f"p{p}", "prompt": f"How do you like {THINGS[i]}?", "response": of(p, i)}
            for p in range(n_people)
            for i in range(n_things)
        ],
    )


def settings(path: Path, **more: Any) -> DataSettings:
    given: dict[str, Any] = {"source": "table", "path": str(path), "task": "rating", "train": 4, "val": 2, "test": 2}
    return DataSettings(**(given | more))


def test_a_rating_may_be_a_number_of_the_file_and_is_one_however_it_is_written(tmp_path: Path):
    written = (4, 4.0, " 4", "4.0", "5", 5, "5.00", 3)
    file = ratings(tmp_path / "r.jsonl", lambda _, i: written[i])
    found = {
        turn.text
        for p in load(settings(file, train=6, val=1, test=1, labels=("3", "4.0", "5"))).personas
        for d in p.dialogues
        for turn in d.turns[1:]
    }
    assert found == {"3", "4", "5"}


def found(path: Path, rows: Sequence[object], **more: Any) -> set[str]:
    """Return the answers that are read from rows with these responses."""
    read_in = read(settings(ratings(path, lambda _, i: rows[i % len(rows)]), **more))
    return {turn.text for p in read_in.dataset.personas for d in p.dialogues for turn in d.turns[1:]}


def test_labels_that_are_numbers_keep_all_of_their_digits(tmp_path: Path):
    numbers = (4006381333931, 4006381333932, 4006381333948, 4.0, 4)
    written = {"4006381333931", "4006381333932", "4006381333948"}
    assert found(tmp_path / "r.jsonl", numbers, task="label") == {*written, "4.0", "4"}
    assert found(tmp_path / "r.jsonl", numbers) == {*written, "4"}
    assert found(tmp_path / "r.jsonl", (0, -0.0, "-0", 0.5, "0.50")) == {"0", "0.5"}


@pytest.mark.parametrize("task", ["label", "rating"])
@pytest.mark.parametrize("value", [math.nan, math.inf, True, None])
def test_what_is_no_label_is_refused_with_what_is_one(value: object, task: str, tmp_path: Path):
    with pytest.raises(BadData, match=r"r.jsonl:1: response: is .*; write a text or a finite number"):
        found(tmp_path / "r.jsonl", (value, 4), task=task)


def test_a_rating_with_an_underscore_is_no_number(tmp_path: Path):
    with pytest.raises(BadData, match="'1_0' is no number"):
        load(settings(ratings(tmp_path / "r.jsonl", lambda _, i: ("1_0", 4)[i % 2])))


def test_a_question_leaves_room_for_the_longest_label(tiny_base_folder: Path, tmp_path: Path):
    base = load_base(str(tiny_base_folder))
    long = ("long " * 30).strip()
    file = ratings(tmp_path / "r.jsonl", lambda _, i: long if not i else "x")
    data = settings(file, task="label")
    personas = read(data).dataset.personas
    prompts = example_lengths(personas, base.tokenizer, PreparedModel(), data)
    model = PreparedModel(max_length=max(one.prompt for one in prompts) + 20)
    encoder = prompt_encoder(base.tokenizer, model)
    (of_first, *_) = PromptFit(encoder, model, data).fit(personas)
    assert all(one.problem for one in of_first), "each may be scored with the long label"
    given = replace(data, labels=("x", "y"))
    (of_first, *_) = PromptFit(encoder, model, given).fit(personas)
    assert [bool(one.problem) for one in of_first] == [True] + [False] * 7, "it is learnt by one of them alone"
    (longest,) = encoder.n_response_tokens([long])
    examples = example_lengths(personas, base.tokenizer, model, data)
    assert {one.least - one.without_history for one in examples} == {longest}


def test_people_who_rate_the_same_things_leak_nothing_and_repeat_nothing(tmp_path: Path):
    instruction = "Please rate the following on a scale from one to five and answer with nothing but the number that you give to this: "
    rows = [
        {"persona_id": f"p{p}", "prompt": instruction + thing, "response": str(1 + i % 5)}
        for p in range(4)
        for i, thing in enumerate(THINGS[:8])
    ]
    summary = examine(settings(lines(tmp_path / "r.jsonl", rows), labels=tuple("12345")))
    assert (summary.refusal, summary.leaks, summary.near_twins, summary.duplicates) == (None, 0, 0, 0)
    assert (summary.train, summary.val, summary.test) == (16, 8, 8), "nothing is left out"


def test_the_same_thing_rated_twice_by_a_person_stays_on_one_side(tmp_path: Path):
    rows = [
        {"persona_id": f"p{p}", "prompt": f"How do you like {thing}?", "response": rating}
        for p in range(3)
        for thing in THINGS[:6]
        for rating in (1, 2)
    ]
    data = load(settings(lines(tmp_path / "r.jsonl", rows), train=8, val=2, test=2))
    for person in data.personas:
        sides = {(d.turns[0].text, d.split) for d in person.dialogues}
        assert len(sides) == len({thing for thing, _ in sides})


REFUSED: dict[str, tuple[dict[str, Any], Callable[[int, int], object], str]] = {
    "found in val or test alone": (
        {"labels": ("1", "2")},
        lambda p, i: 3 if p == i == 0 else 1 + i % 2,
        "'3' is in ",
    ),
    "words": ({}, lambda _p, i: ("good", "bad", "1", "2")[i % 4], "'bad', 'good' are no number; use data.task=label"),
    "one": ({}, lambda _p, _i: 3, "the train split has 1 different answer; two are needed"),
    "too many": ({"train": 6, "val": 1, "test": 1}, lambda p, i: 8 * p + i, "different answers, more than the 100 that are scored"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_labels_that_cannot_be_scored_are_refused_in_one_line(what: str, tmp_path: Path):
    more, of, words = REFUSED[what]
    file = ratings(tmp_path / "r.jsonl", of, n_people=20 if what == "too many" else 4)
    # With this seed the first person's first dialogue is not in train.
    with pytest.raises(BadData) as caught:
        load(settings(file, **more, split_seed=3))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(file.name) in str(caught.value)


def problems_of(**overrides: Any) -> str:
    with pytest.raises(BadSettings) as caught:
        resolve(None, overrides={"data.source": "table", "data.path": "x.jsonl", **overrides})
    return str(caught.value)


def test_a_task_decides_metrics_headline_and_choice_over_the_preset_and_under_what_is_given():
    own = {"data.source": "table", "data.path": "x.jsonl", "data.task": "rating", "data.personas": 12}
    study = resolve("taste", overrides=own)
    assert (study.evaluation.headline, study.evaluation.selection_metric) == ("mae", "mae")
    assert study.evaluation.metrics[:2] == ("mae", "rmse")
    assert resolve("mission", overrides=own).gate.mean_similarity is None
    given = resolve(None, overrides={**own, "evaluation.headline": "accuracy"})
    assert (given.evaluation.headline, given.evaluation.selection_metric) == ("accuracy", "accuracy")
    assert resolve(None, overrides={**own, "evaluation.selection_metric": "nll"}).evaluation.selection_metric == "nll"
    assert resolve(None, overrides={**own, "data.task": "label"}).evaluation.headline == "accuracy"


def test_labels_that_are_numbers_in_the_settings_are_told_how_to_be_written():
    with pytest.raises(BadSettings, match=r'data\.labels\.0 = 1: write it as a text, in quotes: "1"'):
        resolve(overrides={"data.task": "rating", "data.labels": [1, 2]})


def test_what_makes_no_sense_for_labels_is_refused():
    assert "rouge_l reads generated text" in problems_of(**{"data.task": "label", "evaluation.metrics": ["accuracy", "rouge_l"]})
    assert "mae scores answers of data.task = rating, not label" in problems_of(
        **{"data.task": "label", "evaluation.metrics": ["accuracy", "mae"]}
    )
    assert "accuracy scores answers of data.task = label or rating, not text" in problems_of(
        **{"evaluation.metrics": ["accuracy"], "evaluation.headline": "accuracy"}
    )
    assert "macro_f1" in (told := problems_of(**{"data.task": "label", "evaluation.headline": "macro_f1"}))
    assert "use accuracy or mae" in told
    assert "evaluation.second_headline = 'rmse'" in problems_of(**{"data.task": "rating", "evaluation.second_headline": "rmse"})
    assert "answered in text" in problems_of(**{"data.source": "synthetic", "data.path": None, "data.task": "label"})
    assert "set data.task to label or rating" in problems_of(**{"data.labels": ["a", "b"]})
    assert "'a' is no number" in problems_of(**{"data.task": "rating", "data.labels": ["a", "2"]})
    assert "listed twice" in problems_of(**{"data.task": "label", "data.labels": ["a", "a", "b"]})


def row(method: str, person: str, item: str, answer: str, reference: str, distance: float) -> EvaluationRow:
    scores = {"mae": distance, "rmse": distance, "accuracy": float(answer == reference), "macro_f1": float(answer == reference)}
    return EvaluationRow(method, person, 0, item, "p", reference, answer, scores)


def test_pooled_metrics_are_of_all_items_with_every_person_weighing_the_same():
    # ann's one item weighs as much as ben's two.
    rows = [
        row("unified", "ann", "1", "1", "1", 3.0),
        row("unified", "ben", "1", "2", "1", 0.0),
        row("unified", "ben", "2", "2", "2", 1.0),
    ]
    better = {name: METRICS[name].higher_is_better for name in ("mae", "rmse", "accuracy", "macro_f1")}
    means = compare_methods(rows, headline="mae", higher_is_better=better, draws=100, rng=np.random.default_rng(0)).methods[0].means
    assert means["mae"] == pytest.approx((3 + 0.5) / 2)
    assert means["rmse"] == pytest.approx(math.sqrt(9 / 2 + 1 / 4))
    # Weights 1/2, 1/4, 1/4. Label 1: precision 1, recall 2/3, F1 .8; label 2: precision 1/2, recall 1, F1 2/3.
    assert means["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert means["accuracy"] == pytest.approx(0.75)


def planted(path: Path, *, personal: bool, seed: int = 0) -> Path:
    """Ratings of 8 people in two groups of opposite tastes, or ratings that are anybody's."""
    rng = Random(seed)
    return ratings(path, lambda p, _i: (1 if p < 4 else 5) if personal else rng.choice((1, 5)), n_people=8, n_things=14)


@pytest.fixture(scope="module")
def rated(tiny_base_folder: Path) -> Study:
    study = seven_people(tiny_base_folder)
    return replace(
        study,
        methods=("baseline", "unified", "per_persona", "cluster", "selective_routing", "random_cluster"),
        recipe=replace(study.recipe, epochs=3, learning_rate=1e-2),
        clustering=replace(study.clustering, sizes=(4, 4)),
        evaluation=replace(
            study.evaluation, metrics=("mae", "rmse", "accuracy", "macro_f1", "nll"), headline="mae", selection_metric="mae"
        ),
    )


def compared(study: Study, file: Path, stores: Stores) -> tuple[Study, Comparison]:
    study = replace(study, data=settings(file, train=6, val=4, test=4))
    run(study, stores)
    return study, compare_study(study.name, stores, LOG)


@pytest.mark.whole
def test_planted_personal_ratings_are_found_and_told_with_less_being_better(rated: Study, stores: Stores, tmp_path: Path):
    study, comparison = compared(rated, planted(tmp_path / "planted.jsonl", personal=True), stores)
    for method in ("cluster", "per_persona"):
        difference = comparison.method(method).vs_reference
        assert difference is not None
        assert (difference.outcome, difference.win_rate) == ("better", 1.0)
        assert difference.ci_high < 0, "less error is better"
    assert comparison.champion in ("cluster", "per_persona", "selective_routing")
    assert comparison.methods[0].means["mae"] == min(result.means["mae"] for result in comparison.methods)
    assert comparison.oracle <= comparison.methods[0].means["mae"] + 1e-9
    assert all(result.means["rmse"] >= result.means["mae"] for result in comparison.methods)
    state = state_of(study, stores)
    verdict = state.verdicts[0]
    assert verdict.passed
    assert verdict.gain > 0
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    page = (stores.folder(study.name) / "results" / "report.html").read_text(encoding="utf-8")
    told = "\n".join((comparison.sentence, summary, *verdict.notes))
    assert " points" not in told
    assert "imilarity" not in told
    assert "rating units" in comparison.sentence
    assert "lower is better" in page
    assert "train dialogue of somebody else" not in page, "many rate the same things"
    assert not comparison.cut
    crown(study.name, stores, "per_persona")
    register_models(study.name, stores, LOG)
    assert isinstance(stores.tracker, MemoryTracker)
    (version,) = stores.tracker.models[study.name]
    router = Router(from_plain(RoutingTable, plain(version.content)), version.adapters)
    rows = [one for one in rows_of(study, stores) if one.method == "per_persona"]
    people = stores.studies.dataset(study.name).by_id()
    answers = router.answer([request_of(people[one.persona_id], one.item_id) for one in rows])
    assert [answer["text"] for answer in answers] == [one.text for one in rows], "what is served is chosen as it was evaluated"
    files = TemporaryDirectory()
    with files, pytest.raises(BadData, match="chooses one of 2 labels by their likelihood, which a chat server does not"):
        Served(Loaded(study.name, "1", router), files, n_slots=1, max_waiting=1)


@pytest.mark.whole
def test_ratings_are_tuned_on_the_loss_of_their_labels(rated: Study, stores: Stores, tmp_path: Path):
    data = settings(planted(tmp_path / "planted.jsonl", personal=True), train=6, val=4, test=4)
    study = replace(rated, name="tuned", methods=("unified", "per_persona"), tune=2, data=data)
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    run_tuning(study, stores)
    run_rest(study, stores)
    comparison = compare_study(study.name, stores, LOG)
    tuning = state_of(study, stores).tuning
    assert tuning is not None
    for method in study.methods:
        (only,) = tuning.rounds(method)
        assert all(loss is not None and math.isfinite(loss) for _, loss in only.losses)
    assert comparison.champion == "per_persona"
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    assert "tuned by the same 2 recipes on val loss" in summary


@pytest.mark.whole
def test_ratings_that_are_anybodys_crown_nobody(rated: Study, stores: Stores, tmp_path: Path):
    _, comparison = compared(rated, planted(tmp_path / "null.jsonl", personal=False), stores)
    assert comparison.champion in (None, "unified")
    for method in ("cluster", "per_persona", "selective_routing"):
        difference = comparison.method(method).vs_reference
        assert difference is not None
        assert difference.outcome != "better"


def test_the_signal_of_planted_ratings_is_what_a_study_finds(rated: Study, tmp_path: Path):
    file = planted(tmp_path / "planted.jsonl", personal=True)
    signal, clustering = signal_of_data(replace(rated, data=settings(file, train=6, val=4, test=4)), LOG)
    assert sorted(clustering.sizes) == [4, 4]
    assert expectation(signal) == "people and clusters"


@pytest.mark.whole
def test_ratings_that_are_anybodys_are_hardly_ever_said_to_be_personal(rated: Study, tmp_path: Path):
    files = [planted(tmp_path / f"null-{seed}.jsonl", personal=False, seed=seed) for seed in range(8)]
    studies = [replace(rated, data=settings(file, train=6, val=4, test=4)) for file in files]
    expected = [expectation(signal_of_data(study, LOG)[0]) for study in studies]
    assert sum(one not in ("nothing", "undecided") for one in expected) <= 2, expected


@pytest.mark.whole
def test_a_signal_of_labels_that_was_recorded_without_intervals_is_measured_again(rated: Study, stores: Stores, tmp_path: Path):
    file = planted(tmp_path / "planted.jsonl", personal=True)
    study = replace(rated, data=settings(file, train=6, val=4, test=4))
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    measured = signal_of_study(study.name, stores, LOG)
    earlier = replace(measured, persona_explains_low=None, cluster_explains_low=None)
    assert "this says nothing of what to expect" in verdict(earlier)
    stores.studies.save_metadata(study.name, earlier)
    assert signal_of_study(study.name, stores, LOG) == measured == stores.studies.metadata(study.name, PersonaSignal)
    stores.studies.save_metadata(study.name, replace(measured, persona_explains=0.5))
    assert signal_of_study(study.name, stores, LOG).persona_explains == 0.5, "what has intervals is not measured again"


@pytest.mark.parametrize("headline", ["nll", "likelihood"])
def test_a_likelihood_of_labels_has_no_floor_of_a_guess_over_all_tokens(headline: str, rated: Study, stores: Stores, tmp_path: Path):
    file = planted(tmp_path / "planted.jsonl", personal=True)
    evaluation = replace(rated.evaluation, headline=headline, metrics=(headline, "accuracy"))
    study = replace(rated, data=settings(file, train=6, val=4, test=4), evaluation=evaluation)
    prepare_study(study, stores, LOG)
    state = state_of(study, stores)
    assert scale(state, stores, state.dataset.ids) == ReferencePoints()


def test_labels_are_counted_and_those_that_look_alike_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = ("positive", "Positive", "negative", "zo\u00eb", "zoe\u0308", "positive", "negative", "positive")
    file = ratings(tmp_path / "r.jsonl", lambda _, i: labels[i])
    arguments = ["data", "validate", "--data", str(file), "--set", "data.task=label", "--dialogues", "all"]
    main([*arguments, "--set", f"data.labels={json.dumps(sorted(set(labels)))}"])
    shown = capsys.readouterr().out
    assert "labels                   5: 'positive' 12, 'negative' 8, " in shown
    assert "similar labels           'positive' and 'Positive'; 'zo" in shown
    assert r"'zoe\u0308': labels of their own" in shown, "what looks the same is escaped"


@pytest.mark.whole
def test_a_study_of_ratings_is_estimated_with_all_of_its_labels(rated: Study, stores: Stores, tmp_path: Path):
    file = ratings(tmp_path / "r.jsonl", lambda _p, i: 1 + i % 5, n_people=8, n_things=14)
    state = probed(replace(rated, name="probe", data=settings(file, train=10, labels=tuple("12345"))), 1, stores, LOG)
    assert state.probe is not None
    assert state.probe.rates.labels != 1.0, "that is the rate where there are no labels"
    assert sentences(state)
