"""Generate and score answers: the gate's on val, then every method's on test, after it has chosen among its arms on val.

The base model's own answers need no adapter and may be generated first, while adapters are trained.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace

import numpy as np

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_weights
from clusterlora.comparison.champion import LEAST_PERSONAS
from clusterlora.data.labels import label_set
from clusterlora.data.prompts import items
from clusterlora.data.retrieval import ExchangeIndex, exchanges, with_shots
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.select import select_arm, select_for_all
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.gate.judged_cluster import judged_cluster
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.ladder import OWN, refused, rung_by_name
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.trials import plan_of
from clusterlora.planning.work_plan import WorkPlan, judged_adapters, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.study_store import AnswerKey
from clusterlora.progress.timing import Phase, timed
from clusterlora.requests import EvaluationPart, EvaluationRequest
from clusterlora.settings import Study
from clusterlora.stages.answer_saver import AnswerSaver
from clusterlora.stages.val_dialogues import by_dialogue
from clusterlora.values import AdapterComposition, Item, MethodPlan, Persona, Ranking, Route, Split, WeightedAdapter

_COMPOSITIONS_AT_ONCE = 64
"""Compositions whose factors are in memory together."""

_REQUESTS_AT_ONCE = 8192
"""Requests whose prompts are in memory together; all their answers are saved before the next are asked."""

_PHASE: Mapping[EvaluationPart, Phase] = {
    "probe": "probe",
    "power": "evaluate power",
    "baseline": "evaluate baseline",
    "gate": "evaluate gate",
    "tuning": "evaluate tuning",
    "choices": "evaluate choices",
    "test": "evaluate test",
}


def evaluate(request: EvaluationRequest, stores: Stores, log: RunLog) -> int:
    """Return the number of answers generated; items the study already has answers to are skipped."""
    state, part, rung = read_state(request.study_name, stores), request.part, request.rung
    runner = _Runner(state, stores, log)
    with timed(stores, state.name, *timed_as(request)):
        if part in ("power", "gate"):
            plan = work_plan(state, rung_by_name(state, rung) if rung else None)
            return _val(runner, plan, request.cluster, bare=part == "power")
        if part == "tuning":
            return _tuning(runner, plan_of(state, OWN.name, request.step), shard=request.shard, shards=request.shards)
        if part == "baseline":
            return _baseline(runner, work_plan(state))
        if part == "choices":
            return _retrieval_choices(runner, work_plan(state), shard=request.shard, shards=request.shards)
        return _test(runner, work_plan(state), shard=request.shard, shards=request.shards)


def timed_as(request: EvaluationRequest) -> tuple[Phase, str]:
    """Return the phase and the part under which the seconds of an evaluation are recorded."""
    if request.part == "probe":
        return "probe", ""
    shard = f"{request.shard}/{request.shards}"
    return _PHASE[request.part], request.rung or (f"step {request.step}, {shard}" if request.step else shard)


def reference_losses(
    state: StudyState, stores: Stores, plan: WorkPlan, pairs: Sequence[tuple[str, AdapterComposition]], split: Split, log: RunLog
) -> dict[tuple[str, AdapterComposition], np.ndarray]:
    """Return the negative log-likelihood of each reference of a split by (persona, composition), items in the persona's order."""
    runner = _Runner(state, stores, log)
    runner.answer(plan, pairs, split, ("nll",))
    return runner.scores(plan, pairs, split, "nll")


def covered_methods(state: StudyState, plan: WorkPlan, persona_ids: Sequence[str], seed: int = 0) -> dict[str, MethodPlan]:
    """Return the methods of one training seed that can answer all these personas with trained adapters."""
    trained = trained_adapters(state, plan)
    covered: dict[str, MethodPlan] = {}
    for name in state.settings.methods:
        method = plan.seeds[seed][name]
        arms = {p: _answerable(method, compositions, trained.keys()) for p, compositions in method.arms_by_persona}
        # A method without adapters is the same for every training seed.
        if (method.adapters or seed == 0) and all(arms.get(p) for p in persona_ids):
            covered[name] = replace(method, arms_by_persona=tuple(arms.items()))
    return covered


