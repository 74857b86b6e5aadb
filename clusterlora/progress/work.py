"""How much work a study has before it, counted in tokens, answers and texts: from its plan, before and after its people are clustered."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from clusterlora.adapters.learned import learned
from clusterlora.clustering import EMBEDDING
from clusterlora.evaluation import reference_points as scale
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.metadata import MeanTokens, TuningRound
from clusterlora.methods import METHODS
from clusterlora.persona_signal import measure as signal
from clusterlora.planning.ladder import gated, next_rung, refused
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.trials import finished, trial_step
from clusterlora.planning.tuning import in_turn, left, with_step
from clusterlora.planning.work_plan import WorkPlan, gate_adapters, judged_adapters, trained_adapters, work_plan
from clusterlora.values import AdapterComposition, AdapterSpec, Clustering, MethodPlan, Persona, Retrieval, Split

_ASSUMED_CLUSTERS = 5
"""Clusters of an even partition, where neither settings nor clustering say how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """Answers to generate and score, the items whose references they are compared with, and references whose likelihood alone is asked."""

    n_answers: int = 0
    n_references: int = 0
    n_likelihoods: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a study has yet to do, phase by phase; tokens are those of every adapter, so a person's dialogues count once per adapter."""

    n_dialogues: int
    """Dialogues of the study, in all splits."""
    texts: int
    """Texts to embed before people are clustered; 0 once they are."""
    clustered: int = 0
    """Train answers by which people are yet to be clustered."""
    texts_per_run: int = 0
    """Train answers that every run which scores embeds before the first, for a metric that compares with them."""
    texts_searched: int = 0
    """Train questions that every run of the evaluation embeds, for retrieval that ranks by them."""
    texts_beside: int = 0
    """Texts to embed for the signal and for the scale of the scores, while adapters are trained."""
    gate: tuple[float, ...]
    """Train tokens of the adapters that the gate's next rung lacks, one entry per run."""
    gate_answers: Answering
    """Of the candidate and unified on val."""
    beside_gate: Answering
    """Of the base model, on val for the power and on test, which a second worker computes meanwhile."""
    fan_out: tuple[tuple[float, ...], ...]
    """Train tokens of all other adapters, per wave of those that start from one another."""
    tuning: tuple[tuple[tuple[float, ...], Answering], ...] = ()
    """Of every step of the tuning, the train tokens of its trials' adapters and what they are asked on val."""
    evaluation: Answering
    """Of every method on test, and the likelihoods by which some choose on val."""


def remaining_work(state: StudyState, lengths: MeanTokens) -> Work:
    """Return what a prepared study has yet to do.

    Before its people are clustered, clusters of the asked sizes are assumed, else even ones.
    """
    clustered, embeds = state.clustering is not None, state.settings.clustering.algorithm in EMBEDDING
    state = state if clustered else replace(state, clustering=assumed_clustering(state))
    plan = work_plan(state)
    trained = frozenset(trained_adapters(state, plan))
    judging = gated(state) and next_rung(state) is not None
    judged = tuple(name for name in plan.with_needs(gate_adapters(plan)) if name not in trained) if judging else ()
    bare = AdapterComposition()
    tests = _pairs(state, plan)
    baseline_first = judging and any(composition == bare for _, composition in tests) and state.n_shards > 1
    beside = [pair for pair in tests if pair[1] == bare] if baseline_first else []
    done = frozenset(pair for pair in tests if pair[1] == bare) if baseline_first or _answered_baseline(state) else frozenset()
    candidates = plan.specs[judged_adapters(plan)[0]].persona_ids if judging else ()
    people = state.dataset.by_id()
    power = sum(n_items(people[p], "val") for p in candidates) if judging and state.power is None else 0
    n_beside = power + sum(n_items(people[p], "test") for p, _ in beside)
    return Work(
        n_dialogues=state.dataset.n_dialogues,
        texts=0 if clustered or not embeds else _n_train(state),
        clustered=0 if clustered else _n_train(state),
        texts_per_run=texts_per_run(state),
        texts_searched=_n_train(state) if _searches_embeddings(state) else 0,
        texts_beside=_texts_beside(state),
        tuning=tuple(_tuning(state, lengths)),
        gate=tuple(train_tokens(plan.specs[name], people, lengths) for name in judged),
        gate_answers=gate_answering(state, plan) if judging else Answering(),
        beside_gate=Answering(n_answers=n_beside, n_references=n_beside),
        fan_out=() if refused(state) else tuple(_waves(state, plan, trained.union(judged), lengths)),
        evaluation=_evaluation(state, plan, [pair for pair in tests if pair not in done], lengths),
    )


