"""Measure how long a study's trainings and answers take on this machine, on some of its own dialogues and with its own base model.

Nothing of it is kept but the rates. Answers are those to val items.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from statistics import median

from clusterlora.chat.encoder import TokenSequence
from clusterlora.comparison.power import expected_clusters, study_power
from clusterlora.data.labels import label_set
from clusterlora.data.prompts import items, messages, prompt_encoder
from clusterlora.engine.job import TrainingJob, TrainingResult, batches
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.memory import device_name
from clusterlora.engine.stacked import Weights
from clusterlora.errors import OutOfMemory
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.metrics import METRICS, generates
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.metadata import MeanTokens, Probe, Provenance, Rates, Workers
from clusterlora.models.base import BaseModel
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.ladder import REFERENCE
from clusterlora.planning.study_state import StudyState, default_shards, read_state
from clusterlora.ports.run_log import RunLog, SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.estimate import ending_seconds
from clusterlora.progress.time_limit import cut_to_time, takes_longer
from clusterlora.progress.timing import seconds_by_phase, timed
from clusterlora.progress.work import remaining_work
from clusterlora.settings import Study
from clusterlora.stages.prepare import prepare_study, start_tracking
from clusterlora.values import Item, Persona

_PEOPLE = 32
"""People whose dialogues are measured, spread evenly over all."""
_LEAST_TOGETHER, _MOST_TOGETHER = 4, {"cpu": 32, "cuda": 128}
"""Adapters of the pass that stands for the fan-out: as many as are affordable, for a small base gains from every further one."""
_TOGETHER_SECONDS = 4.0
_READING_SECONDS = 6.0
"""As many items are answered as a study's decode batch has, or fewer: what reads them takes a third of the seconds of training on as many
dialogues, which are to be at most these."""
_NEW_TOKENS = 16
"""Tokens written per answer at most: their number is enough for a rate, and longer answers would take a minute."""
_FIRST_STEPS, _MOST_STEPS = 4, 200
_ENOUGH_SECONDS = 1.5
_WORTH_ALL_OF_IT = 300.0
"""Seconds of a study's trainings from which the probe takes its time; that of a shorter study is as much shorter, down to a fifth."""
_LEAST_EFFORT = 0.2
_FORMER_STUDIES = 5
"""Studies of this installation whose ends are looked at, the latest ones."""


def probe(study_name: str, stores: Stores, log: RunLog) -> Probe | None:
    """Return what a prepared study's work takes on this machine, recorded with it; a few seconds with a small base model.

    It is None where memory does not suffice for the probe, which stops nothing: trainings halve their micro-batch when they run out.
    """
    state = read_state(study_name, stores)
    log.phase("probe", total=4, unit="measurements")
    try:
        with timed(stores, study_name, "probe"), tempfile.TemporaryDirectory() as folder:
            measured = _measure(state, Path(folder), stores, log)
    except OutOfMemory as problem:
        log.note(f"how long the study will take is not known: {problem}")
        return None
    stores.studies.save_metadata(study_name, measured)
    return measured


def record_begin(study_name: str, took: float, worked: float, stores: Stores) -> None:
    """Record how long a run took on its worker beyond the seconds that it worked: what any run takes to begin and end here.

    What it waited for a worker must not be in it: the next runs find the worker free.
    """
    measured = stores.studies.metadata(study_name, Probe)
    if measured is None:
        return
    n, begin = measured.n_begun, max(0.0, took - worked)
    mean = ((measured.begin or 0.0) * n + begin) / (n + 1)
    stores.studies.save_metadata(study_name, replace(measured, begin=mean, n_begun=n + 1))


