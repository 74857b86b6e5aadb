"""How long a study will take, phase by phase: its remaining work, times the rates that a probe measured, corrected by what has run.

Pure functions of a study's state. The rates are those of one worker while the others may be idle, so the first expectation is of the right
order; what the first adapters and answers took then corrects it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from clusterlora.clustering import AUTO, WITHOUT_EMBEDDINGS
from clusterlora.clustering.choice import FOLDS, LARGEST_K
from clusterlora.evaluation.metrics import generates
from clusterlora.metadata import Probe, Rates
from clusterlora.planning.cut import at_most
from clusterlora.planning.ladder import goes_on_after_refusal, worth_trying
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import work_plan
from clusterlora.progress.timing import duration
from clusterlora.progress.work import Answering, Work, gate_answering, n_items, remaining_work, texts_per_run, train_tokens
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import ClusteringSettings, PreparedStudy
from clusterlora.study_checks import nll_settings

RUN_SECONDS = 8.0
"""Seconds from asking for a run until it works, without the load of its models, where no run has shown it: 3 to 9 s were measured with a
process that forks runs, and 9 to 16 s where others used the cores."""
ADAPTER_SECONDS = 0.3
"""Seconds in which a trained adapter is stored, uploaded, recorded and asked a question: 0.2 with 40 of a small base, 0.9 where others used
the cores."""
CLUSTER_SECONDS, PARTITION_SECONDS = 3e-4, 2.3e-5
"""Seconds of one core per train answer, of an algorithm's features and of each partition that is tried: 40 people with 10 speeches each
took 2.4 s and 200 with 20 took 11.4 s where all was open, 1.4 s and 4.1 s with three clusters."""
ENDING_SECONDS, ENDING_SECONDS_PER_DIALOGUE = 8.0, 1.6e-4
"""Seconds of the comparison, its report, the registry and the steps between runs, once and per dialogue and method: 200 people with 50
dialogues and 7 methods took 18 s, 40 people with 20 and 3 methods 3.4 s, and 3 s passed between the runs."""
_LIMITS = (0.1, 10.0)
"""A correction beyond these would say that something else was measured, such as adapters that another study had trained."""
_WORTH_SAYING = 0.9
"""A cheaper study is named where it takes less than this share of the time."""

GPU_RATES: dict[str, tuple[str, float, float, int, float]] = {
    # docs/gpu.md, "The same study on SmolLM2-135M": 19 ms a step of two dialogues of 123 tokens; 9,389 adapters of 45 such steps per hour;
    # 2,390 answers in 21 s.
    "smollm2-135m": ("an H100", 0.019 / 246, 3600 / 9389 / (45 * 246), 256, 21 / 2390),
    # docs/gpu.md, "A whole study": 70,000 tokens/s; 100 adapters of 45 steps in 5 s; the demo's 19,135 answers in 29 s.
    "homelm": ("an H200", 1 / 70_000, 5 / (100 * 45 * 246), 100, 29 / 19_135),
}
"""By base: the GPU, seconds per token alone and together, of how many, and seconds per answer that were measured on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Expected seconds of what is left of a study, on its workers; `further_rung` is one more configuration that the gate may try."""

    preparation: float
    gate: float
    tuning: float
    fan_out: float
    evaluation: float
    beside: float = 0.0
    """Seconds by which the signal and the scale of the scores, measured on the same cores, prolong gate and fan-out."""
    further_rung: float = 0.0
    n_further_rungs: int = 0

    @property
    def total(self) -> float:
        """All that is left, if the gate passes at the next configuration it tries."""
        return self.preparation + self.tuning + self.gate + self.fan_out + self.evaluation + self.beside


def estimate(state: StudyState) -> Estimate | None:
    """Return what is left of a study to do, in seconds; None before its probe, or when it has finished."""
    if state.probe is None or state.data is None or (state.outcome is not None and not goes_on_after_refusal(state)):
        return None
    probe = corrected(state, state.probe)
    work = remaining_work(state, probe.lengths)
    tried = {verdict.rung for verdict in state.verdicts}
    n_further = len([rung for rung in worth_trying(state) if rung.name not in tried]) - 1
    return expected(work, probe, state.n_workers, state.settings, n_shards=state.n_shards, n_further_rungs=max(0, n_further))


def expected(work: Work, probe: Probe, n_workers: int, study: PreparedStudy, *, n_shards: int, n_further_rungs: int = 0) -> Estimate:
    """Return the seconds that work takes on so many workers.

    A run begins as long after it is asked for as the probe's did, else RUN_SECONDS, and loads the base model. The fan-out and the answers
    are divided over the study's shards, and runs go to free workers, longest first.
    """
    rates, begin = probe.rates, (RUN_SECONDS if probe.begin is None else probe.begin) + probe.rates.load
    n_parallel = max(1, min(n_workers, n_shards))
    scoring = begin + rates.warm + work.texts_per_run * rates.embed
    gate = 0.0
    busy: list[float] = []
    if work.gate or work.gate_answers.n_answers:
        runs = [begin + ADAPTER_SECONDS + tokens * rates.train_alone for tokens in work.gate]
        if work.beside_gate.n_answers:
            # What the base model answers is no reason to wait where workers are idle; on one worker it is all done in turn.
            runs.append(scoring + answering_seconds(work.beside_gate, probe, study))
        judging = scoring + answering_seconds(work.gate_answers, probe, study)
        gate, busy = _makespan(runs, n_workers) + judging, [*runs, judging]
    candidate = (
        min(work.gate, default=0.0) * rates.train_alone
        + ADAPTER_SECONDS
        + begin
        + scoring
        + answering_seconds(work.gate_answers, probe, study)
    )
    waves = [[begin + trained_seconds(tokens, rates) for tokens in _shards(wave, n_shards)] for wave in work.fan_out if wave]
    fan_out = sum(_makespan(wave, n_workers) for wave in waves)
    tuning = sum(
        _makespan([begin + trained_seconds(tokens, rates) for tokens in _shards(tokens_of_step, n_shards)], n_workers)
        + begin
        + rates.warm
        + answering_seconds(answering, probe, study) / n_parallel
        for tokens_of_step, answering in work.tuning
    )
    once, answers = scoring + work.texts_searched * rates.embed, answering_seconds(work.evaluation, probe, study)
    busy += [*(seconds for wave in waves for seconds in wave), n_parallel * once + answers]
    evaluation = once + answers / n_parallel
    ending = probe.ending * ending_seconds(work.n_dialogues, len(study.methods))
    return Estimate(
        preparation=work.texts * rates.embed + clustering_seconds(work.clustered, study.clustering),
        beside=_prolonged(work.texts_beside * rates.embed, gate + fan_out + evaluation, sum(busy), probe, n_workers),
        gate=gate,
        tuning=tuning,
        fan_out=fan_out,
        evaluation=evaluation + ending,
        further_rung=candidate if gate else 0.0,
        n_further_rungs=n_further_rungs if gate else 0,
    )


def _prolonged(beside: float, seconds: float, busy: float, probe: Probe, n_workers: int) -> float:
    """Return by how many seconds what one process does beside the workers prolongs these.

    On a CPU it has the cores that idle workers leave, then a share of all. A GPU's work leaves the cores to it.
    """
    if not beside:
        return 0.0
    alone = max(0.0, beside - seconds)
    if not probe.device.startswith("cpu"):
        return alone
    idle = max(0.0, n_workers * seconds - busy)
    return max(alone, max(0.0, beside - idle) / n_workers)


def ending_seconds(n_dialogues: int, n_methods: int) -> float:
    """Return the seconds of what follows the last answer, in a study of so many dialogues."""
    return ENDING_SECONDS + n_dialogues * n_methods * ENDING_SECONDS_PER_DIALOGUE


def clustering_seconds(n_answers: int, settings: ClusteringSettings) -> float:
    """Return the seconds in which people with so many train answers are clustered, without embedding any text."""
    n_algorithms = len(WITHOUT_EMBEDDINGS) if settings.algorithm == AUTO else 1
    n_ks = LARGEST_K - 1 if settings.k is None and settings.sizes is None else 1
    return n_answers * n_algorithms * (CLUSTER_SECONDS + n_ks * (1 + FOLDS) * PARTITION_SECONDS)


def trained_seconds(tokens: Sequence[float], rates: Rates) -> float:
    """Return the seconds in which one run trains and keeps adapters of so many tokens."""
    return len(tokens) * ADAPTER_SECONDS + together_seconds(tokens, rates)


def together_seconds(tokens: Sequence[float], rates: Rates) -> float:
    """Return the seconds in which one run trains adapters of so many tokens side by side.

    A pass takes a + b k seconds per token of one of its k adapters; a and b follow from the two rates that were measured. There are as
    many passes as the longest adapter has steps, so one large adapter among small ones is trained at its own pace.
    """
    n = rates.n_together
    per_pass = (rates.train_alone - rates.train_together) * n / (n - 1) if n > 1 else 0.0
    return per_pass * max(*tokens, sum(tokens) / n) + (rates.train_alone - per_pass) * sum(tokens)


def _shards(tokens: Sequence[float], n: int) -> list[list[float]]:
    """Return the adapters of a wave as its runs have them: longest first, each to the run with the least work."""
    shards: list[list[float]] = [[] for _ in range(n)]
    loads = [0.0] * n
    for one in sorted(tokens, reverse=True):
        least = loads.index(min(loads))
        shards[least].append(one)
        loads[least] += one
    return [shard for shard in shards if shard]


def answering_seconds(answering: Answering, probe: Probe, study: PreparedStudy) -> float:
    """Return the seconds in which one worker generates and scores answers, without starting; a reference is embedded once."""
    lengths, rates, evaluation = probe.lengths, probe.rates, study.evaluation
    reading = (lengths.prompt + lengths.response) * rates.read
    seconds = answering.n_answers * reading * rates.labels + answering.n_likelihoods * reading
    if not generates(evaluation.metrics):
        return seconds
    writing = min(lengths.response + 1, evaluation.max_new_tokens) * rates.write + rates.embed
    return seconds + answering.n_answers * writing + answering.n_references * rates.embed


def corrected(state: StudyState, probe: Probe) -> Probe:
    """Return the probe with its rates scaled to what trainings and answers of this study really took on its workers."""
    rates = probe.rates
    training, answering = _training_ratio(state, probe), _answering_ratio(state, probe)
    return replace(
        probe,
        rates=replace(
            rates,
            train_alone=rates.train_alone * training,
            train_together=rates.train_together * training,
            read=rates.read * answering,
            write=rates.write * answering,
            embed=rates.embed * answering,
            load=rates.load * answering,
            warm=rates.warm * answering,
        ),
    )


def _training_ratio(state: StudyState, probe: Probe) -> float:
    """Return seconds taken over seconds expected of the adapters that had a run, and one attempt, of their own; 1 before there is one."""
    if state.clustering is None:
        return 1.0
    specs = {name: spec for name, spec in work_plan(state).specs.items() if name not in _retried(state)}
    runs = [(seconds, specs[part]) for phase, part, seconds in state.seconds if phase == "train" and part in specs]
    took = sum(seconds for seconds, _ in runs)
    fixed = len(runs) * (probe.rates.load + ADAPTER_SECONDS)
    people = state.dataset.by_id()
    foreseen = sum(train_tokens(spec, people, probe.lengths) * probe.rates.train_alone for _, spec in runs)
    # Loading and keeping take their time on any adapter: what is corrected is the pace of training.
    return _bounded(took - fixed, foreseen)


def _answering_ratio(state: StudyState, probe: Probe) -> float:
    """Return seconds taken over seconds expected of the answers to val items and of the base model's answers; 1 before there are any.

    Those of a run that was tried again are left out.
    """
    if not state.verdicts:
        return 1.0
    requests = {("evaluate gate", v.rung): EvaluationRequest(study_name=state.name, part="gate", rung=v.rung) for v in state.verdicts}
    requests["evaluate baseline", "1/1"] = EvaluationRequest(study_name=state.name, part="baseline")
    once_tried = {key for key, request in requests.items() if request.run_name not in _retried(state)}
    seconds_by_run = {(phase, part): seconds for phase, part, seconds in state.seconds if (phase, part) in once_tried}
    n_gates = sum(phase == "evaluate gate" for phase, _ in seconds_by_run)
    once = probe.rates.load + probe.rates.warm + texts_per_run(state) * probe.rates.embed
    foreseen = n_gates * (once + answering_seconds(gate_answering(state, work_plan(state)), probe, state.settings))
    if n_gates < len(seconds_by_run):
        n_test = sum(n_items(person, "test") for person in state.dataset.personas)
        foreseen += once + answering_seconds(Answering(n_answers=n_test, n_references=n_test), probe, state.settings)
    return _bounded(sum(seconds_by_run.values()), foreseen)


def _retried(state: StudyState) -> frozenset[str]:
    """Return what had more than one attempt: a process that is killed records no seconds, so those recorded are of the rest of its work."""
    return frozenset(attempt.group for attempt in state.attempts if attempt.number > 1)


def _bounded(took: float, foreseen: float) -> float:
    if took <= 0 or foreseen <= 0:
        return 1.0
    return min(max(took / foreseen, _LIMITS[0]), _LIMITS[1])


def _makespan(runs: Iterable[float], n_workers: int) -> float:
    """Return when the last of these runs ends, if free workers take the longest first."""
    ends = [0.0] * n_workers
    for seconds in sorted(runs, reverse=True):
        ends[ends.index(min(ends))] += seconds
    return max(ends)


def cheaper(state: StudyState) -> tuple[tuple[str, float], ...]:
    """Return (what to change, seconds that the whole study then takes), for a study of which nothing is trained; empty otherwise.

    A GPU is among them where its rates with this base were measured.
    """
    whole = estimate(state)
    if whole is None or state.probe is None or state.adapters:
        return ()
    study, probe = state.settings, state.probe
    n_train = max(1, int(median(len(person.of_split("train")) for person in state.dataset.personas)) // 2)
    fewer = replace(study, data=replace(study.data, train=n_train))
    shorter = at_most(state.dataset, {"train": n_train})
    options = [
        (f"half the train dialogues (data.train={n_train})", replace(state, settings=fewer, data=shorter)),
        ("one epoch (recipe.epochs=1)", replace(state, settings=replace(study, recipe=replace(study.recipe, epochs=1)))),
    ]
    if state.tuning is not None:
        options.append(("nothing tuned (without --tune)", replace(state, tuning=None)))
    if state.n_shards < (n := state.n_workers):
        options.append(
            (
                f"a run for each worker (runtime.shards={n})",
                replace(state, settings=replace(study, runtime=replace(study.runtime, shards=n))),
            )
        )
    if generates(study.evaluation.metrics):
        losses = replace(study.evaluation, metrics=("nll",), headline="nll", selection_metric="nll", second_headline=None)
        without = replace(state, settings=replace(study, evaluation=losses))
        options.append((f"nothing generated, the loss alone ({nll_settings(study)})", without))
    seconds = [
        (what, expected(remaining_work(one, probe.lengths), probe, state.n_workers, one.settings, n_shards=one.n_shards).total)
        for what, one in options
    ]
    if probe.device.startswith("cpu") and study.model.base in GPU_RATES and study.model.quantisation == "none":
        gpu, rates = _gpu_rates(study, probe)
        on_gpu = expected(remaining_work(state, probe.lengths), replace(probe, rates=rates), 1, study, n_shards=state.n_shards)
        seconds.append((f"{gpu}, at the rates of docs/gpu.md", on_gpu.total))
    return tuple((what, one) for what, one in seconds if one < _WORTH_SAYING * whole.total)


def _gpu_rates(study: PreparedStudy, probe: Probe) -> tuple[str, Rates]:
    gpu, alone, together, n_together, per_answer = GPU_RATES[study.model.base]
    lengths = probe.lengths
    n_tokens = lengths.prompt + lengths.response + min(lengths.response + 1, study.evaluation.max_new_tokens)
    per_token = per_answer / n_tokens
    return gpu, Rates(
        train_alone=alone,
        train_together=together,
        n_together=n_together,
        read=per_token,
        write=per_token,
        embed=0.0,
        load=probe.rates.load,
        warm=probe.rates.warm,
        labels=probe.rates.labels,
    )


def cut_sentence(state: StudyState) -> str | None:
    """Return what is left of a study's data so that it ends within its minutes, and whether it will; None where all are used."""
    cut, minutes = state.cut, state.settings.minutes
    if cut is None or minutes is None:
        return None
    people = f"the first {cut.n_personas} of {cut.of_personas} people" if cut.n_personas < cut.of_personas else "everybody"
    kept = f"{people} with at most {cut.train} train, {cut.val} val and {cut.test} test dialogues each"
    fits = "" if cut.fits else "; that is longer, but with fewer the answer would say nothing"
    took = f"about {duration(cut.expected)} instead of {duration(cut.whole)} from there on{fits}"
    return f"cut to minutes = {minutes:g}: {kept}, {took} (another --name with --set minutes=none uses all)"