def _answerable(method: MethodPlan, compositions: Sequence[AdapterComposition], trained: Set[str]) -> tuple[AdapterComposition, ...]:
    """Return the arms whose adapters are trained; none when the first is not, or another one that the method needs."""
    arms = tuple(composition for composition in compositions if trained >= set(composition.adapter_names))
    may_lack = method.arms_may_lack and arms[:1] == tuple(compositions[:1])
    return arms if may_lack or len(arms) == len(compositions) else ()


def compared_personas(state: StudyState) -> tuple[str, ...]:
    """Return who is compared: everyone, or after a refused gate only the judged cluster, whose adapter alone was trained.

    Where that has too few people for a verdict, everyone is compared, by the methods that answer everyone.
    """
    if refused(state):
        clustering = state.clustering
        judged = judged_cluster(clustering.sizes, state.settings.clustering) if clustering else None
        assert clustering is not None, "a gate was judged without a clustering"
        assert judged is not None, f"a gate was judged without a cluster to judge, of {clustering.sizes}"
        if clustering.sizes[judged] >= LEAST_PERSONAS:
            return clustering.members[judged]
    return state.dataset.ids


def _val(runner: "_Runner", plan: WorkPlan, cluster: int | None, *, bare: bool) -> int:
    candidate, reference = judged_adapters(plan, cluster)
    compositions = (
        (AdapterComposition(),)
        if bare
        else (AdapterComposition((WeightedAdapter(candidate),)), AdapterComposition((WeightedAdapter(reference),)))
    )
    pairs = [(p, composition) for p in plan.specs[candidate].persona_ids for composition in compositions]
    if not bare and plan.random_group and cluster in (None, plan.judged):
        group = AdapterComposition((WeightedAdapter(plan.random_group),))
        pairs += [(p, composition) for p in plan.specs[plan.random_group].persona_ids for composition in (group, compositions[-1])]
        pairs = list(dict.fromkeys(pairs))
    return runner.answer(plan, pairs, "val", runner.study.evaluation.metrics)


def _tuning(runner: "_Runner", plan: WorkPlan, *, shard: int, shards: int) -> int:
    """Ask all trials of a step for the likelihood of their people's val references."""
    trained = trained_adapters(runner.state, plan).keys()
    arms = [(p, arm) for method in plan.methods.values() for p, compositions in method.arms_by_persona for arm in compositions]
    people = set(tuple(dict.fromkeys(p for p, _ in arms))[shard - 1 :: shards])
    pairs = [(p, arm) for p, arm in arms if p in people and trained >= set(arm.adapter_names)]
    return runner.answer(plan, list(dict.fromkeys(pairs)), "val", ("nll",))


def _baseline(runner: "_Runner", plan: WorkPlan) -> int:
    bare = AdapterComposition()
    arms = [(p, compositions) for method in plan.seeds[0].values() for p, compositions in method.arms_by_persona if bare in compositions]
    # Personas whose only arm is the base answer test items at once; where a method chooses among arms, it needs val answers first.
    choices = dict.fromkeys((p, bare) for p, compositions in arms if len(compositions) > 1)
    certain = dict.fromkeys((p, bare) for p, compositions in arms if len(compositions) == 1)
    n_answers = runner.answer(plan, list(choices), "val", _choosing_metrics(runner.study))
    return n_answers + runner.answer(plan, list(certain), "test", runner.study.evaluation.metrics)


def _choosing_metrics(study: Study) -> tuple[str, ...]:
    """Return the metrics of the val answers by which a method chooses among its arms; nothing is generated where that one needs no text."""
    metric = study.evaluation.selection_metric
    return study.evaluation.metrics if METRICS[metric].reads_answers else (metric,)


def _test(runner: "_Runner", plan: WorkPlan, *, shard: int, shards: int) -> int:
    state, study = runner.state, runner.study
    everyone = compared_personas(state)
    persona_ids = everyone[shard - 1 :: shards]
    methods = _methods(state, plan, everyone, runner.log)
    n_answers, chosen = _choices(runner, plan, methods, persona_ids, everyone)
    routes = [Route(name, p, composition, seed) for (name, seed, p), composition in chosen.items() if p in set(persona_ids)]
    pairs = list(dict.fromkeys((route.persona_id, route.composition) for route in routes))
    n_answers += runner.answer(plan, pairs, "test", study.evaluation.metrics)
    runner.stores.studies.save_routes(study.name, routes)
    return n_answers + _held_out(runner, plan, persona_ids)