def ready(study_name: str, n_workers: int, stores: Stores, log: RunLog, *, running: bool = True) -> StudyState:
    """Return the state of a study that was probed, its workers and shards recorded; before it begins, it is cut to the minutes it may take.

    Args:
        running: as of `prepare_study`.
    """
    before = stores.studies.metadata(study_name, Workers)
    workers = Workers(n_workers, default_shards(n_workers) if before is None else before.n_shards)
    cut = cut_to_time(replace(read_state(study_name, stores), n_workers=workers.n, decided_shards=workers.n_shards))
    if cut is not None:
        stores.studies.save_metadata(study_name, cut)
    # Recorded last: who follows the study reads from it that all is known.
    stores.studies.save_metadata(study_name, workers)
    state = read_state(study_name, stores)
    minutes = state.settings.minutes
    if minutes is not None and state.probe is None:
        log.note(f"minutes = {minutes:g}: nothing is left out, since it is not known how long the study will take")
    elif minutes is not None and state.cut is None and takes_longer(state):
        log.note(f"minutes = {minutes:g}: nothing is left out, as its people are clustered already; it takes longer")
    if cut is None:
        return state
    made_from = replace(state.prepared_with, n_personas=len(state.dataset.personas), n_dialogues=state.dataset.n_dialogues)
    stores.studies.save_metadata(study_name, made_from)
    start_tracking(state.settings, made_from, state.dataset, stores, running=running)
    clusters = expected_clusters(state.settings.clustering, cut.n_personas)
    power = study_power(state.settings.methods, REFERENCE, cut.n_personas, clusters=clusters)
    if cut.n_personas < cut.of_personas and power is not None:
        log.note(power.sentence)
    return replace(state, provenance=made_from)


def probed(study: Study, n_workers: int, stores: Stores, log: RunLog) -> StudyState:
    """Return the state of a study after it was prepared and probed in this process, on a worker's share of this machine's cores.

    Raises:
        BadData, BadSettings, ModelUnavailable: as `prepare`.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, n_threads // n_workers))
    try:
        prepare_study(study, stores, log, running=False)
        probe(study.name, stores, log)
    finally:
        torch.set_num_threads(n_threads)
    return ready(study.name, n_workers, stores, log, running=False)


def _measure(state: StudyState, folder: Path, stores: Stores, log: RunLog) -> Probe:
    study, began = state.settings, time.monotonic()
    base = base_model(study.model)
    load = time.monotonic() - began
    log.advance(1)
    people = _sample(state.dataset.personas)
    encoder = prompt_encoder(base.tokenizer, study.model)
    by_person = [
        encoder.encode_dialogues(messages(study.model, person, dialogue) for dialogue in person.of_split("train")) for person in people
    ]
    # In turn, so that a few steps see many people.
    in_turn = [one for position in range(max(map(len, by_person))) for one in (its[position : position + 1] for its in by_person) if one]
    sequences = list(chain.from_iterable(in_turn))
    n_dialogues = sum(len(person.of_split("train")) for person in people)
    dialogue = sum(len(sequence.ids) for sequence in sequences) / n_dialogues
    alone, took, _ = _seconds_per_token(base, state, [sequences], folder / "first", enough=0.0)
    effort = min(1.0, max(_LEAST_EFFORT, alone * _tokens(state, dialogue) / _WORTH_ALL_OF_IT))
    if took < effort * _ENOUGH_SECONDS:
        alone, _, _ = _seconds_per_token(base, state, [sequences], folder / "alone", enough=effort * _ENOUGH_SECONDS)
    log.advance(1)
    n_together = _n_together(base, alone, sequences, study.recipe.batch_size, seconds=effort * _TOGETHER_SECONDS)
    by_job = [sequences[number::n_together] for number in range(n_together)]
    together, _, results = _seconds_per_token(base, state, by_job, folder / "together", enough=effort * _ENOUGH_SECONDS)
    log.advance(1)
    sample = [item for person in people for item in items(study.model, person, "val")]
    weights = [read_weights(one.folder) for one in results[:_LEAST_TOGETHER]]
    affordable = max(_LEAST_TOGETHER, int(_READING_SECONDS / (alone * dialogue)))
    answering, lengths = _answering(base, state, sample, weights, n_items=min(study.evaluation.batch_size, affordable))
    log.advance(1)
    return Probe(
        lengths=replace(lengths, dialogue=dialogue),
        rates=Rates(train_alone=alone, train_together=min(together, alone), n_together=n_together, load=load, **answering),
        device=device_name(),
        seconds=time.monotonic() - began,
        ending=ending_ratio(stores),
    )


def ending_ratio(stores: Stores) -> float:
    """Return what comparison and registry of the latest finished studies took over what is foreseen of them, as a median; 1 without any."""
    ratios: list[float] = []
    newest_first = sorted(stores.studies.studies(), key=lambda study: study[2], reverse=True)
    for name, status, _ in newest_first:
        took, made_from = seconds_by_phase(stores.studies.seconds(name)), stores.studies.metadata(name, Provenance)
        if status != "finished" or made_from is None or not {"compare", "register"} <= took.keys():
            continue
        foreseen = ending_seconds(made_from.n_dialogues, len(stores.studies.study(name).methods))
        ratios.append((took["compare"] + took["register"]) / foreseen)
        if len(ratios) == _FORMER_STUDIES:
            break
    return median(ratios) if ratios else 1.0


def _tokens(state: StudyState, dialogue: float) -> float:
    """Return the tokens of all adapters' training, given the mean tokens of a dialogue."""
    work = remaining_work(state, MeanTokens(dialogue=dialogue, prompt=0.0, response=0.0))
    return sum(work.gate) + sum(map(sum, work.fan_out))