def _tuning(state: StudyState, lengths: MeanTokens) -> Iterator[tuple[tuple[float, ...], Answering]]:
    """Yield the work of every tuning step that is left, as if the recipes that were drawn first went on."""
    people = state.dataset.by_id()
    tuning = state.tuning
    # A later step may build on an adapter of an earlier one, under another name.
    counted: set[str] = set()
    # What has no recipe left is not tried again, and the run says so.
    while tuning and (step := trial_step(state, [m for m in in_turn(state, whole=True) if left(tuning, m)])):
        ready = finished(state, step.plan)
        trials = {step.plan.keys[name]: spec for name, spec in step.plan.specs.items() if spec.is_trial and name not in ready}
        due = [spec for key, spec in trials.items() if key not in counted]
        counted.update(trials)
        pairs = {(p, arm) for trial in step.trials for p, arms in trial.plan.arms_by_persona for arm in arms}
        n_likelihoods = sum(n_items(people[p], "val") for p, _ in pairs)
        yield tuple(train_tokens(spec, people, lengths) for spec in due), Answering(n_likelihoods=n_likelihoods)
        tried: dict[str, list[tuple[int, float | None]]] = {}
        for trial in step.trials:
            tried.setdefault(trial.method, []).append((trial.number, float(trial.number)))
        tuning = with_step(tuning, (TuningRound(m, 0, tuple(losses)) for m, losses in tried.items()))
        state = replace(state, tuning=tuning)


def gate_answering(state: StudyState, plan: WorkPlan) -> Answering:
    """Return what a rung of the gate answers on val: the candidate and unified for its people, as the random group's adapter for its."""
    people = state.dataset.by_id()
    candidates = plan.specs[judged_adapters(plan)[0]].persona_ids
    group = plan.specs[plan.random_group].persona_ids if plan.random_group else ()
    n_val = {p: n_items(people[p], "val") for p in (*candidates, *group)}
    n_own = sum(n_val[p] for p in candidates)
    n_group = sum(n_val[p] * (1 if p in candidates else 2) for p in group)
    return Answering(n_answers=2 * n_own + n_group, n_references=sum(n_val.values()))


def texts_per_run(state: StudyState) -> int:
    """Return how many texts a run embeds before it scores its first answer."""
    return _n_train(state) if any(METRICS[name].embeds_train for name in state.settings.evaluation.metrics) else 0


def _searches_embeddings(state: StudyState) -> bool:
    return "embedding" in state.settings.retrieval.rankings and any(METHODS[name].retrieves for name in state.settings.methods)


def _n_train(state: StudyState) -> int:
    return sum(n_items(person, "train") for person in state.dataset.personas)


def _texts_beside(state: StudyState) -> int:
    """Return how many texts the signal and the scale of the scores read, as far as they are not measured."""
    people, measured = state.dataset.personas, {phase for phase, _, _ in state.seconds}
    n_texts = 0
    if "signal" not in measured:
        sampled = people[: signal.MOST_PERSONAS]
        limits: tuple[tuple[Split, int], ...] = (("train", signal.MOST_TRAIN), ("val", signal.MOST_VAL))
        n_texts += sum(2 * answers for person in sampled for split, most in limits for answers in _answers(person, split)[:most])
    if "scale" not in measured and state.settings.evaluation.headline == EMBEDDING_SIMILARITY.name:
        n_texts += sum(
            min(n, scale.FLOOR_REFERENCES) + 3 * min(n, scale.SAME_PROMPT_ITEMS) for n in (n_items(person, "test") for person in people)
        )
    return n_texts


def assumed_clustering(state: StudyState) -> Clustering:
    """Return a partition of the asked sizes, or an even one, in the order of the people: for counting, nothing else.

    A refresh has the clusters of before, with everybody new in the first.
    """
    settings, ids = state.settings.clustering, state.dataset.ids
    if state.start is not None and state.start.members:
        first, *others = state.start.members
        known = {p for members in state.start.members for p in members}
        return Clustering(state.start.algorithm, ((*first, *(p for p in ids if p not in known)), *others))
    k = min(settings.k or _ASSUMED_CLUSTERS, len(ids))
    sizes = settings.sizes if settings.sizes and sum(settings.sizes) == len(ids) else None
    if sizes is None:
        sizes = tuple(len(ids[number::k]) for number in range(k))
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return Clustering(settings.algorithm, tuple(ids[start : start + size] for start, size in zip(starts, sizes, strict=True)))