def _retrieval_choices(runner: "_Runner", plan: WorkPlan, *, shard: int, shards: int) -> int:
    """Answer a shard's val items under all that a method may retrieve, so that whoever chooses for everybody finds them answered."""
    everyone = compared_personas(runner.state)
    persona_ids = everyone[shard - 1 :: shards]
    methods = {key: method for key, method in _methods(runner.state, plan, everyone, runner.log).items() if method.retrievals}
    n_arms, chosen = _arms(runner, plan, methods, dict.fromkeys(methods, persona_ids))
    return n_arms + runner.answer(plan, _retrieval_pairs(methods, chosen), "val", _choosing_metrics(runner.study))


_Key = tuple[str, int]
"""A method and a training seed."""


def _methods(state: StudyState, plan: WorkPlan, everyone: Sequence[str], log: RunLog) -> dict[_Key, MethodPlan]:
    """Return the methods that can be compared, by training seed; a further seed counts where every method with adapters has it.

    Else one training of a method would be compared with several of the others.
    """
    by_seed = [covered_methods(state, plan, everyone, seed) for seed in range(state.settings.seeds)]
    trained = {name for name, method in by_seed[0].items() if method.adapters}
    methods: dict[_Key, MethodPlan] = {}
    for seed, covered in enumerate(by_seed):
        if lacking := sorted(trained - covered.keys()):
            log.note(f"training {seed + 1} of {len(by_seed)} is not compared: {', '.join(lacking)} lack adapters of it")
            continue
        methods |= {(name, seed): method for name, method in covered.items()}
    return methods


def _choices(
    runner: "_Runner", plan: WorkPlan, methods: Mapping[_Key, MethodPlan], persona_ids: Sequence[str], everyone: Sequence[str]
) -> tuple[int, dict[tuple[str, int, str], AdapterComposition]]:
    """Return the number of answers generated, and what every method answers these people with; where it retrieves, everybody."""
    retrieving = {key: method for key, method in methods.items() if method.retrievals}
    n_arms, chosen = _arms(runner, plan, retrieving, dict.fromkeys(retrieving, everyone))
    pairs = _retrieval_pairs(methods, chosen)
    metric = runner.study.evaluation.selection_metric
    n_retrieved = runner.answer(plan, pairs, "val", _choosing_metrics(runner.study))
    scores = runner.scores(plan, pairs, "val", metric)
    for key, method in retrieving.items():
        options = [[scores[p, retrieval.shown_by(chosen[*key, p])] for p in everyone] for retrieval in method.retrievals]
        retrieval = method.retrievals[select_for_all(options, higher_is_better=METRICS[metric].higher_is_better)]
        chosen |= {(*key, p): retrieval.shown_by(chosen[*key, p]) for p in everyone}
    # What others retrieve is an arm of some, so these choose last.
    others = {key: _with_arms_of(method, key[1], chosen) for key, method in methods.items() if not method.retrievals}
    n_others, arms = _arms(runner, plan, others, dict.fromkeys(others, persona_ids))
    return n_arms + n_retrieved + n_others, chosen | arms


def _with_arms_of(method: MethodPlan, seed: int, chosen: Mapping[tuple[str, int, str], AdapterComposition]) -> MethodPlan:
    """Return the plan with the compositions that methods with retrieval answer with as further arms.

    A method without adapters is the same for every training seed, and chooses with the first.
    """

    def further(p: str) -> Iterator[AdapterComposition]:
        for other in method.arms_of:
            found = chosen.get((other, seed, p)) or chosen.get((other, 0, p))
            if found is not None:
                yield found

    arms = ((p, tuple(dict.fromkeys((*compositions, *further(p))))) for p, compositions in method.arms_by_persona)
    return replace(method, arms_by_persona=tuple(arms)) if method.arms_of else method