def _n_together(base: BaseModel, alone: float, sequences: Sequence[TokenSequence], batch_size: int, *, seconds: float) -> int:
    """Return of how many adapters two steps take these seconds, given the seconds per token of one alone."""
    step_seconds = alone * batch_size * sum(len(sequence.ids) for sequence in sequences) / len(sequences)
    affordable = max(_LEAST_TOGETHER, int(seconds / (2 * step_seconds)))
    return max(1, min(affordable, _MOST_TOGETHER[base.model.device.type], len(sequences) // (2 * batch_size)))


def _sample(people: Sequence[Persona]) -> list[Persona]:
    return list(people[:: -(-len(people) // _PEOPLE)])


class _Stopwatch(SilentLog):
    """Remembers when each optimiser step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def advance(self, units: int = 1, **values: float) -> None:  # noqa: ARG002
        self.moments += [time.monotonic()] * units


def _seconds_per_token(
    base: BaseModel, state: StudyState, sequences_by_job: Sequence[Sequence[TokenSequence]], scratch: Path, *, enough: float
) -> tuple[float, float, list[TrainingResult]]:
    """Return the seconds per token of training one adapter on each list of sequences, in common passes, all seconds, and the adapters.

    The first step of each is not counted. Where all others took less than `enough` seconds, more steps are taken.
    """
    n_steps = _FIRST_STEPS if len(sequences_by_job) == 1 else 2
    while True:
        seconds, n_tokens, results = _train(base, state, sequences_by_job, scratch / str(n_steps), n_steps=n_steps)
        if seconds >= enough or n_steps >= _MOST_STEPS:
            return seconds / n_tokens, seconds, results
        n_steps = min(_MOST_STEPS, math.ceil(n_steps * min(16.0, 1.5 * enough / max(seconds, 1e-3))) + 1)


def _train(
    base: BaseModel, state: StudyState, sequences_by_job: Sequence[Sequence[TokenSequence]], scratch: Path, *, n_steps: int
) -> tuple[float, int, list[TrainingResult]]:
    from clusterlora.engine.training import train

    recipe, stopwatch = state.settings.recipe, _Stopwatch()
    jobs = []
    for number, sequences in enumerate(sequences_by_job):
        first = tuple(islice(sequences, n_steps * recipe.batch_size))
        epochs = max(1, n_steps // math.ceil(len(first) / recipe.batch_size))
        job_recipe = replace(recipe, epochs=epochs, patience=None)
        jobs.append(TrainingJob(f"probe-{number}", f"probe-{number}", job_recipe, first, scratch / str(number)))
    micro_batch = state.settings.runtime.micro_batch or recipe.batch_size
    results = list(
        train(base, jobs, micro_batch=micro_batch, run_log=stopwatch, checkpointing=state.settings.runtime.gradient_checkpointing)
    )
    tokens = [len(sequence.ids) for job in jobs for sequence in job.sequences]
    first_steps = [sum(len(job.sequences[i].ids) for i in batches(job, 0)[0]) for job in jobs]
    n_timed = sum(job.recipe.epochs * sum(len(sequence.ids) for sequence in job.sequences) for job in jobs) - sum(first_steps)
    return stopwatch.moments[-1] - stopwatch.moments[len(jobs) - 1], max(n_timed, min(tokens)), results


def _answering(
    base: BaseModel, state: StudyState, sample: Sequence[Item], weights: Sequence[Weights], *, n_items: int
) -> tuple[dict[str, float], MeanTokens]:
    """Return the `Rates` of warming up, reading, writing, embedding and scoring labels, and the lengths of prompts and responses."""
    study = state.settings
    evaluation = replace(study.evaluation, max_new_tokens=min(_NEW_TOKENS, study.evaluation.max_new_tokens))
    chosen = list(sample[:: -(-len(sample) // n_items)])
    encoder = prompt_encoder(base.tokenizer, study.model)
    turns = encoder.encode_turns([(item.messages, item.reference) for item in sample])
    asked = encoder.encode_turns([(item.messages, item.reference) for item in chosen])
    n_read = sum(len(turn.prompt) + len(turn.response) for turn in asked)
    # What a run does once, embedding everybody's train answers, is no part of a rate.
    metrics = tuple(name for name in evaluation.metrics if not METRICS[name].embeds_train)
    cold = time.monotonic()
    embedder(study.model).encode(["a text"])  # loads the model
    began = time.monotonic()
    embedder(study.model).encode([item.reference for item in chosen])
    embedded = time.monotonic()
    keys = [f"probe-{number}" for number in range(len(weights))]
    train, labels = TrainResponses(state.dataset.personas), label_set(study.data, state.dataset.personas)
    answerer = Answerer(base, embedder(study.model), evaluation, study.model, train=train, labels=labels)
    requests = [AnswerRequest(keys[number % len(keys)], item) for number, item in enumerate(chosen)]
    by_key = dict(zip(keys, weights, strict=True))
    answerer.answer(requests[: len(keys)], by_key, metrics=metrics, run_log=SilentLog())
    warm = time.monotonic()
    answerer.answer(requests, by_key, metrics=("nll",), run_log=SilentLog())
    read = time.monotonic()
    once = (began - cold) + (warm - embedded)
    rates = {"warm": once, "read": (read - warm) / n_read, "write": 0.0, "embed": (embedded - began) / len(chosen)}
    n = len(turns)
    lengths = MeanTokens(dialogue=0.0, prompt=sum(len(t.prompt) for t in turns) / n, response=sum(len(t.response) for t in turns) / n)
    if not labels and not generates(evaluation.metrics):
        return rates, lengths
    answers = answerer.answer(requests, by_key, metrics=metrics, run_log=SilentLog())
    written = time.monotonic()
    if labels:
        return {**rates, "labels": (written - read) / (read - warm)}, lengths
    n_written = sum(len(base.tokenizer(answer.text, add_special_tokens=False)["input_ids"]) + 1 for answer in answers)
    generating = (written - read) - (read - warm) - len(chosen) * rates["embed"]
    return {**rates, "write": max(generating, 0.0) / n_written}, lengths
