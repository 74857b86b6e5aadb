"""Studies with retrieval: one choice for everybody on val, prompts without a word of val or test, and adapters that learn with it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.config import resolve
from clusterlora.data.load import load
from clusterlora.data.retrieval import ExchangeIndex, exchanges, with_shots
from clusterlora.errors import BadSettings
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.select import select_for_all
from clusterlora.evaluation.shown import ShownExchanges, chosen_words, shots_scores, shown_by_method
from clusterlora.metadata import MeanTokens, Provenance
from clusterlora.method_settings import RetrievalSettings
from clusterlora.methods import METHODS, most_shots
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.stores import Stores
from clusterlora.progress.work import remaining_work
from clusterlora.registry.routing import routing_table
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import Study, prepared
from clusterlora.stages import evaluate as evaluating
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import AdapterComposition, Clustering, Dataset, EvaluationRow, Exchange, Retrieval, Turn
from tests.fixtures.stages import LOG, plan_of, run, run_gate, run_rest, state_of, train_groups

RETRIEVING = ("retrieval", "unified_retrieval", "cluster_retrieval", "hybrid_retrieval")
LENGTHS = MeanTokens(dialogue=100.0, prompt=60.0, response=10.0)
SMALL = RetrievalSettings(counts=(0, 2), rankings=("bm25",))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[AnswerRequest]:
    """Return the requests that are answered, in order, as they come in."""
    asked: list[AnswerRequest] = []

    class Recording(Answerer):
        def answer(self, requests: Sequence[AnswerRequest], *args: Any, **kwargs: Any):
            asked.extend(requests)
            return super().answer(requests, *args, **kwargs)

    monkeypatch.setattr(evaluating, "Answerer", Recording)
    return asked


def marked(dataset: Dataset) -> Dataset:
    """Return the data with the name of its split behind every answer."""
    return Dataset(
        tuple(
            replace(
                p,
                dialogues=tuple(
                    replace(d, turns=tuple(Turn(t.role, f"{t.text} {p.id} {d.split}") if t.role == "assistant" else t for t in d.turns))
                    for d in p.dialogues
                ),
            )
            for p in dataset.personas
        )
    )


def begun(study: Study, stores: Stores, *methods: str, **retrieval: Any) -> Study:
    """Return a clustered study with marked answers and these methods."""
    study = replace(study, name="shown", methods=("unified", *methods), retrieval=replace(SMALL, **retrieval))
    stores.studies.create_study(prepared(study, "float32"))
    dataset = marked(load(study.data))
    stores.studies.save_dataset(study.name, dataset)
    stores.studies.save_clustering(study.name, Clustering("given", (dataset.ids[:3], dataset.ids[3:])))
    provenance = Provenance(
        clusterlora_version="0",
        git_revision=None,
        data_digest=dataset.digest,
        base_revision="0",
        n_personas=len(dataset.ids),
        n_dialogues=dataset.n_dialogues,
    )
    stores.studies.save_metadata(study.name, provenance)
    return study


@pytest.mark.whole
def test_a_prompt_shows_train_exchanges_of_its_source_and_never_one_of_val_or_test(
    seven: Study, stores: Stores, requests: list[AnswerRequest]
) -> None:
    study = begun(seven, stores, "baseline", "retrieval", counts=(2,), rankings=("bm25", "embedding"))
    run_rest(study, stores)
    shown = [(request.item, request.item.messages[1 : 1 + 2 * request.n_shots]) for request in requests if request.n_shots]
    assert {item.split for item, _ in shown} == {"val", "test"}
    answers = [turn.text for _, turns in shown for turn in turns if turn.role == "assistant"]
    assert answers
    assert all(answer.endswith(" train") for answer in answers)
    mates = {p: ids for ids in state_of(study, stores).clustering.members for p in ids}  # pyrefly: ignore[missing-attribute]
    sources = {(item.persona_id, turn.text.split()[-2]) for item, turns in shown for turn in turns if turn.role == "assistant"}
    assert all(source in mates[p] for p, source in sources)
    assert any(p != source for p, source in sources), "the cluster is a source as well"


def best_by_hand(study: Study, stores: Stores, plan: WorkPlan, method: str, options: Sequence[Retrieval]) -> Retrieval:
    """Return the retrieval with the lowest mean val loss, its items read from the store; for methods with a single arm."""
    arm = dict(plan.methods[method].arms_by_persona)
    means = []
    for option in options:
        by_persona: dict[str, list[float]] = {}
        for p, compositions in arm.items():
            key = plan.composition_key(option.shown_by(compositions[0]))
            by_persona[p] = [
                dict(a.scores)["nll"] for a in stores.studies.answers(study.name, [key]) if a.persona_id == p and a.split == "val"
            ]
        means.append(np.mean([np.mean(losses) for losses in by_persona.values()]))
    return options[int(np.argmin(means))]


@pytest.mark.whole
def test_one_retrieval_is_chosen_for_everybody_by_val_alone_whoever_answers_the_val_items(
    seven: Study, finished_stores: Stores, requests: list[AnswerRequest]
) -> None:
    stores = finished_stores
    study = replace(
        seven, name="shown", methods=("unified", "cluster", *RETRIEVING), retrieval=replace(SMALL, rankings=("bm25", "embedding"))
    )
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    run_gate(study, stores)
    run_rest(study, stores)
    plan = plan_of(study, stores)
    routes = stores.studies.routes(study.name)
    for method in RETRIEVING:
        shown = {Retrieval(c.shots, c.ranking, c.shots_from) for route in routes if route.method == method for c in [route.composition]}
        assert len(shown) == 1, method
        if method != "hybrid_retrieval":
            assert shown == {best_by_hand(study, stores, plan, method, plan.methods[method].retrievals)}
    assert len({route.composition.adapters for route in routes if route.method == "hybrid_retrieval"}) > 1, "whose own weights stay theirs"

    # The same, with the val items answered by runs of their own before.
    again = replace(study, name="again")
    prepare_study(again, stores, LOG)
    cluster_study(again.name, stores, LOG)
    run_gate(again, stores)
    train_groups(again, stores, chain.from_iterable(remaining_groups(state_of(again, stores))))
    requests.clear()
    for part in ("choices", "test"):
        for shard in (1, 2):
            if part == "test":
                requests.clear()
            evaluate(EvaluationRequest(study_name=again.name, part=part, shard=shard, shards=2), stores, LOG)
            assert requests
            assert part == "choices" or not [r for r in requests if r.item.split == "val" and r.n_shots], "answered before"
    assert stores.studies.routes(again.name) == routes

    comparison = compare_study(study.name, stores, LOG)
    assert set(comparison.shown) == set(RETRIEVING)
    assert "Shown in the prompts, as chosen on val: retrieval " in comparison.sentence
    for method in RETRIEVING:
        tokens = comparison.method(method).means["prompt_tokens"], comparison.method("unified").means["prompt_tokens"]
        assert (tokens[0] > tokens[1]) == (comparison.shown[method].n_shown > 0)


def test_adapters_that_learn_with_exchanges_are_their_own_and_the_others_keep_their_keys(seven: Study, stores: Stores) -> None:
    study = begun(seven, stores, "cluster", *RETRIEVING)
    without = plan_of(study, stores)
    plan = plan_of(replace(study, retrieval=replace(SMALL, trained_shots=2)), stores)
    assert plan.keys.items() >= {name: key for name, key in without.keys.items() if name in plan.keys}.items()
    learnt = {name: spec for name, spec in plan.specs.items() if spec.shots}
    assert {spec.scope for spec in learnt.values()} == {"everybody", "cluster", "person"}
    assert not {plan.keys[name] for name in learnt} & set(without.keys.values())
    labels = {"name", "folder", "init_from", "frozen_adapter"}
    for name, spec in learnt.items():
        twin = without.specs[name.removesuffix("-shown-2")]
        differing = {field.name for field in fields(spec) if getattr(spec, field.name) != getattr(twin, field.name)}
        assert differing - labels == {"shots", "ranking"}
    bm25, embedding = (
        plan_of(replace(study, retrieval=replace(SMALL, rankings=(ranking,), trained_shots=2)), stores) for ranking in ("bm25", "embedding")
    )
    assert bm25.keys["unified-shown-2"] != embedding.keys["unified-shown-2"]


@pytest.mark.whole
def test_routing_may_choose_what_a_method_with_retrieval_answers_with(
    seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun(seven, stores, "retrieval", "selective_routing", counts=(2,))
    n_units: set[int] = set()

    def last(scores: Sequence[np.ndarray], **_: object) -> int:
        n_units.update(map(len, scores))
        return len(scores) - 1

    monkeypatch.setattr(evaluating, "select_arm", last)
    run_rest(study, stores)
    assert n_units == {study.data.val}, "arms are chosen by val dialogues, whatever their number of turns"
    routes = {(route.method, route.persona_id): route.composition for route in stores.studies.routes(study.name)}
    for persona_id in state_of(study, stores).dataset.ids:
        assert routes["selective_routing", persona_id] == routes["retrieval", persona_id]
        assert routes["selective_routing", persona_id].shots == 2


@pytest.mark.whole
def test_a_study_whose_adapters_learn_with_exchanges_runs(seven: Study, stores: Stores) -> None:
    study = replace(
        seven, name="learnt", methods=("unified", "unified_retrieval"), retrieval=replace(SMALL, trained_shots=1, sources=("own",))
    )
    run(study, stores)
    used = {name for r in stores.studies.routes(study.name) if r.method == "unified_retrieval" for name in r.composition.adapter_names}
    assert used == {"unified-shown-1"}
    tokens = {adapter.name: adapter.train_tokens for adapter in stores.studies.adapters(study.name)}
    assert tokens["unified-shown-1"] > tokens["unified"]


def test_whole_exchanges_are_dropped_the_farthest_first_until_the_prompt_fits(tiny_base_folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base_folder)
    index = ExchangeIndex([Exchange(f"light {'on ' * n}", f"answer {n}") for n in range(5)], "bm25")
    turns = (Turn("system", "Be brief."), Turn("user", "light"))
    shown = with_shots(turns, index, 5)
    whole = PromptEncoder(tokenizer, max_length=100_000).encode_turns([(shown, "dimmed")])[0]
    assert whole.n_dropped == 0
    room = len(whole.prompt) * 4 // 3
    (cut,) = PromptEncoder(tokenizer, max_length=room - 40).encode_turns([(shown, "dimmed")])
    assert 0 < cut.n_dropped < 10
    assert cut.n_dropped % 2 == 0
    kept = (turns[0], *shown[1 + cut.n_dropped :])
    assert cut.prompt == PromptEncoder(tokenizer, max_length=100_000).encode_turns([(kept, "dimmed")])[0].prompt
    assert dict(shots_scores(5, cut.n_dropped)) == {"shots": 5.0, "shots_dropped": cut.n_dropped / 2}
    assert shots_scores(0, 4) == ()
    assert dict(shots_scores(2, 9))["shots_dropped"] == 2.0, "further turns are the dialogue's own"


def test_what_did_not_fit_is_counted_by_method_and_named_in_words() -> None:
    of_two_seeds = [AdapterComposition(shots=1), AdapterComposition(shots=3, ranking="bm25", shots_from="cluster")]
    chosen = "1 of the person's own exchanges by embedding similarity or 3 of the cluster's exchanges by BM25"
    row = EvaluationRow("retrieval", "p", 0, "1", "", "", "", {"shots": 3.0, "shots_dropped": 1.0})
    rows = [row, replace(row, item_id="2"), replace(row, method="unified"), replace(row, item_id="3", scores={})]
    assert shown_by_method(rows, {"retrieval": of_two_seeds}) == {"retrieval": ShownExchanges(chosen, 6, 2)}
    assert chosen_words(AdapterComposition()) == "no exchanges"
    assert ShownExchanges("", 8, 2).share_dropped == 0.25


def test_of_options_the_one_with_the_best_mean_over_people_is_chosen_and_of_equal_ones_the_first() -> None:
    few, many = np.array([0.0, 1.0]), np.array([3.0] * 8)
    assert select_for_all([[few, many], [few + 1, many - 2]], higher_is_better=False) == 1, "everybody counts once"
    assert select_for_all([[few, many], [few + 1, many - 2]], higher_is_better=True) == 0
    assert select_for_all([[few], [few]], higher_is_better=True) == 0


@pytest.mark.whole
def test_a_registered_table_holds_the_exchanges_that_its_prompts_may_show_once(seven: Study, stores: Stores) -> None:
    study = begun(seven, stores, "retrieval", counts=(2,), sources=("cluster",))
    run_rest(study, stores)
    state = state_of(study, stores)
    table = routing_table(state, plan_of(study, stores), "retrieval", stores)
    assert table["mates"] == {p: ids for ids in state.clustering.members for p in ids}  # pyrefly: ignore[missing-attribute]
    assert table["exchanges"] == {p.id: exchanges(p) for p in state.dataset.personas}
    composition = next(iter(table["personas"].values()))
    assert (composition.shots, composition.ranking, composition.shots_from) == (2, "bm25", "cluster")


def test_what_is_retrieved_is_counted_in_the_expected_work(seven: Study, stores: Stores) -> None:
    study = begun(seven, stores, "baseline")
    state = state_of(study, stores)
    plain = remaining_work(state, LENGTHS).evaluation
    shown = remaining_work(
        replace(state, settings=replace(state.settings, methods=("unified", "baseline", "retrieval"))), LENGTHS
    ).evaluation
    n_test, n_val = (
        sum(t.role == "assistant" for p in state.dataset.personas for d in p.of_split(s) for t in d.turns) for s in ("test", "val")
    )
    assert shown.n_answers - plain.n_answers == n_test
    # Three options on val, two of them with two exchanges of 100 tokens beside 70; on test at most two exchanges.
    assert shown.n_likelihoods - plain.n_likelihoods == 3 * n_val + round((4 * n_val + 2 * n_test) * 100 / 70)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("counts", [0], r"retrieval.counts = \[0\]: no exchange is ever shown; add a count, for example 3"),
        ("counts", [], r"retrieval.counts = \[\]: nothing to choose from"),
        ("counts", [3, 3], "retrieval.counts: 3 is listed twice"),
        ("counts", [-1], "retrieval.counts.0 = -1: use at least 0"),
        ("rankings", ["tfidf"], "retrieval.rankings.0 = 'tfidf': use 'bm25' or 'embedding'"),
        ("sources", [], r"retrieval.sources = \[\]: nothing to choose from"),
        ("trained_shots", 0, "retrieval.trained_shots = 0: use at least 1"),
    ],
)
def test_settings_that_leave_nothing_to_retrieve_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        resolve("quick", overrides={f"retrieval.{field}": value})


def test_the_longest_prompts_of_a_studys_methods_decide_what_lengths_must_hold() -> None:
    assert most_shots(("unified",), RetrievalSettings()) == 0
    assert most_shots(("few_shot",), RetrievalSettings()) == 3
    assert most_shots(("few_shot", "retrieval"), RetrievalSettings()) == 5
    assert not [name for name in ("mission", "demo", "quick") if any(METHODS[m].retrieves for m in resolve(name).methods)]
    assert set(RETRIEVING) <= set(resolve("all").methods)