def _retrieval_pairs(
    methods: Mapping[_Key, MethodPlan], chosen: Mapping[tuple[str, int, str], AdapterComposition]
) -> list[tuple[str, AdapterComposition]]:
    pairs = ((p, one.shown_by(arm)) for (name, seed, p), arm in chosen.items() for one in methods[name, seed].retrievals)
    return list(dict.fromkeys(pairs))


def _arms(
    runner: "_Runner", plan: WorkPlan, methods: Mapping[_Key, MethodPlan], people: Mapping[_Key, Sequence[str]]
) -> tuple[int, dict[tuple[str, int, str], AdapterComposition]]:
    """Return the number of answers generated, and the arm that each method chooses on val for each of its `people`."""
    in_question = {key: set(ids) for key, ids in people.items()}
    arms = {
        (*key, p): compositions for key, method in methods.items() for p, compositions in method.arms_by_persona if p in in_question[key]
    }
    choices = list(
        dict.fromkeys((p, composition) for (*_, p), compositions in arms.items() if len(compositions) > 1 for composition in compositions)
    )
    metric = runner.study.evaluation.selection_metric
    n_answers = runner.answer(plan, choices, "val", _choosing_metrics(runner.study))
    val_scores = by_dialogue(runner.state, runner.scores(plan, choices, "val", metric))
    chosen: dict[tuple[str, int, str], AdapterComposition] = {}
    for (name, seed, persona_id), compositions in arms.items():
        arm = 0
        if len(compositions) > 1:
            scores = [val_scores[persona_id, composition] for composition in compositions]
            arm = select_arm(scores, higher_is_better=METRICS[metric].higher_is_better, margin_se=methods[name, seed].margin_se)
        chosen[name, seed, persona_id] = compositions[arm]
    return n_answers, chosen


def _held_out(runner: "_Runner", plan: WorkPlan, persona_ids: Sequence[str]) -> int:
    """Answer for the held-out people, under every arm: the likelihoods of their train examples, and their test items."""
    if plan.held_out is None or not {a.name for a in plan.held_out.adapters} <= trained_adapters(runner.state, plan).keys():
        return 0
    in_shard = set(persona_ids)
    pairs = [(p, composition) for p, compositions in plan.held_out.arms_by_persona if p in in_shard for composition in compositions]
    n_answers = runner.answer(plan, pairs, "train", ("nll",))
    return n_answers + runner.answer(plan, pairs, "test", tuple(dict.fromkeys((*runner.study.evaluation.metrics, "nll"))))