def sentences(state: StudyState) -> tuple[str, ...]:
    """Return what a person is told: how long what is left takes, phase by phase, and what would be cheaper; nothing before the probe."""
    left = estimate(state)
    if left is None or state.probe is None:
        return ()
    parts = {
        "preparation": left.preparation,
        "tuning": left.tuning,
        "gate": left.gate,
        "fan-out": left.fan_out,
        "evaluation": left.evaluation,
        "signal and scale beside them": left.beside,
    }
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds >= 1)
    workers = "1 worker" if state.n_workers == 1 else f"{state.n_workers} workers"
    if state.n_shards < state.n_workers:
        workers += f", of which {state.n_shards} share fan-out and evaluation (runtime.shards={state.n_shards})"
    basis = "what has run so far" if state.verdicts else f"a probe of {duration(state.probe.seconds)}"
    lines = [f"about {duration(left.total)} to go on {workers} ({state.probe.device}), by {basis}: {shown}"]
    if not state.verdicts and (cut := cut_sentence(state)):
        lines.append(cut)
    if left.n_further_rungs:
        n = left.n_further_rungs
        lines.append(f"if the gate refuses it tries up to {n} more configuration{'s' if n > 1 else ''}, {duration(left.further_rung)} each")
    if options := cheaper(state):
        lines.append("cheaper: " + "; ".join(f"{what} {duration(seconds)}" for what, seconds in options))
    return tuple(lines)