def n_items(person: Persona, split: Split) -> int:
    """Return how many answers of a split's dialogues there are, each of which is an item."""
    return sum(_answers(person, split))


def _answers(person: Persona, split: Split) -> list[int]:
    """Return the number of answers of every dialogue of a split."""
    return [sum(turn.role == "assistant" for turn in dialogue.turns) for dialogue in person.of_split(split)]


def train_tokens(spec: AdapterSpec, people: Mapping[str, Persona], lengths: MeanTokens) -> float:
    """Return the tokens that an adapter is trained on, over all epochs; 0 for one that is merged, or kept as it is."""
    if spec.merge_of or spec.kept:
        return 0.0
    return lengths.dialogue * spec.recipe.epochs * sum(len(dialogues) for _, dialogues in learned(spec, people))


def _answered_baseline(state: StudyState) -> bool:
    return any(phase == "evaluate baseline" for phase, _, _ in state.seconds)


def _plans(state: StudyState, plan: WorkPlan) -> Iterable[MethodPlan]:
    return (methods[name] for methods in plan.seeds for name in state.settings.methods)


def _compared(state: StudyState) -> frozenset[str]:
    """Return who is compared: after a refused gate, the cluster on trial alone."""
    if refused(state) and state.clustering is not None:
        plan = work_plan(state)
        return frozenset(plan.specs[judged_adapters(plan)[0]].persona_ids)
    return frozenset(state.dataset.ids)


def _pairs(state: StudyState, plan: WorkPlan) -> dict[tuple[str, AdapterComposition], None]:
    """Return every (person, composition) that answers test items, once however many methods ask for it."""
    compared = _compared(state)
    return {
        (p, _most_shown(method).shown_by(arms[0]) if method.retrievals else arms[0]): None
        for method in _plans(state, plan)
        for p, arms in method.arms_by_persona
        if p in compared
    }


def _most_shown(method: MethodPlan) -> Retrieval:
    return max(method.retrievals, key=lambda retrieval: retrieval.count)


def _evaluation(state: StudyState, plan: WorkPlan, tests: Iterable[tuple[str, AdapterComposition]], lengths: MeanTokens) -> Answering:
    people, compared = state.dataset.by_id(), _compared(state)
    choices = {
        (p, composition)
        for method in _plans(state, plan)
        for p, arms in method.arms_by_persona
        if len(arms) > 1 and p in compared
        for composition in arms
    }
    retrieved = {
        (p, retrieval.shown_by(arms[0]))
        for method in _plans(state, plan)
        for p, arms in method.arms_by_persona
        if p in compared
        for retrieval in method.retrievals
    }
    tests = list(tests)
    # What a prompt shows is read as well: an exchange is at most a dialogue.
    n_shots = sum(composition.shots * n_items(people[p], "test") for p, composition in tests)
    n_shots += sum(composition.shots * n_items(people[p], "val") for p, composition in retrieved)
    n_shown = round(n_shots * lengths.dialogue / max(lengths.prompt + lengths.response, 1.0))
    n_answers = sum(n_items(people[p], "test") for p, _ in tests)
    n_choosing = sum(n_items(people[p], "val") for p, _ in choices | retrieved)
    held_out = [(p, len(arms)) for p, arms in plan.held_out.arms_by_persona] if plan.held_out and not refused(state) else []
    n_answers += sum(n_arms * n_items(people[p], "test") for p, n_arms in held_out)
    by_likelihood = state.settings.evaluation.selection_metric == "nll"
    return Answering(
        n_answers=n_answers + (0 if by_likelihood else n_choosing),
        n_references=sum(n_items(people[p], "test") for p in {p for p, _ in tests}),
        n_likelihoods=n_shown + (n_choosing if by_likelihood else 0) + sum(n_arms * n_items(people[p], "train") for p, n_arms in held_out),
    )


def _waves(state: StudyState, plan: WorkPlan, ready: frozenset[str], lengths: MeanTokens) -> Iterable[tuple[float, ...]]:
    """Yield the train tokens of the adapters that are not `ready`, in waves that need only earlier ones."""
    missing, people = [spec for spec in plan.specs.values() if spec.name not in ready], state.dataset.by_id()
    while missing:
        wave = [spec for spec in missing if ready.issuperset(spec.needs)]
        assert wave, f"adapters that need each other: {', '.join(spec.name for spec in missing)}"
        ready = ready.union(spec.name for spec in wave)
        missing = [spec for spec in missing if spec.name not in ready]
        yield tuple(train_tokens(spec, people, lengths) for spec in wave if not spec.merge_of)