class _Runner:
    """Answers (persona, composition) pairs, skipping items that the study already has answers to."""

    def __init__(self, state: StudyState, stores: Stores, log: RunLog) -> None:
        self.state = state
        self.study = state.settings
        self.stores = stores
        self.log = log
        self._personas = state.dataset.by_id()
        members = state.clustering.members if state.clustering else (state.dataset.ids,)
        self._mates = {p: ids for ids in members for p in ids}
        self._indices: dict[tuple[tuple[str, ...], Ranking], ExchangeIndex] = {}
        self._answerer: Answerer | None = None

    def answer(self, plan: WorkPlan, pairs: Sequence[tuple[str, AdapterComposition]], split: Split, metrics: Sequence[str]) -> int:
        keys = {composition: plan.composition_key(composition) for _, composition in pairs}
        # Requests are grouped by composition, so that a chunk has few compositions.
        people: dict[AdapterComposition, list[str]] = {composition: [] for composition in keys}
        for p, composition in pairs:
            people[composition].append(p)
        answered = self._answered(keys.values(), split, metrics)
        unanswered = [
            (composition, p, item_ids)
            for composition, ids in people.items()
            for p in ids
            for its_items in [self._items(composition, self._personas[p], split)]
            if (item_ids := {item.id for item in its_items if (keys[composition], p, item.id) not in answered})
        ]
        total = sum(len(item_ids) for *_, item_ids in unanswered)
        if total == 0:
            return 0
        if self._answerer is None:
            model = self.study.model
            train = TrainResponses(self._personas.values())
            labels = label_set(self.study.data, self.state.dataset.personas)
            self._answerer = Answerer(base_model(model), embedder(model), self.study.evaluation, model, train=train, labels=labels)
        self.log.phase(f"answer {split} items", total=total, unit="answers")
        requests = (
            (composition, self._request(keys[composition], item, composition))
            for composition, p, item_ids in unanswered
            for item in self._items(composition, self._personas[p], split)
            if item.id in item_ids
        )
        for chunk in _chunks(requests):
            weights = {
                keys[composition]: combined_weights(composition.adapters, lambda name: stored_weights(self.stores, plan.keys[name]))
                for composition in chunk
            }
            in_chunk = [request for its_requests in chunk.values() for request in its_requests]
            saver = AnswerSaver(self.study.name, self.stores.studies)
            self._answerer.answer(in_chunk, weights, metrics=metrics, run_log=self.log, on_scored=saver.add)
            saver.save()
        return total

    def scores(
        self, plan: WorkPlan, pairs: Sequence[tuple[str, AdapterComposition]], split: Split, metric: str
    ) -> dict[tuple[str, AdapterComposition], np.ndarray]:
        """Return one metric's item scores, items in the persona's order, for every (persona, composition)."""
        keys = {composition: plan.composition_key(composition) for _, composition in pairs}
        return scores_of(self.state, self.stores, keys, pairs, split, metric)

    def _answered(self, keys: Iterable[str], split: Split, metrics: Sequence[str]) -> set[AnswerKey]:
        """Return the study's answers that have all these metrics."""
        needed = {name for name in metrics if not METRICS[name].pairwise}
        scores = self.stores.studies.item_scores(self.study.name, sorted(set(keys)), needed, split)
        return {key for key, of_answer in scores.items() if len(of_answer) == len(needed)}

    def _items(self, composition: AdapterComposition, persona: Persona, split: Split) -> tuple[Item, ...]:
        """Return a persona's items with this composition's system turn."""
        model = self.study.model
        return items(replace(model, persona_in_prompt=True) if composition.persona_in_prompt else model, persona, split)

    def _request(self, key: str, item: Item, composition: AdapterComposition) -> AnswerRequest:
        """Return an item as it is asked: with the exchanges that the composition's prompt shows."""
        if not composition.shots:
            return AnswerRequest(key, item)
        shown = with_shots(item.messages, self._index(item.persona_id, composition), composition.shots)
        return AnswerRequest(key, replace(item, messages=shown), n_shots=(len(shown) - len(item.messages)) // 2)

    def _index(self, persona_id: str, composition: AdapterComposition) -> ExchangeIndex:
        pool = (persona_id,) if composition.shots_from == "own" else self._mates[persona_id]
        key = (pool, composition.ranking)
        if key not in self._indices:
            examples = [exchange for p in pool for exchange in exchanges(self._personas[p])]
            self._indices[key] = ExchangeIndex(examples, composition.ranking, embedder(self.study.model))
        return self._indices[key]


def _chunks(
    requests: Iterable[tuple[AdapterComposition, AnswerRequest]],
) -> Iterator[dict[AdapterComposition, list[AnswerRequest]]]:
    """Yield the requests by composition, as many as are asked together."""
    chunk: dict[AdapterComposition, list[AnswerRequest]] = {}
    n_requests = 0
    for composition, request in requests:
        if n_requests == _REQUESTS_AT_ONCE or (composition not in chunk and len(chunk) == _COMPOSITIONS_AT_ONCE):
            yield chunk
            chunk, n_requests = {}, 0
        chunk.setdefault(composition, []).append(request)
        n_requests += 1
    if chunk:
        yield chunk


def scores_of(
    state: StudyState,
    stores: Stores,
    keys: dict[AdapterComposition, str],
    pairs: Sequence[tuple[str, AdapterComposition]],
    split: Split,
    metric: str,
) -> dict[tuple[str, AdapterComposition], np.ndarray]:
    """Return one metric's scores by (persona, composition), items in the order of the persona's dialogues."""
    scores = stores.studies.item_scores(state.name, sorted(set(keys.values())), {metric}, split)
    study, personas = state.settings, state.dataset.by_id()
    return {
        (p, composition): np.array([scores[keys[composition], p, item.id][metric] for item in items(study.model, personas[p], split)])
        for p, composition in pairs
    }
